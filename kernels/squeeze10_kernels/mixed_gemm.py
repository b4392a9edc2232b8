"""One launch for both parts of a layer: `acc[N, M] = W x̃ᵀ` with W built in registers.

A warp works alone: it loads packed weights and activations in the order in which `mma.sync` takes its operands, unpacks
in place and multiplies, without shared memory and without a barrier, until the warps of a program sum their slices of
the input channels once, at the end. In Triton that is a batched `tl.dot`, whose batches are spread over the warps.

The loop holds no scales, since they are per row and per channel, and no subtraction, since the epilogue takes off what
unpacking adds to the weights: `y = s1 (acc1 - Σ offset x̃) + s4 acc4 + (z4 - s4 offset) Σ x̃`.
"""

from typing import Final

import torch
import triton
import triton.language as tl

from squeeze10_kernels.kernel_layout import PackedLinear
from squeeze10_kernels.launching import cdiv, power_of_2, start
from squeeze10_kernels.tiles import Tile
from squeeze10_kernels.unpacking import (
    TRITON,
    binary_weights,
    load_by_warp,
    load_words,
    salient_offset,
    salient_weights,
)

TINY: tl.constexpr = tl.constexpr(2.0**-60)
"""Stands for an s4 of zero, by which the accumulator is divided and multiplied."""
PAIRS: tl.constexpr = tl.constexpr(TRITON >= (3, 8))
"""Of 16 channels Triton gives a lane two neighbours from either half; 3.6 and 3.7 give it four neighbours.

What is stored is for four. Both operands name the channels in the order that leaves them with their lane.
"""
TOGETHER_ROUNDS: Final = 2
"""A warp with so few units asks for all its activations before it multiplies.

14 % less time for 4096 x 4096 at 8 tokens on an H100, 4 % more for 4096 x 11008 with its five (LOG.md, 2026-11-24).
"""
ZERO: tl.constexpr = tl.constexpr("{ .reg .pred p; setp.eq.u32 p, 0, 1; bar.red.popc.u32 $0, 0, p; }")
"""Of all threads, those for which 0 is 1."""


@triton.jit
def zero_once_loads_are_issued(ASM: tl.constexpr):
    """Zero, which a barrier counts.

    ptxas keeps loads before a barrier, but moves what waits for the first of them before the last. What takes this zero
    must follow the barrier.
    """
    return tl.inline_asm_elementwise(ZERO, "=r", [], dtype=tl.int32, is_pure=False, pack=1) if ASM else 0


