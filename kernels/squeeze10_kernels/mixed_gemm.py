"""One launch for both parts of a layer: `acc[N, M] = W x̃ᵀ` with W built in registers.

Up to some 64 tokens the kernel is bound by unpacking (one shift and one `lop3` for two weights) and by memory; beyond
that by the tensor core. Weights are the left operand because Hopper's `wgmma` takes that one from registers; the loop
holds no scales, since they are per row and per channel, and no subtraction, since the epilogue takes off the offset:
`y = s1 acc1 + s4 acc4 + (z4 - s4 offset) Σ x̃`.
"""

import torch
import triton
import triton.language as tl

from squeeze10_kernels.kernel_layout import PackedLinear
from squeeze10_kernels.tiles import Tile
from squeeze10_kernels.unpacking import binary_weights, load_words, salient_offset, salient_weights

_TINY: tl.constexpr = tl.constexpr(2.0**-60)
"""Stands for an s4 of zero, by which the accumulator is divided and multiplied."""


@triton.jit(do_not_specialize=["M"])
def _mixed_gemm_kernel(
    x_ptr,  # [M, KP]
    sums_ptr,  # [M, S] fp32
    words_ptr,  # [U1 + U4, ceil(N / 16), 256] int16
    scales_ptr,  # [N, 3] fp16
    bias_ptr,  # [N]
    y_ptr,  # [M, N]
    partial_ptr,  # [tiles, SPLIT, BN, BM] fp32
    counters_ptr,  # [tiles] int32
    M,
    N,
    U1,
    U4,
    S,
    HAS_BIAS: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    STEP: tl.constexpr,
    SPLIT: tl.constexpr,
    COST: tl.constexpr,
    BLOCK_S: tl.constexpr,
    ASM: tl.constexpr,
):
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    STEPS: tl.constexpr = 256 // STEP
    tile_n, tile_m, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    n = tile_n * BN + tl.arange(0, BN)  # [BN]
    m = tile_m * BM + tl.arange(0, BM)  # [BM]
    x_row = x_ptr + (m.to(tl.int64) * (U1 * 256 + U4 * 64))[None, :]
    m_in, n_in = m < M, n < N

    # the units are one list, binary ones first, cut into SPLIT parts of equal cost
    total = U1 * COST + U4
    begin, end = total * part // SPLIT, total * (part + 1) // SPLIT
    begin4, end4 = tl.maximum(begin - U1 * COST, 0), tl.maximum(end - U1 * COST, 0)
    begin1, end1 = tl.minimum(begin // COST, U1), tl.minimum(end // COST, U1)

    acc = tl.zeros((BN, BM), dtype=tl.float32)
    for step in range(begin1 * STEPS, end1 * STEPS):
        words = load_words(words_ptr, step // STEPS, step % STEPS * (STEP // 64), tile_n, N, BN, STEP // 64)
        x = tl.load(x_row + (step * STEP + tl.arange(0, STEP))[:, None], mask=m_in[None, :], other=0.0)
        acc = tl.dot(binary_weights(words, dtype, ASM), x, acc)

    # one accumulator for both parts, in units of s4
    s1 = tl.load(scales_ptr + n * 3, mask=n_in, other=0.0).to(tl.float32)
    s4 = tl.load(scales_ptr + n * 3 + 1, mask=n_in, other=0.0).to(tl.float32)
    unit_scale = tl.where(s4 == 0, _TINY, s4)
    acc *= (s1 / unit_scale)[:, None]
    for unit in range(begin4, end4):
        words = load_words(words_ptr, U1 + unit, 0, tile_n, N, BN, 4)
        x = tl.load(x_row + (U1 * 256 + unit * 64 + tl.arange(0, 64))[:, None], mask=m_in[None, :], other=0.0)
        acc = tl.dot(salient_weights(words, dtype, ASM), x, acc)

    if SPLIT > 1:
        tile = tile_m * tl.num_programs(0) + tile_n
        cell = tl.arange(0, BN)[:, None] * BM + tl.arange(0, BM)[None, :]
        partial = partial_ptr + (tile * SPLIT).to(tl.int64) * (BN * BM) + cell
        tl.store(partial + part * (BN * BM), acc)
        tl.debug_barrier()
        if tl.atomic_add(counters_ptr + tile, 1, sem="acq_rel") != SPLIT - 1:
            return
        # the last to finish sums all parts in their order, whichever it is, so that results repeat to the bit
        tl.debug_barrier()
        acc = tl.zeros((BN, BM), dtype=tl.float32)
        # small tiles have the registers to load all parts at once
        for i in tl.range(0, SPLIT, num_stages=1, loop_unroll_factor=SPLIT if BM <= 32 else 1):
            acc += tl.load(partial + i * (BN * BM), cache_modifier=".cg")
        tl.store(counters_ptr + tile, 0)

    z4 = tl.load(scales_ptr + n * 3 + 2, mask=n_in, other=0.0).to(tl.float32)
    s = tl.arange(0, BLOCK_S)
    sums = tl.load(sums_ptr + m[:, None] * S + s[None, :], mask=m_in[:, None] & (s < S)[None, :], other=0.0)
    y = acc * unit_scale[:, None] + (z4 - salient_offset(dtype) * s4)[:, None] * tl.sum(sums, axis=1)[None, :]
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
    assembly: bool = True,
) -> torch.Tensor:
    """`mixed_linear_reference` of gathered activations.

    Args:
        x, sums: From `gather_activations`.
        bias: `[N]` or None.
        tile: How to cut the work.
        assembly: False where inline assembly cannot run: in Triton's interpreter.

    Returns:
        `[M, N]` in the dtype of x.
    """
    M, N = x.shape[0], packed.out_features
    grid = (triton.cdiv(N, tile.rows), triton.cdiv(M, tile.tokens), tile.split)
    y = x.new_empty(M, N)
    partial = sums
    if tile.split > 1:
        assert grid[0] * grid[1] <= len(packed.counters), "an output tile has one counter"
        partial = x.new_empty(grid[0] * grid[1] * tile.split * tile.rows * tile.tokens, dtype=torch.float32)
    _mixed_gemm_kernel[grid](
        x, sums, packed.words, packed.scales, y if bias is None else bias, y, partial, packed.counters,
        M, N, packed.binary_units, packed.salient_units, sums.shape[1],
        HAS_BIAS=bias is not None,
        BN=tile.rows, BM=tile.tokens, STEP=tile.step, SPLIT=tile.split, COST=tile.cost,
        BLOCK_S=max(16, triton.next_power_of_2(sums.shape[1])),
        ASM=assembly,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y
