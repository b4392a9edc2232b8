"""Compile the mixed kernel for Hopper on a machine without a GPU and count what its loops cost.

    PYTHONPATH=kernels python deploy/benchmarks/compile_kernels.py [rows,groups,slices,tokens,paired,unroll ...]

One line for a tile: registers, spilled bytes, shared memory, and for its loops (over pairs of a binary and a salient
unit, or over either) the instructions of a warp per 32 weights. STS or BAR there would mean shared memory on the way.
"""

import argparse
import dataclasses
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
UNITS = 13
"""Of either class in 4096 channels."""
HOPPER = GPUTarget("cuda", 90, 32)
POINTERS = ("x_ptr", "sums_ptr", "words_ptr", "scales_ptr", "bias_ptr", "y_ptr")
COUNTED = ("LOP3", "SHF", "IMAD", "PRMT", "HMMA", "LDS", "LDSM", "STS", "BAR", "LDG")


def compile_tile(tile: Tile, dtype: str) -> triton.compiler.CompiledKernel:
    kinds = {"x_ptr": f"*{dtype}", "sums_ptr": "*fp32", "words_ptr": "*i16", "scales_ptr": "*fp16"}
    kinds |= {"bias_ptr": f"*{dtype}", "y_ptr": f"*{dtype}"}
    signature = kinds | dict.fromkeys(("M", "N", "U1", "U4", "BLOCKS"), "i32")
    rounds = -(-UNITS // tile.slices)
    constants = {
        "HAS_BIAS": False, "ROWS": tile.rows, "GROUPS": tile.groups, "SLICES": tile.slices, "BM": tile.tokens,
        "ROUNDS": rounds, "RESIDENT": rounds <= tile.unroll, "PAIRED": tile.paired, "UNROLL": tile.unroll,
        "BLOCK_S": 16, "ASM": True,
    }  # fmt: skip
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(signature) if name in (*POINTERS, "N")}
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=_mixed_gemm_kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(
        source,
        target=HOPPER,
        options={"num_warps": tile.groups * tile.slices, "num_stages": 1, "launch_pdl": True},
    )


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
    bodies = [body for body in bodies if any(name == "HMMA" for _, name, _ in body)]
    return sorted(bodies, key=lambda body: body[0][0])


def describe(tile: Tile, dtype: str) -> str:
    kernel = compile_tile(tile, dtype)
    code, registers, stack = disassemble(kernel)
    parts = [f"{registers:3d} regs {stack:3d} spill {kernel.metadata.shared:6d} smem"]
    loops = (("both", 320),) if tile.paired else (("1 bit", 256), ("4 bit", 64))
    for (title, channels), body in zip(loops, matrix_loops(code), strict=False):
        weights = tile.unroll * tile.rows * channels / 32
        counts = Counter(name for _, name, _ in body)
        used = " ".join(f"{name} {counts[name] / weights:.3f}" for name in COUNTED if counts[name])
        parts.append(f"{title}: all {len(body) / weights:.2f} {used}")
    return " | ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tiles", nargs="*")
    parser.add_argument("--dtype", default="bf16", choices=["bf16", "fp16"])
    arguments = parser.parse_args()
    tiles = [Tile(*map(int, text.split(","))) for text in arguments.tiles]
    if not tiles:
        chosen = (select_tile(M, N) for M in BUCKETS for N in (4096, 22016))
        tiles = [tile for tile in chosen if tile]
    for tile in tiles:
        name = ",".join(map(str, dataclasses.astuple(tile)))
        print(f"{name:36s} {describe(tile, arguments.dtype)}", flush=True)


if __name__ == "__main__":
    main()
