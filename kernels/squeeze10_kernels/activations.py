"""Activations as the kernels read them: gathered into kernel order, scaled, rounded, and summed for the offsets."""

from typing import Final

import torch
import triton
import triton.language as tl

from squeeze10_kernels.kernel_layout import BINARY_UNIT, NO_CHANNEL, PackedLinear
from squeeze10_kernels.launching import cdiv, start
from squeeze10_kernels.reference import scale_activations
from squeeze10_kernels.unpacking import binary_offset

TOKEN_GROUP: Final = 8
"""Tokens whose activations are stored together for `mixed_gemm`: those of one tensor core tile."""
GROUP_BLOCK: Final = 1024
ROW_BLOCK: Final = 512
"""Channels of a program; also of a partial sum."""


@triton.jit(do_not_specialize=["M"])
def _gather_groups_kernel(
    x_ptr,  # [M, K]
    channels_ptr,  # [KP] int32
    channel_scales_ptr,  # [K] fp16
    out_ptr,  # [ceil(M / 8), KP / 32, 256]
    sums_ptr,  # [M, 2, KP / BLOCK] fp32
    K,
    KP,
    first_salient,
    M,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    m, block, blocks = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    k = block * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    channel = tl.load(channels_ptr + k, mask=k < KP, other=-1)
    real = channel >= 0
    scale = tl.load(channel_scales_ptr + channel, mask=real, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()  # what was launched before has written its results
    x = tl.load(x_ptr + m * K + channel, mask=real, other=0.0).to(tl.float32)
    scaled = (x * scale).to(out_ptr.dtype.element_ty)
    # [channel / 32, token, lane, step, channel % 4], where 32 channels are [step, lane, 4]
    in_group = k // 32 * 256 + k // 4 % 4 * 8 + k // 16 % 2 * 4 + k % 4
    tl.store(out_ptr + m // 8 * 8 * KP + m % 8 * 32 + in_group, scaled, mask=k < KP)
    sums = sums_ptr + m * 2 * blocks + block
    exact, binary = scaled.to(tl.float32), k < first_salient
    tl.store(sums, tl.sum(tl.where(binary, exact * binary_offset(k), 0.0), axis=0))
    tl.store(sums + blocks, tl.sum(tl.where(binary, 0.0, exact), axis=0))


@triton.jit(do_not_specialize=["M", "zeros"])
def _gather_rows_kernel(
    x_ptr,  # [M, K]
    channels_ptr,  # [KP] int32
    channel_scales_ptr,  # [K] fp16
    out_ptr,  # [M, KP]
    sums_ptr,  # [M, salient blocks] fp32
    zero_ptr,  # [zeros] int32
    M,
    K,
    KP,
    first_salient,
    zeros,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
    HALVES: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    # blocks of binary channels, then blocks of salient ones
    binary_blocks = tl.cdiv(first_salient, BLOCK)
    salient_block = tl.program_id(1) - binary_blocks
    salient_blocks = tl.num_programs(1) - binary_blocks
    salient = salient_block >= 0
    begin = tl.where(salient, first_salient + salient_block * BLOCK, tl.program_id(1) * BLOCK)
    at = begin + tl.arange(0, BLOCK)  # [BLOCK]
    inside = at < tl.where(salient, KP, first_salient)
    k = at // 16 * 16 + at // 2 % 4 * 4 + at // 8 % 2 * 2 + at % 2 if HALVES else at
    channel = tl.load(channels_ptr + k, mask=inside, other=-1)
    real = channel >= 0
    scale = tl.load(channel_scales_ptr + channel, mask=real, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()  # what was launched before has written its results
    if HALVES:
        zero = (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * BLOCK + tl.arange(0, BLOCK)
        tl.store(zero_ptr + zero, tl.zeros_like(zero), mask=zero < zeros)
    for token in range(TOKENS):
        m = (tl.program_id(0) * TOKENS + token).to(tl.int64)
        if m < M:
            x = tl.load(x_ptr + m * K + channel, mask=real, other=0.0).to(tl.float32)
            scaled = (x * scale).to(out_ptr.dtype.element_ty)
            tl.store(out_ptr + m * KP + at, scaled, mask=inside)
            if HALVES and salient:
                tl.store(sums_ptr + m * salient_blocks + salient_block, tl.sum(scaled.to(tl.float32), axis=0))


def gather_groups(x: torch.Tensor, packed: PackedLinear, *, pdl: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """`x̃` of FORMAT.md as `mixed_gemm` reads it, and sums: of binary channels times their offset, of the rest.

    Args:
        x: `[M, K]`, contiguous.
        pdl: Start beside the launch ahead (programmatic dependent launch), which GPUs before Hopper cannot.

    Returns:
        Activations in the dtype of x, zero at padding channels, `[ceil(M / 8), KP / 32, 8, 4, 2, 4]` of `[group,
        channel / 32, token, lane, step, channel % 4]`, tokens from M on undefined; partial sums `[M, 2, blocks]` fp32.
    """
    (M, K), KP = x.shape, packed.channels.shape[0]
    blocks = cdiv(KP, GROUP_BLOCK)
    out = x.new_empty(cdiv(M, TOKEN_GROUP), KP // 32, TOKEN_GROUP, 4, 2, 4)
    sums = x.new_empty(M, 2, blocks, dtype=torch.float32)
    start(
        _gather_groups_kernel, (M, blocks, 1),
        x, packed.channels, packed.channel_scales, out, sums, K, KP, packed.binary_units * BINARY_UNIT, M,
        BLOCK=GROUP_BLOCK, PDL=pdl, launch_pdl=pdl,
    )  # fmt: skip
    return out, sums


def gather_halves(
    x: torch.Tensor, packed: PackedLinear, zero: torch.Tensor, *, pdl: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """`x̃` as `wgmma_gemm` reads it, and the sums of its salient channels; `zero`, int32, becomes zero.

    Returns:
        Activations `[M, KP]` in the dtype of x, zero at padding channels, 16 channels `[lane, half, pair]` stored as
        `[half, lane, pair]`; partial sums `[M, blocks]` fp32.
    """
    blocks = cdiv(packed.channels.shape[0] - packed.binary_units * BINARY_UNIT, ROW_BLOCK)
    sums = x.new_empty(len(x), blocks, dtype=torch.float32)
    return _gather_rows(x, packed, sums, zero, halves=True, pdl=pdl), sums


def gather_channels(x: torch.Tensor, packed: PackedLinear, *, pdl: bool = False) -> torch.Tensor:
    """`x̃` in kernel order, `[M, KP]` in the dtype of x, zero at padding channels."""
    unused = x.new_empty(0)
    return _gather_rows(x, packed, unused, unused, halves=False, pdl=pdl)


def _gather_rows(
    x: torch.Tensor, packed: PackedLinear, sums: torch.Tensor, zero: torch.Tensor, *, halves: bool, pdl: bool
) -> torch.Tensor:
    (M, K), KP, binary = x.shape, packed.channels.shape[0], packed.binary_units * BINARY_UNIT
    blocks = cdiv(binary, ROW_BLOCK) + cdiv(KP - binary, ROW_BLOCK)
    out = x.new_empty(M, KP)
    # many tokens share what a program reads of the channels; 128 and 512 are edges of buckets in tiles.py, so that
    # warming up compiles all three
    tokens = 1 if M <= 128 else 2 if M <= 512 else 8
    start(
        _gather_rows_kernel, (cdiv(M, tokens), blocks, 1),
        x, packed.channels, packed.channel_scales, out, sums, zero, M, K, KP, binary, zero.numel(),
        TOKENS=tokens, BLOCK=ROW_BLOCK, HALVES=halves, PDL=pdl, launch_pdl=pdl,
    )  # fmt: skip
    return out


def gather_activations_reference(x: torch.Tensor, packed: PackedLinear) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in plain torch, `[M, KP]` in kernel order; the whole sums, `[M, 2]`, binary times offset and salient."""
    padded = torch.nn.functional.pad(scale_activations(x, packed.channel_scales), (0, 1))
    out = padded[:, torch.where(packed.channels == NO_CHANNEL, x.shape[1], packed.channels.long())]
    binary, salient = out.float().tensor_split([packed.binary_units * BINARY_UNIT], dim=1)
    k = torch.arange(binary.shape[1], device=x.device)
    offsets = 2.0 ** (8 - (k // 16 % 4 * 2 + k // 2 % 2)) + 1
    return out, torch.stack((binary @ offsets, salient.sum(1)), dim=1)