@triton.jit
def _left(weights):
    """The left operand `[B, R, K]` from weights in kernel order."""
    B: tl.constexpr = weights.shape[0]
    R: tl.constexpr = weights.shape[1]
    K: tl.constexpr = weights.shape[2]
    if PAIRS:
        fields = tl.reshape(weights, (B, R, K // 16, 4, 2, 2))  # [..., 16 channels, lane, half, pair]
        weights = tl.reshape(tl.permute(fields, (0, 1, 2, 4, 3, 5)), (B, R, K))
    return weights


@triton.jit
def _load_tokens(x_ptr, first_group, group_size, block, end, M, BM: tl.constexpr, J: tl.constexpr):
    """Right operand `[B, 32 J, BM]`: `32 J` channels from blocks `[B]` of 32 channels on, zero from `end` on."""
    B: tl.constexpr = block.shape[0]
    at = tl.arange(0, 256)[None, None, None, :]  # [token, lane, step, channel]: 8 channels of a token at once
    group = first_group + tl.arange(0, BM // 8)[None, :, None, None]
    vector = block[:, None, None, None] + tl.arange(0, J)[None, None, :, None]
    mask = (group * 8 + at // 32 < M) & (block < end)[:, None, None, None]
    x = load_by_warp(x_ptr + group * group_size + vector * 256 + at, mask)
    if PAIRS:
        fields = tl.reshape(x, (B, BM // 8, J, 8, 4, 2, 2, 2))  # [B, group, vector, token, lane, step, half, pair]
        fields = tl.permute(fields, (0, 2, 5, 6, 4, 7, 1, 3))
    else:
        fields = tl.reshape(x, (B, BM // 8, J, 8, 4, 2, 4))  # [B, group, vector, token, lane, step, channel]
        fields = tl.permute(fields, (0, 2, 5, 4, 6, 1, 3))
    return tl.reshape(fields, (B, 32 * J, BM))


@triton.jit(do_not_specialize=["M"])
def _mixed_gemm_kernel(
    x_ptr,  # [ceil(M / 8), KP / 32, 256]
    sums_ptr,  # [M, 2, BLOCKS] fp32
    words_ptr,  # [U1 + U4, ceil(N / 16), 256] int16
    scales_ptr,  # [N, 3] fp16
    bias_ptr,  # [N]
    y_ptr,  # [M, N]
    M,
    N,
    U1,
    U4,
    BLOCKS,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    SLICES: tl.constexpr,
    BM: tl.constexpr,
    ROUNDS: tl.constexpr,
    RESIDENT: tl.constexpr,
    TOGETHER: tl.constexpr,
    PAIRED: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_S: tl.constexpr,
    ASM: tl.constexpr,
    PDL: tl.constexpr,
):
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    B: tl.constexpr = SLICES * GROUPS
    BN: tl.constexpr = ROWS * GROUPS
    tile_n, tile_m = tl.program_id(0), tl.program_id(1)
    n = tile_n * BN + tl.arange(0, BN)  # [BN]
    m = tile_m * BM + tl.arange(0, BM)  # [BM]
    m_in, n_in = m < M, n < N

    # a warp: a group of rows, and a slice of the units, which are dealt to the slices in turn
    warp = tl.arange(0, B)
    first_unit = warp // GROUPS  # [B]
    row_tile = tile_n * (BN // 16) + (warp % GROUPS)[:, None] * (ROWS // 16) + tl.arange(0, ROWS // 16)[None, :]
    group_size = (U1 * 8 + U4 * 2) * 256
    first_group = tile_m * (BM // 8)
    rounds1, rounds4 = tl.cdiv(U1, SLICES), tl.cdiv(U4, SLICES)

    # loads first, so that nothing waits for them at the end
    s1 = tl.load(scales_ptr + n * 3, mask=n_in, other=0.0).to(tl.float32)
    s4 = tl.load(scales_ptr + n * 3 + 1, mask=n_in, other=0.0).to(tl.float32)
    z4 = tl.load(scales_ptr + n * 3 + 2, mask=n_in, other=0.0).to(tl.float32)
    unit_scale = tl.where(s4 == 0, TINY, s4)
    acc = tl.zeros((B, ROWS, BM), dtype=tl.float32)
    acc4 = tl.zeros((B, ROWS, BM), dtype=tl.float32)
    held, held4 = (), ()
    if RESIDENT:
        # all words of the program at once, while the launch ahead still runs: they do not depend on it
        for i in tl.static_range(ROUNDS):
            held += (load_words(words_ptr, first_unit + i * SLICES, U1, row_tile, N),)  # type: ignore[assignment]
            held4 += (load_words(words_ptr, U1 + first_unit + i * SLICES, U1 + U4, row_tile, N),)  # type: ignore[assignment]
    if PDL:
        tl.extra.cuda.gdc_wait()  # what was launched before has written its results: activations may be read
    block = tl.arange(0, BLOCK_S)
    sums = sums_ptr + m[:, None] * (2 * BLOCKS) + block[None, :]
    sums_in = m_in[:, None] & (block < BLOCKS)[None, :]
    binary_sums = tl.load(sums, mask=sums_in, other=0.0)
    salient_sums = tl.load(sums + BLOCKS, mask=sums_in, other=0.0)
    if RESIDENT:
        for i in tl.static_range(ROUNDS):
            unit = first_unit + i * SLICES
            x = _load_tokens(x_ptr, first_group, group_size, unit * 8, U1 * 8, M, BM, 8)
            x4 = _load_tokens(x_ptr, first_group, group_size, U1 * 8 + unit * 2, U1 * 8 + U4 * 2, M, BM, 2)
            if TOGETHER:
                zero = zero_once_loads_are_issued(ASM)
                acc += zero
                acc4 += zero
            acc = tl.dot(_left(binary_weights(held[i], dtype, ASM)), x, acc)
            acc4 = tl.dot(_left(salient_weights(held4[i], dtype, ASM)), x4, acc4)
    else:
        for i in tl.range(ROUNDS if PAIRED else rounds1, loop_unroll_factor=UNROLL):
            unit = first_unit + i * SLICES
            words = load_words(words_ptr, unit, U1, row_tile, N)
            x = _load_tokens(x_ptr, first_group, group_size, unit * 8, U1 * 8, M, BM, 8)
            if PAIRED:
                words4 = load_words(words_ptr, U1 + unit, U1 + U4, row_tile, N)
                x4 = _load_tokens(x_ptr, first_group, group_size, U1 * 8 + unit * 2, U1 * 8 + U4 * 2, M, BM, 2)
                acc4 = tl.dot(_left(salient_weights(words4, dtype, ASM)), x4, acc4)
            acc = tl.dot(_left(binary_weights(words, dtype, ASM)), x, acc)

    # one accumulator for both parts, in units of s4
    ratio = tl.reshape(s1 / unit_scale, (GROUPS, ROWS))
    ratio = tl.reshape(tl.broadcast_to(ratio[None, :, :], (SLICES, GROUPS, ROWS)), (B, ROWS))
    acc = acc * ratio[:, :, None] + acc4
    if not PAIRED and not RESIDENT:
        for i in tl.range(rounds4, loop_unroll_factor=UNROLL):
            unit = first_unit + i * SLICES
            words4 = load_words(words_ptr, U1 + unit, U1 + U4, row_tile, N)
            x4 = _load_tokens(x_ptr, first_group, group_size, U1 * 8 + unit * 2, U1 * 8 + U4 * 2, M, BM, 2)
            acc = tl.dot(_left(salient_weights(words4, dtype, ASM)), x4, acc)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    total = tl.reshape(tl.sum(tl.reshape(acc, (SLICES, GROUPS, ROWS, BM)), axis=0), (BN, BM))

    y = total * unit_scale[:, None] - s1[:, None] * tl.sum(binary_sums, axis=1)[None, :]
    y += (z4 - salient_offset(dtype) * s4)[:, None] * tl.sum(salient_sums, axis=1)[None, :]
    if HAS_BIAS:
        y += tl.load(bias_ptr + n, mask=n_in, other=0.0).to(tl.float32)[:, None]
    y_at = y_ptr + (m.to(tl.int64) * N)[None, :] + n[:, None]
    tl.store(y_at, y.to(dtype), mask=m_in[None, :] & n_in[:, None])


def mixed_gemm(
    x: torch.Tensor,
    sums: torch.Tensor,
    packed: PackedLinear,
    bias: torch.Tensor | None,
    *,
    tile: Tile,
    pdl: bool = False,
    assembly: bool = True,
) -> torch.Tensor:
    """`mixed_linear_reference` of gathered activations.

    Args:
        x, sums: From `gather_groups`.
        bias: `[N]` or None.
        tile: How to cut the work.
        pdl: Start beside the launch ahead (programmatic dependent launch), which GPUs before Hopper cannot.
        assembly: False where inline assembly cannot run: in Triton's interpreter.

    Returns:
        `[M, N]` in the dtype of x.
    """
    M, N = sums.shape[0], packed.out_features
    grid = (cdiv(N, tile.rows * tile.groups), cdiv(M, tile.tokens), 1)
    rounds = cdiv(max(packed.binary_units, packed.salient_units), tile.slices)
    paired = tile.paired and min(packed.binary_units, packed.salient_units) > 0  # half of a pair may not exist
    y = x.new_empty(M, N)
    start(
        _mixed_gemm_kernel, grid,
        x, sums, packed.words, packed.scales, y if bias is None else bias, y,
        M, N, packed.binary_units, packed.salient_units, sums.shape[2],
        HAS_BIAS=bias is not None,
        ROWS=tile.rows, GROUPS=tile.groups, SLICES=tile.slices, BM=tile.tokens,
        ROUNDS=rounds, RESIDENT=rounds <= tile.unroll, PAIRED=paired, UNROLL=tile.unroll,
        TOGETHER=rounds <= min(tile.unroll, TOGETHER_ROUNDS),
        BLOCK_S=max(16, power_of_2(sums.shape[2])),
        ASM=assembly, PDL=pdl,
        num_warps=tile.groups * tile.slices, num_stages=1, launch_pdl=pdl,
    )  # fmt: skip
    return y
