"""Compile the kernels for a GPU that is not here: what their loops cost, whether they fit and wait as they must.

    PYTHONPATH=kernels python deploy/benchmarks/compile_kernels.py [--arch 90 ...] [--tokens M ...] [--dtype bf16]
        [--layer N K] [--table]

One line for each tile that LLaMA2-7B's layers (or `--layer N K`) use, then the gathers and the decoding: registers,
spilled bytes, shared memory, and for their loops the instructions of a warp per 32 weights. Exit code 1 and the reason
in the line if

- a register of a running `wgmma` is written before the wait that ends it, which gives other bits in some launches;
- `mixed_gemm` moves operands between lanes, which another version of Triton may do: see `PAIRS` and `ROW_MAJOR`;
- a kernel has more shared memory than a block may have;
- a kernel waits for the launch ahead on a GPU that cannot.
"""

import argparse
import dataclasses
import functools
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource

from squeeze10_kernels.activations import GROUP_BLOCK, ROW_BLOCK, _gather_groups_kernel, _gather_rows_kernel
from squeeze10_kernels.decode_weights import DECODED_ROWS, _decode_kernel
from squeeze10_kernels.kernel_layout import BINARY_UNIT, SALIENT_UNIT
from squeeze10_kernels.mixed_gemm import TOGETHER_ROUNDS, _mixed_gemm_kernel
from squeeze10_kernels.tiles import Gpu, Tile, WgmmaTile, select_tile
from squeeze10_kernels.wgmma_gemm import _wgmma_gemm_kernel

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
LAYERS = ((12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008))
COUNTED = ("LOP3", "SHF", "IMAD", "PRMT", "HADD2", "HMMA", "HGMMA", "SHFL", "LDS", "LDSM", "STS", "BAR", "LDG")
MOVES = ("SHFL", "STS", "LDS", "LDSM")
SHARED_KIB = {(8, 0): 163, (8, 6): 99, (8, 9): 99, (9, 0): 227, (10, 0): 227, (12, 0): 99}
"""That a block may have, by compute capability."""
STORES = ("ST", "BAR", "BRA", "SYNCS", "UT", "R2UR", "WARPGROUP", "RED", "ISETP", "PLOP")
"""Opcodes whose first register is read, or a predicate."""
Code = list[tuple[int, str, str]]
"""Address, opcode and operands of every instruction."""


def signature(dtype: str, sizes: tuple[str, ...], others: dict[str, str]) -> dict[str, str]:
    types = {"sums_ptr": "*fp32", "scales_ptr": "*fp16", "bias_ptr": f"*{dtype}", "y_ptr": f"*{dtype}"}
    return others | types | dict.fromkeys(sizes, "i32")


