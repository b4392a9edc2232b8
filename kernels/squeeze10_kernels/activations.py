"""Activations as the kernels read them: gathered into kernel order, scaled, rounded, and summed for the offsets."""

from typing import Final

import torch
import triton
import triton.language as tl

from squeeze10_kernels.kernel_layout import BINARY_UNIT, NO_CHANNEL, PackedLinear
from squeeze10_kernels.reference import scale_activations
from squeeze10_kernels.unpacking import binary_offset

TOKEN_GROUP: Final = 8
"""Tokens whose activations are stored together: those of one tensor core tile."""
BLOCK: Final = 1024
"""Channels of a program; also of a partial sum."""


@triton.jit(do_not_specialize=["M"])
def _gather_kernel(
    x_ptr,  # [M, K]
    channels_ptr,  # [KP] int32
    channel_scales_ptr,  # [K] fp16
    out_ptr,  # [M, KP] or [ceil(M / 8), KP / 32, 256]
    sums_ptr,  # [M, 2, KP / BLOCK] fp32
    M,
    K,
    KP,
    first_salient,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUPED: tl.constexpr,
    ASM: tl.constexpr,
):
    if ASM:
        tl.extra.cuda.gdc_launch_dependents()
    block, blocks = tl.program_id(1), tl.num_programs(1)
    k = block * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    channel = tl.load(channels_ptr + k, mask=k < KP, other=-1)
    real = channel >= 0
    scale = tl.load(channel_scales_ptr + channel, mask=real, other=0.0).to(tl.float32)
    if ASM:
        tl.extra.cuda.gdc_wait()  # what was launched before has written its results
    m = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)[:, None]  # [TOKENS, 1]
    x = tl.load(x_ptr + m * K + channel[None, :], mask=(m < M) & real[None, :], other=0.0).to(tl.float32)
    scaled = (x * scale[None, :]).to(out_ptr.dtype.element_ty)
    at = m * KP + k[None, :]
    if GROUPED:
        # [channel / 32, token, lane, step, channel % 4], where 32 channels are [step, lane, 4]
        in_group = k // 32 * 256 + k // 4 % 4 * 8 + k // 16 % 2 * 4 + k % 4
        at = m // 8 * 8 * KP + m % 8 * 32 + in_group[None, :]
        sums = sums_ptr + m * 2 * blocks + block
        exact, binary = scaled.to(tl.float32), (k < first_salient)[None, :]
        tl.store(sums, tl.sum(tl.where(binary, exact * binary_offset(k)[None, :], 0.0), axis=1)[:, None], mask=m < M)
        tl.store(sums + blocks, tl.sum(tl.where(binary, 0.0, exact), axis=1)[:, None], mask=m < M)
    tl.store(out_ptr + at, scaled, mask=(m < M) & (k < KP)[None, :])


def gather_activations(
    x: torch.Tensor, packed: PackedLinear, *, grouped: bool, assembly: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """`x̃` of FORMAT.md in kernel order, and its sums: of the binary channels times their offset, of the salient ones.

    Args:
        x: `[M, K]`, contiguous.
        grouped: In groups of 8 tokens and with sums, as `mixed_gemm` reads them, rather than a row for each token.
        assembly: False where inline assembly cannot run: in Triton's interpreter.

    Returns:
        Activations in the dtype of x, zero at padding channels: `[M, KP]`, or `[ceil(M / 8), KP / 32, 8, 4, 2, 4]` of
        `[group, channel / 32, token, lane, step, channel % 4]` with tokens from M on undefined; partial sums
        `[M, 2, ceil(KP / 1024)]` fp32, undefined unless grouped.
    """
    (M, K), KP = x.shape, packed.channels.shape[0]
    blocks, groups = triton.cdiv(KP, BLOCK), triton.cdiv(M, TOKEN_GROUP)
    out = x.new_empty((groups, KP // 32, TOKEN_GROUP, 4, 2, 4) if grouped else (M, KP))
    sums = x.new_empty(M, 2, blocks, dtype=torch.float32)
    tokens = 1 if grouped else 4  # many tokens share what a program reads of the channels
    _gather_kernel[(triton.cdiv(M, tokens), blocks)](
        x, packed.channels, packed.channel_scales, out, sums, M, K, KP, packed.binary_units * BINARY_UNIT,
        TOKENS=tokens, BLOCK=BLOCK, GROUPED=grouped, ASM=assembly, launch_pdl=assembly,
    )  # fmt: skip
    return out, sums


def gather_activations_reference(x: torch.Tensor, packed: PackedLinear) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in plain torch, a row for each token; the whole sums, `[M, 2]`."""
    padded = torch.nn.functional.pad(scale_activations(x, packed.channel_scales), (0, 1))
    out = padded[:, torch.where(packed.channels == NO_CHANNEL, x.shape[1], packed.channels.long())]
    binary, salient = out.float().tensor_split([packed.binary_units * BINARY_UNIT], dim=1)
    k = torch.arange(binary.shape[1], device=x.device)
    offsets = 2.0 ** (8 - (k // 16 % 4 * 2 + k // 2 % 2)) + 1
    return out, torch.stack((binary @ offsets, salient.sum(1)), dim=1)
