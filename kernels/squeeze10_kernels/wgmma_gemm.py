"""One launch for both parts of a layer on Hopper: `acc[N, M] = W x̃ᵀ` by `wgmma`, W built in registers.

The kernel is written in Gluon, Triton's lower level, since `wgmma` with its left operand in registers needs two waits
that Triton 3.6 leaves out (triton-lang/triton#9433 and #11047, LOG.md 2026-11-22). Here a multiplication has finished
before its registers are written again, and every warp has finished with a block of activations before it is replaced.

One warp fetches activations by TMA; the others load just the words from which each unpacks its own weights, some units
ahead, and multiply while they unpack the next. Weights come without offset, so `y = s1 acc1 + s4 acc4 + z4 Σ x̃` with
the sum over the salient channels. The programs of a split share the units of a tile; the last to arrive adds their
sums, always in the same order.
"""

import functools

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from squeeze10_kernels.kernel_layout import PackedLinear
from squeeze10_kernels.launching import cdiv, power_of_2, start
from squeeze10_kernels.mixed_gemm import TINY
from squeeze10_kernels.tiles import WgmmaTile
from squeeze10_kernels.wgmma_operands import four_words, levels, load_unit, signs

# Triton 3.6 and 3.9 name them differently
fetch = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier


@gluon.jit
def _step(w, acc, pipe, step, u: gl.constexpr, C: gl.constexpr, STAGES: gl.constexpr):
    """`acc + w x` with the u-th 64 channels of the program's step; returns once the step before has finished."""
    x_chunks, ready, free = pipe
    i = step * (4 // C) + u // C  # the block that holds them
    if u % C == 0:
        mbarrier.wait(ready.index(i % STAGES), i // STAGES & 1)
    acc = warpgroup_mma(w, x_chunks.index(i % STAGES * C + u % C).permute((1, 0)), acc, is_async=True)
    acc = warpgroup_mma_wait(1, [acc])
    if u % C == 0:
        mbarrier.arrive(free.index((i + STAGES - 1) % STAGES), pred=i > 0)
    return acc


@gluon.jit
def _produce(x_desc, pipe, share, U1, U4, C: gl.constexpr, STAGES: gl.constexpr):
    """Fetch the activations of the program's steps, block by block, as the others make room."""
    x_chunks, ready, free = pipe
    b0, b1, g0, g1 = share
    P: gl.constexpr = 4 // C
    binary = (b1 - b0) * P
    m = gl.program_id(1) * x_desc.block_type.shape[0]
    gdc_wait()  # what was launched before has written its results: activations may be read
    for i in range(binary + gl.cdiv(gl.minimum(4 * g1, U4) - 4 * g0, C)):
        slot = i % STAGES
        mbarrier.wait(free.index(slot), i // STAGES & 1 ^ 1)
        mbarrier.expect(ready.index(slot), C * x_desc.block_type.nbytes)
        chunk = (b0 * P + i if i < binary else (U1 + g0) * P + i - binary) * C
        for c in gl.static_range(C):
            fetch(x_desc, [m, (chunk + c) * 64], ready.index(slot), x_chunks.index(slot * C + c))


@gluon.jit
def _replaced(held, i: gl.constexpr, words):
    """The tuple with another i-th item."""
    return held[:i] + (words,) + held[i + 1 :]  # noqa: RUF005 - Triton knows no other way


@gluon.jit
def _binary_units(
    acc, pipe, words_ptr, first, count, tile_n, N,
    C: gl.constexpr, STAGES: gl.constexpr, AHEAD: gl.constexpr, left: gl.constexpr,
):  # fmt: skip
    """`acc + w x` over binary units, whose words are loaded AHEAD units ahead."""
    T: gl.constexpr = acc.shape[0] // 16
    held = ()
    for a in gl.static_range(AHEAD):
        held += (load_unit(words_ptr, first + a, a < count, tile_n, N, T),)  # type: ignore[assignment]
    for base in range(0, count, AHEAD):
        for a in gl.static_range(AHEAD):  # words stay in their registers: to move them would be to wait for them
            if base + a < count:
                words = four_words(held[a], T)
                for u in gl.static_range(4):
                    acc = _step(signs(words[u], T, pipe[0].dtype, left), acc, pipe, base + a, u, C, STAGES)
            after = base + a + AHEAD
            held = _replaced(held, a, load_unit(words_ptr, first + after, after < count, tile_n, N, T))
    return acc


@gluon.jit
def _load_group(words_ptr, unit, end, tile_n, N, T: gl.constexpr):
    """Words of four salient units."""
    held = ()
    for u in gl.static_range(4):
        held += (load_unit(words_ptr, unit + u, unit + u < end, tile_n, N, T),)  # type: ignore[assignment]
    return held


@gluon.jit
def _salient_units(
    acc, held, pipe, words_ptr, first, end, begin_step, steps, tile_n, N,
    C: gl.constexpr, STAGES: gl.constexpr, left: gl.constexpr,
):  # fmt: skip
    """`acc + w x` over groups of four salient units, the last of which may be short; `held` are the first's words."""
    T: gl.constexpr = acc.shape[0] // 16
    for step in range(begin_step, steps):
        following = first + 4 * (step - begin_step + 1)
        for u in gl.static_range(4):
            if following - 4 + u < end:
                acc = _step(levels(held[u], T, pipe[0].dtype, left), acc, pipe, step, u, C, STAGES)
            wanted = (step + 1 < steps) & (following + u < end)
            held = _replaced(held, u, load_unit(words_ptr, following + u, wanted, tile_n, N, T))
    return warpgroup_mma_wait(0, [acc])


@gluon.jit
def _consume(
    pipe, pointers, share, sizes, HAS_BIAS: gl.constexpr, BN: gl.constexpr, BLOCK_S: gl.constexpr, SPLIT: gl.constexpr,
    C: gl.constexpr, STAGES: gl.constexpr, AHEAD: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """Multiply, scale and store."""
    _, words_ptr, scales_ptr, _, _, partial_ptr, arrived_ptr = pointers
    b0, b1, g0, g1 = share
    _, N, U1, U4, _ = sizes
    BM: gl.constexpr = pipe[0].shape[1]
    mma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, BM, 16])
    left: gl.constexpr = gl.DotOperandLayout(0, mma, 2)
    tile_n = gl.program_id(0)
    n = tile_n * BN + gl.arange(0, BN, layout=gl.SliceLayout(1, mma))
    acc = gl.zeros((BN, BM), gl.float32, mma)
    salient = U1 + 4 * g0
    held = ()
    if EARLY:
        held = _load_group(words_ptr, salient, U1 + U4, tile_n, N, BN // 16)
    acc = _binary_units(acc, pipe, words_ptr, b0, b1 - b0, tile_n, N, C, STAGES, AHEAD, left)
    if not EARLY:
        held = _load_group(words_ptr, salient, U1 + U4, tile_n, N, BN // 16)
    acc = warpgroup_mma_wait(0, [acc])
    s1 = gl.load(scales_ptr + n * 3, mask=n < N, other=0.0).to(gl.float32)
    s4 = gl.load(scales_ptr + n * 3 + 1, mask=n < N, other=0.0).to(gl.float32)
    acc = acc * (s1 / gl.where(s4 == 0, TINY, s4))[:, None]  # one accumulator for both parts, in units of s4
    steps = b1 - b0 + g1 - g0
    acc = _salient_units(acc, held, pipe, words_ptr, salient, U1 + U4, b1 - b0, steps, tile_n, N, C, STAGES, left)
    gdc_wait()
    gdc_launch_dependents()

    if SPLIT == 1:
        _finish(acc, pointers, sizes, HAS_BIAS, BLOCK_S, pipe[0].dtype)
    else:
        tile = gl.program_id(1) * gl.num_programs(0) + tile_n
        tiles = gl.num_programs(0) * gl.num_programs(1)
        at = gl.arange(0, BN, layout=gl.SliceLayout(1, mma))[:, None] * BM
        at = at + gl.arange(0, BM, layout=gl.SliceLayout(0, mma))[None, :]
        gl.store(partial_ptr + (gl.program_id(2) * tiles + tile) * (BN * BM) + at, acc)
        barrier()
        if gl.atomic_add(arrived_ptr + tile, 1, sem="acq_rel") == SPLIT - 1:
            total = gl.zeros((BN, BM), gl.float32, mma)
            for part in range(SPLIT):
                total += gl.load(partial_ptr + (part * tiles + tile) * (BN * BM) + at, cache_modifier=".cg")
            _finish(total, pointers, sizes, HAS_BIAS, BLOCK_S, pipe[0].dtype)


@gluon.jit
def _finish(acc, pointers, sizes, HAS_BIAS: gl.constexpr, BLOCK_S: gl.constexpr, dtype: gl.constexpr):
    """Scale and store a tile `[BN, BM]`, whose unit is s4."""
    sums_ptr, _, scales_ptr, bias_ptr, y_ptr, _, _ = pointers
    M, N, _, _, BLOCKS = sizes
    BN: gl.constexpr = acc.shape[0]
    BM: gl.constexpr = acc.shape[1]
    W: gl.constexpr = gl.num_warps()
    n0, m0 = gl.program_id(0) * BN, gl.program_id(1) * BM
    n = n0 + gl.arange(0, BN, layout=gl.SliceLayout(1, acc.type.layout))
    s4 = gl.load(scales_ptr + n * 3 + 1, mask=n < N, other=0.0).to(gl.float32)
    z4 = gl.load(scales_ptr + n * 3 + 2, mask=n < N, other=0.0).to(gl.float32)

    wide: gl.constexpr = min(BLOCK_S, 32)
    blocks: gl.constexpr = gl.BlockedLayout([1, BLOCK_S // wide], [32 // wide, wide], [W, 1], [1, 0])
    m = m0 + gl.arange(0, BM, layout=gl.SliceLayout(1, blocks))[:, None]
    block = gl.arange(0, BLOCK_S, layout=gl.SliceLayout(0, blocks))[None, :]
    sums = gl.load(sums_ptr + m * BLOCKS + block, mask=(m < M) & (block < BLOCKS), other=0.0)
    token_sums = gl.convert_layout(gl.sum(sums, axis=1), gl.SliceLayout(0, acc.type.layout))

    y = acc * gl.where(s4 == 0, TINY, s4)[:, None] + z4[:, None] * token_sums[None, :]
    if HAS_BIAS:
        y += gl.load(bias_ptr + n, mask=n < N, other=0.0).to(gl.float32)[:, None]
    rows: gl.constexpr = gl.BlockedLayout([8, 1], [BN // 8, 256 // BN], [1, W], [0, 1])  # 16 bytes of a row of y a lane
    n_out = n0 + gl.arange(0, BN, layout=gl.SliceLayout(1, rows))[:, None]
    m_out = m0 + gl.arange(0, BM, layout=gl.SliceLayout(0, rows))[None, :]
    y_at = y_ptr + m_out.to(gl.int64) * N + n_out
    gl.store(y_at, gl.convert_layout(y.to(dtype), rows), mask=(m_out < M) & (n_out < N))


@gluon.jit(do_not_specialize=["M"])
def _wgmma_gemm_kernel(
    x_desc,  # [M, KP], blocks [BM, 64]
    sums_ptr,  # [M, BLOCKS] fp32
    words_ptr,  # [U1 + U4, ceil(N / 16), 128] int32
    scales_ptr,  # [N, 3] fp16
    bias_ptr,  # [N]
    y_ptr,  # [M, N]
    partial_ptr,  # [SPLIT, tiles, BN, BM] fp32
    arrived_ptr,  # [tiles] int32, zero
    M,
    N,
    U1,
    U4,
    BLOCKS,
    HAS_BIAS: gl.constexpr,
    BN: gl.constexpr,
    BLOCK_S: gl.constexpr,
    SPLIT: gl.constexpr,
    C: gl.constexpr,
    STAGES: gl.constexpr,
    AHEAD: gl.constexpr,
    EARLY: gl.constexpr,
):
    BM: gl.constexpr = x_desc.block_type.shape[0]
    # the program's steps of 256 channels: binary units [b0, b1), then groups [g0, g1) of four salient units
    part, groups = gl.program_id(2), gl.cdiv(U4, 4)
    share = (U1 * part // SPLIT, U1 * (part + 1) // SPLIT, groups * part // SPLIT, groups * (part + 1) // SPLIT)

    x_chunks = gl.allocate_shared_memory(x_desc.dtype, [STAGES * C, BM, 64], x_desc.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(STAGES):
        mbarrier.init(ready.index(slot), count=1)
        mbarrier.init(free.index(slot), count=1)
    pipe = (x_chunks, ready, free)
    pointers = (sums_ptr, words_ptr, scales_ptr, bias_ptr, y_ptr, partial_ptr, arrived_ptr)
    sizes = (M, N, U1, U4, BLOCKS)
    gl.warp_specialize(
        [
            (_consume, (pipe, pointers, share, sizes, HAS_BIAS, BN, BLOCK_S, SPLIT, C, STAGES, AHEAD, EARLY)),
            (_produce, (x_desc, pipe, share, U1, U4, C, STAGES)),
        ],
        [1],
        [24],
    )


@functools.cache
def _activations_layout(tokens: int, dtype: torch.dtype) -> gl.NVMMASharedLayout:
    """Of a block of 64 channels."""
    return gl.NVMMASharedLayout.get_default_for([tokens, 64], gl.bfloat16 if dtype == torch.bfloat16 else gl.float16)


def wgmma_gemm(
    x: torch.Tensor,
    sums: torch.Tensor,
    arrived: torch.Tensor,
    packed: PackedLinear,
    bias: torch.Tensor | None,
    *,
    tile: WgmmaTile,
) -> torch.Tensor:
    """`mixed_linear_reference` of gathered activations, on Hopper.

    Args:
        x, sums: From `gather_halves`.
        arrived: `[tile.tiles(M, N)]` int32, which that has made zero.
        bias: `[N]` or None.
        tile: How to cut the work.

    Returns:
        `[M, N]` in the dtype of x.
    """
    (M, KP), N = x.shape, packed.out_features
    x_desc = TensorDescriptor(x, [M, KP], [KP, 1], [tile.tokens, 64], _activations_layout(tile.tokens, x.dtype))
    partial = sums.new_empty(tile.split * len(arrived) * tile.rows * tile.tokens if tile.split > 1 else 0)
    y = x.new_empty(M, N)
    grid = (cdiv(N, tile.rows), cdiv(M, tile.tokens), tile.split)
    start(
        _wgmma_gemm_kernel, grid,
        x_desc, sums, packed.words.view(torch.int32), packed.scales, y if bias is None else bias, y, partial, arrived,
        M, N, packed.binary_units, packed.salient_units, sums.shape[1],
        HAS_BIAS=bias is not None, BN=tile.rows, BLOCK_S=power_of_2(max(1, sums.shape[1])),
        SPLIT=tile.split, C=tile.chunks, STAGES=tile.stages, AHEAD=tile.ahead, EARLY=tile.early,
        num_warps=tile.warps, maxnreg=tile.registers, launch_pdl=True,
    )  # fmt: skip
    return y
