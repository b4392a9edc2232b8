"""Compile the mixed kernel for Hopper on a machine without a GPU and count what its loops cost.

    PYTHONPATH=kernels python deploy/benchmarks/compile_kernels.py [rows,tokens,step,split,cost,warps,stages ...]

One line for a tile: registers, spilled bytes, shared memory, and for the loop over binary units and the loop over
salient units the instructions of a warp per 32 weights. `waits` are `wgmma`s that ptxas made wait for each other (its
message C7513): above 1 or 2, one warp no longer unpacks while it multiplies, so that only other warps hide either.
"""

import argparse
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from squeeze10_kernels.mixed_gemm import _mixed_gemm_kernel
from squeeze10_kernels.tiles import BUCKETS, Tile, select_tile

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
HOPPER = GPUTarget("cuda", 90, 32)
POINTERS = ("x_ptr", "sums_ptr", "words_ptr", "scales_ptr", "bias_ptr", "y_ptr", "partial_ptr", "counters_ptr")
COUNTED = ("LOP3", "SHF", "IMAD", "PRMT", "HMMA", "HGMMA", "LDS", "LDSM", "STS", "LDGSTS", "LDG")


def compile_tile(tile: Tile, dtype: str) -> triton.compiler.CompiledKernel:
    kinds = {"x_ptr": f"*{dtype}", "sums_ptr": "*fp32", "words_ptr": "*i16", "scales_ptr": "*fp16"}
    kinds |= {"bias_ptr": f"*{dtype}", "y_ptr": f"*{dtype}", "partial_ptr": "*fp32", "counters_ptr": "*i32"}
    signature = kinds | dict.fromkeys(("M", "N", "U1", "U4", "S"), "i32")
    constants = {
        "HAS_BIAS": False, "BN": tile.rows, "BM": tile.tokens, "STEP": tile.step, "SPLIT": tile.split,
        "COST": tile.cost, "BLOCK_S": 16, "ASM": True,
    }  # fmt: skip
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(signature) if name in (*POINTERS, "N")}
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=_mixed_gemm_kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=HOPPER, options={"num_warps": tile.warps, "num_stages": tile.stages})


def disassemble(kernel: triton.compiler.CompiledKernel) -> tuple[list[tuple[int, str, str]], int, int]:
    """Address, opcode and operands of every instruction; registers; bytes of stack."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        dump = [str(TOOLS / "cuobjdump"), "--dump-sass", "--dump-resource-usage", file.name]
        text = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
    code = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P[0-9T]+ )?([A-Z0-9]+)(.*?);", text, re.M)
    usage = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert usage is not None
    return [(int(at, 16), name, rest) for at, name, rest in code], int(usage[1]), int(usage[2])


def matrix_loops(code: list[tuple[int, str, str]]) -> list[list[tuple[int, str, str]]]:
    """Innermost loops that hold matrix instructions, in order."""
    backward = []
    for at, name, rest in code:
        target = re.search(r"0x([0-9a-f]+)", rest)
        if name == "BRA" and target and int(target[1], 16) < at:
            backward.append((int(target[1], 16), at))
    bodies = [[line for line in code if begin <= line[0] <= end] for begin, end in backward]
    bodies = [body for body in bodies if any(name in ("HGMMA", "HMMA") for _, name, _ in body)]
    return sorted(bodies, key=lambda body: body[0][0])


def describe(tile: Tile, dtype: str) -> str:
    kernel = compile_tile(tile, dtype)
    code, registers, stack = disassemble(kernel)
    parts = [f"{registers:3d} regs {stack:3d} spill {kernel.metadata.shared:6d} smem"]
    for title, channels, body in zip(("1 bit", "4 bit"), (tile.step, 64), matrix_loops(code), strict=False):
        weights = tile.rows * channels / (32 * tile.warps)
        counts = Counter(name for _, name, _ in body)
        waits = sum(rest.endswith("gsb0, 0x0 ") for _, _, rest in body)
        used = " ".join(f"{name} {counts[name] / weights:.3f}" for name in COUNTED if counts[name])
        parts.append(f"{title}: all {len(body) / weights:.2f} {used} waits {waits}")
    return " | ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tiles", nargs="*")
    parser.add_argument("--dtype", default="bf16", choices=["bf16", "fp16"])
    arguments = parser.parse_args()
    tiles = [Tile(*map(int, text.split(","))) for text in arguments.tiles]
    if not tiles:
        chosen = (select_tile(M, N, K) for M in BUCKETS for N, K in ((4096, 4096), (22016, 4096)))
        tiles = [tile for tile in chosen if tile]
    for tile in tiles:
        name = f"{tile.rows}x{tile.tokens} step {tile.step} split {tile.split} warps {tile.warps} stages {tile.stages}"
        print(f"{name:46s} {describe(tile, arguments.dtype)}", flush=True)


if __name__ == "__main__":
    main()
