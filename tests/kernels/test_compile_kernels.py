"""The kernels compile for GPUs that are not here, fit them, and wait as they must."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from random_layers import LLAMA2_7B

from squeeze10_kernels.tiles import H200, select_tile

BENCHMARKS = Path(__file__).parents[2] / "deploy/benchmarks"
ARCHS = (80, 86, 89, 120)
"""A100, RTX 3090, 4090 and 5090."""


def compile_kernels(*arguments: object) -> list[str]:
    """What compile_kernels.py prints, which must find no fault."""
    script = [sys.executable, str(BENCHMARKS / "compile_kernels.py"), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS.parents[1] / "kernels"), "TRITON_INTERPRET": "0"}
    run = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr[:4000]
    return run.stdout.splitlines()


@pytest.mark.parametrize(("dtype", "M"), [("bf16", 4096), ("fp16", 64)])
def test_hopper_waits_before_it_writes_registers_again(dtype: str, M: int) -> None:
    """Triton's own pipelining forgot such waits, which showed once in 400 launches."""
    lines = [line for line in compile_kernels("--tokens", M, "--dtype", dtype) if "HGMMA" in line]

    assert len(lines) == len({select_tile(M, N, K, H200) for N, K in LLAMA2_7B})
    assert all("HGMMA 0.125" in line and " 0 spill" in line for line in lines), lines


def test_other_gpus_run_the_fused_kernels() -> None:
    """No instruction that they lack, and operands in registers: each new Triton laid them out in another way."""
    lines = compile_kernels("--arch", *ARCHS, "--tokens", 1, 16, "--layer", 22016, 4096)

    assert len(lines) == len(ARCHS) * (2 + 4), "two tiles, three gathers, decoding"
    assert all(" 0 spill" in line for line in lines), lines


def test_a_register_written_in_flight_is_found() -> None:
    from benchmarks.compile_kernels import overwritten_in_flight  # here, since it needs Triton's tools

    multiply = ".64x64x16.F32.BF16 R24, R{}, gdesc[UR16], R24, gsb0"
    in_flight = [(0, "HGMMA", multiply.format(56)), (16, "HGMMA", multiply.format(60))]
    wait, write = (32, "WARPGROUP", ".DEPBAR.LE gsb0, 0x1"), (48, "LOP3", ".LUT R59, R1, R2, R3, 0xea, !PT")

    assert list(overwritten_in_flight([*in_flight, write]))
    assert list(overwritten_in_flight([*in_flight, wait, write])) == [], "the first has finished"
    assert list(overwritten_in_flight([*in_flight, wait, (48, "LOP3", ".LUT R62, R1, R2, R3, 0xea, !PT")]))
    assert list(overwritten_in_flight([*in_flight, wait, (48, "IMAD", ".MOV.U32 R40, RZ, RZ, R1")])), "accumulator"