def compile_mixed(tile: Tile, dtype: str, K: int, gpu: Gpu, *, table: bool) -> CompiledKernel:
    names = ("x_ptr", "sums_ptr", "words_ptr", "scales_ptr", "bias_ptr", "y_ptr", "M", "N", "U1", "U4", "BLOCKS")
    types = signature(dtype, names[6:], {"x_ptr": f"*{dtype}", "words_ptr": "*i16"})
    rounds = -(-K // (SALIENT_UNIT if table else BINARY_UNIT + SALIENT_UNIT) // tile.slices)
    constants = {
        "HAS_BIAS": False, "ROWS": tile.rows, "GROUPS": tile.groups, "SLICES": tile.slices, "BM": tile.tokens,
        "ROUNDS": rounds, "RESIDENT": rounds <= tile.unroll,
        "TOGETHER": rounds <= min(tile.unroll, TOGETHER_ROUNDS), "PAIRED": tile.paired and not table,
        "UNROLL": tile.unroll, "BLOCK_S": 16, "ASM": True, "PDL": gpu.pdl,
    }  # fmt: skip
    return compile_kernel(
        ASTSource, _mixed_gemm_kernel, names, types, constants, gpu,
        num_warps=tile.groups * tile.slices, num_stages=1,
    )  # fmt: skip


def compile_others(dtype: str, gpu: Gpu) -> Iterator[tuple[str, CompiledKernel]]:
    """The gathers and, where it is launched, the decoding, with their names."""
    names = ("x_ptr", "channels_ptr", "channel_scales_ptr", "out_ptr", "sums_ptr")
    pointers = {"x_ptr": f"*{dtype}", "channels_ptr": "*i32", "channel_scales_ptr": "*fp16", "out_ptr": f"*{dtype}"}
    sizes: tuple[str, ...] = ("K", "KP", "first_salient", "M")
    types = signature(dtype, sizes, pointers)
    constants = {"BLOCK": GROUP_BLOCK, "PDL": gpu.pdl}
    yield "gather_groups", compile_kernel(ASTSource, _gather_groups_kernel, names + sizes, types, constants, gpu)
    names, sizes = (*names, "zero_ptr"), ("M", "K", "KP", "first_salient", "zeros")
    types = signature(dtype, sizes, pointers | {"zero_ptr": "*i32"})
    for tokens in (1, 2, 8) if gpu.hopper else (2, 8):
        constants = {"TOKENS": tokens, "BLOCK": ROW_BLOCK, "HALVES": gpu.hopper, "PDL": gpu.pdl}
        kernel = compile_kernel(ASTSource, _gather_rows_kernel, names + sizes, types, constants, gpu)
        yield f"gather_rows,{tokens}", kernel
    if not gpu.hopper:
        names, sizes = ("words_ptr", "scales_ptr", "out_ptr"), ("first_tile", "N", "rows", "U1", "U4")
        types = signature(dtype, sizes, {"words_ptr": "*i16", "out_ptr": f"*{dtype}"})
        constants = {"BN": DECODED_ROWS, "ASM": True}
        yield "decode", compile_kernel(ASTSource, _decode_kernel, names + sizes, types, constants, gpu, num_warps=4)


def compile_wgmma(tile: WgmmaTile, dtype: str, K: int, gpu: Gpu) -> CompiledKernel:
    names = ("x_desc", "sums_ptr", "words_ptr", "scales_ptr", "bias_ptr", "y_ptr", "partial_ptr", "arrived_ptr")
    sizes = ("M", "N", "U1", "U4", "BLOCKS")
    layout = gl.NVMMASharedLayout.get_default_for([tile.tokens, 64], gl.bfloat16)
    desc = f"tensordesc<{dtype}[{tile.tokens}, 64],{layout!r}>"
    others = {"x_desc": desc, "words_ptr": "*i32", "partial_ptr": "*fp32", "arrived_ptr": "*i32"}
    blocks = triton.next_power_of_2(-(-K // 5 // ROW_BLOCK))
    constants = {
        "HAS_BIAS": False, "BN": tile.rows, "BLOCK_S": blocks, "SPLIT": tile.split, "C": tile.chunks,
        "STAGES": tile.stages, "AHEAD": tile.ahead, "EARLY": tile.early,
    }  # fmt: skip
    return compile_kernel(
        GluonASTSource, _wgmma_gemm_kernel, names + sizes, signature(dtype, sizes, others), constants, gpu,
        num_warps=tile.warps, maxnreg=tile.registers,
    )  # fmt: skip


def compile_kernel(
    source_type: type, kernel: object, names: tuple[str, ...], types: dict[str, str],
    constants: dict[str, object], gpu: Gpu, **options: int,
) -> CompiledKernel:  # fmt: skip
    signature = {name: types[name] for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name.endswith("_ptr") or name == "N"}
    signature |= dict.fromkeys(constants, "constexpr")
    source = source_type(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    major, minor = gpu.capability
    target = GPUTarget("cuda", 10 * major + minor, 32)
    return triton.compile(source, target=target, options=options | {"launch_pdl": gpu.pdl})


@functools.cache
def disassemble(kernel: CompiledKernel) -> tuple[Code, int, int]:
    """Instructions; registers; bytes of stack."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        dump = [str(TOOLS / "cuobjdump"), "--dump-sass", "--dump-resource-usage", file.name]
        text = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
    code = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P[0-9T]+ )?([A-Z0-9]+)(.*?);", text, re.M)
    usage = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert usage is not None
    return [(int(at, 16), name, rest) for at, name, rest in code], int(usage[1]), int(usage[2])


def matrix_loops(code: Code) -> list[Code]:
    """Innermost loops that hold matrix instructions, in order."""
    backward = []
    for at, name, rest in code:
        target = re.search(r"0x([0-9a-f]+)", rest)
        if name == "BRA" and target and int(target[1], 16) < at:
            backward.append((int(target[1], 16), at))
    inner = [(a, b) for a, b in backward if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in backward)]
    bodies = [[line for line in code if begin <= line[0] <= end] for begin, end in inner]
    return sorted((body for body in bodies if any("MMA" in name for _, name, _ in body)), key=lambda body: body[0][0])


def written_registers(name: str, rest: str) -> set[int]:
    """What an instruction writes, by its first operand and width."""
    target = re.match(r"\S* (?:P\d, |PT, )?R(\d+)", rest)
    if not target or name.startswith(STORES):
        return set()
    width = (
        4 if re.match(r"\S*\.(128|M88\.4)", rest) else 2 if re.match(r"\S*\.(64|WIDE)", rest) or name == "CS2R" else 1
    )
    return set(range(int(target[1]), int(target[1]) + width))


def overwritten_in_flight(code: Code) -> Iterator[str]:
    """Instructions that write the left operand or the accumulator of a `wgmma` that no wait has ended yet."""
    groups: list[set[int]] = []  # registers of each group in flight, oldest first
    group: set[int] = set()
    for at, name, rest in code:
        multiply = re.match(r"\.64x(\d+)x\d+\S* R(\d+), R(\d+),", rest) if name == "HGMMA" else None
        wait = re.match(r"\.DEPBAR\.LE gsb0, (0x[0-9a-f]+)", rest) if name == "WARPGROUP" else None
        if multiply:
            columns, accumulator, left = map(int, multiply.groups())
            group |= {*range(left, left + 4), *range(accumulator, accumulator + columns // 2)}
            if "gsb0" in rest:
                groups, group = [*groups, group], set()
        elif wait:
            groups = groups[max(0, len(groups) - int(wait[1], 16)) :]
        elif any(written_registers(name, rest) & registers for registers in (*groups, group)):
            yield f"{at:#x} {name}{rest}"


def moves_operands(code: Code) -> bool:
    """Whether more than a few values, which are of the epilogue, change lanes before the last multiplication."""
    names = [name for _, name, _ in code]
    last = max(i for i, name in enumerate(names) if name == "HMMA")
    return sum(name in MOVES for name in names[:last]) > names.count("HMMA") / 10


def describe(tile: Tile | WgmmaTile | None, kernel: CompiledKernel) -> str:
    code, registers, stack = disassemble(kernel)
    parts = [f"{registers:3d} regs {stack:3d} spill {kernel.metadata.shared:6d} smem"]
    for body in matrix_loops(code) if tile else []:
        counts = Counter(name for _, name, _ in body)
        # an HMMA takes 16 x 16 weights of a warp, an HGMMA 16 x 16 of each of its four
        weights = (counts["HGMMA"] + counts["HMMA"] / max(1, tile.tokens // 8)) * 256 / 32
        used = " ".join(f"{name} {counts[name] / weights:.3f}" for name in COUNTED if counts[name])
        parts.append(f"all {len(body) / weights:.2f} {used}")
    return " | ".join(parts)


def find_faults(tile: Tile | WgmmaTile | None, kernel: CompiledKernel, gpu: Gpu) -> Iterator[str]:
    """What must not be."""
    code, _, _ = disassemble(kernel)
    loops = matrix_loops(code)
    overwritten = {fault for part in (code, *(body * 2 for body in loops)) for fault in overwritten_in_flight(part)}
    if overwritten:
        yield f"{len(overwritten)} REGISTERS OVERWRITTEN IN FLIGHT"
    if isinstance(tile, Tile) and moves_operands(code):
        yield "OPERANDS MOVE BETWEEN LANES"
    if kernel.metadata.shared > SHARED_KIB[gpu.capability] << 10:
        yield "MORE SHARED MEMORY THAN A BLOCK MAY HAVE"
    if not gpu.pdl and "griddepcontrol" in kernel.asm["ptx"]:
        yield "WAITS FOR THE LAUNCH AHEAD"


def compile_tile(tile: Tile | WgmmaTile, dtype: str, K: int, gpu: Gpu, *, table: bool) -> CompiledKernel:
    if isinstance(tile, WgmmaTile):
        return compile_wgmma(tile, dtype, K, gpu)
    return compile_mixed(tile, dtype, K, gpu, table=table)


def compile_all(
    gpu: Gpu, tokens: list[int], layers: list[tuple[int, int]], dtype: str, *, table: bool
) -> Iterator[tuple[str, Tile | WgmmaTile | None, CompiledKernel]]:
    """Name, tile and kernel of whatever these layers launch for these numbers of tokens."""
    for tile, K in {tile: K for M in tokens for N, K in layers if (tile := select_tile(M, N, K, gpu))}.items():
        yield ",".join(map(str, dataclasses.astuple(tile))), tile, compile_tile(tile, dtype, K, gpu, table=table)
    for name, kernel in compile_others(dtype, gpu):
        yield name, None, kernel


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    archs = [10 * major + minor for major, minor in SHARED_KIB]
    parser.add_argument("--arch", type=int, nargs="+", default=[90], choices=archs)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 32, 64, 128, 512, 4096])
    parser.add_argument("--layer", type=int, nargs=2, help="output and input features, rather than LLaMA2-7B's")
    parser.add_argument("--table", action="store_true", help="whose channels are all of 4 bits, as an lm_head's")
    parser.add_argument("--dtype", default="bf16", choices=["bf16", "fp16"])
    arguments = parser.parse_args()
    layers = [tuple(arguments.layer)] if arguments.layer else list(LAYERS)
    failed = False
    for arch in arguments.arch:
        gpu = Gpu(divmod(arch, 10), multiprocessors=132)
        for name, tile, kernel in compile_all(gpu, arguments.tokens, layers, arguments.dtype, table=arguments.table):
            faults = list(find_faults(tile, kernel, gpu))
            print(f"sm_{arch:<3d} {name:34s} " + " | ".join([describe(tile, kernel), *faults]), flush=True)
            failed |= bool(faults)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
