"""Many tokens: decode the rows of a layer to 16 bits, a chunk at a time, and let cuBLAS multiply."""

from typing import Final

import torch
import triton
import triton.language as tl

from squeeze10_kernels.kernel_layout import ROWS, PackedLinear
from squeeze10_kernels.launching import cdiv, start
from squeeze10_kernels.unpacking import binary_offset, binary_weights, load_words, salient_offset, salient_weights

SCRATCH_BYTES: Final = 64 << 20
"""Decoded rows at a time; 16 and 32 MiB, which stay in the L2 cache of an H200, are slower (LOG.md, 2026-11-22)."""

DECODED_ROWS: Final = 4 * ROWS
"""Rows of a program."""


@triton.jit
def _decode_kernel(
    words_ptr,  # [U1 + U4, ceil(N / 16), 256] int16
    scales_ptr,  # [N, 3] fp16
    out_ptr,  # [rows, KP]
    first_tile,
    N,
    rows,
    U1,
    U4,
    BN: tl.constexpr,
    ASM: tl.constexpr,
):
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    unit, tile = tl.program_id(1), tl.program_id(0)
    KP = U1 * 256 + U4 * 64
    row = tile * BN + tl.arange(0, BN)  # [BN], within the chunk
    n = first_tile * BN + row
    row_tile = (first_tile + tile) * (BN // 16) + tl.arange(0, BN // 16)[None, :]
    words = load_words(words_ptr, unit + tl.arange(0, 1), U1 + U4, row_tile, N)
    out_row = out_ptr + (row.to(tl.int64) * KP)[:, None]
    in_chunk = ((row < rows) & (n < N))[:, None]
    if unit < U1:
        s1 = tl.load(scales_ptr + n * 3, mask=n < N, other=0.0).to(tl.float32)
        k1 = unit * 256 + tl.arange(0, 256)
        signs = tl.reshape(binary_weights(words, dtype, ASM), (BN, 256)).to(tl.float32) - binary_offset(k1)[None, :]
        tl.store(out_row + k1[None, :], (signs * s1[:, None]).to(dtype), mask=in_chunk)
    else:
        s4 = tl.load(scales_ptr + n * 3 + 1, mask=n < N, other=0.0).to(tl.float32)[:, None]
        z4 = tl.load(scales_ptr + n * 3 + 2, mask=n < N, other=0.0).to(tl.float32)[:, None]
        levels = tl.reshape(salient_weights(words, dtype, ASM), (BN, 64)).to(tl.float32) - salient_offset(dtype)
        k4 = U1 * 256 + (unit - U1) * 64 + tl.arange(0, 64)
        tl.store(out_row + k4[None, :], (s4 * levels + z4).to(dtype), mask=in_chunk)


def decode_rows_into(out: torch.Tensor, packed: PackedLinear, first_row: int, *, assembly: bool = True) -> None:
    """Rows from `first_row`, a multiple of 64, in kernel order and the dtype of `out` `[rows, KP]`."""
    grid = (cdiv(len(out), DECODED_ROWS), packed.words.shape[0], 1)
    start(
        _decode_kernel, grid,
        packed.words, packed.scales, out, first_row // DECODED_ROWS, packed.out_features, len(out), packed.binary_units,
        packed.salient_units, BN=DECODED_ROWS, ASM=assembly, num_warps=4,
    )  # fmt: skip


def chunk_rows(N: int, KP: int, scratch_bytes: int) -> int:
    """Rows that are decoded at a time: as equal chunks of 128 rows as fit the scratch, one of them if none fits."""
    most = max(1, scratch_bytes // (2 * 128 * KP))
    blocks = -(-N // 128)
    chunks = -(-blocks // most)
    return -(-blocks // chunks) * 128


def decoded_gemm(
    x: torch.Tensor,
    packed: PackedLinear,
    bias: torch.Tensor | None,
    *,
    scratch_bytes: int = SCRATCH_BYTES,
    assembly: bool = True,
) -> torch.Tensor:
    """`mixed_linear_reference` of gathered activations `[M, KP]`: `[M, N]`."""
    N, KP = packed.out_features, x.shape[1]
    rows = chunk_rows(N, KP, scratch_bytes)
    y, scratch = x.new_empty(len(x), N), x.new_empty(min(rows, N), KP)
    for first in range(0, N, rows):
        weights = scratch[: N - first]
        decode_rows_into(weights, packed, first, assembly=assembly)
        torch.mm(x, weights.T, out=y[:, first : first + rows])
    return y if bias is None else y.add_(bias)
