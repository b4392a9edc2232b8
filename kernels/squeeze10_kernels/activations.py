"""Activations as the kernels read them: gathered into kernel order, scaled, rounded, and summed for the offset z4."""

from typing import Final

import torch
import triton
import triton.language as tl

from squeeze10_kernels.kernel_layout import BINARY_UNIT, NO_CHANNEL, PackedLinear
from squeeze10_kernels.reference import scale_activations

BLOCK: Final = 1024
"""Channels of a program; also of a partial sum."""


@triton.jit
def _gather_kernel(
    x_ptr,  # [M, K]
    channels_ptr,  # [KP] int32
    channel_scales_ptr,  # [K] fp16
    out_ptr,  # [M, KP]
    sums_ptr,  # [M, KP / BLOCK] fp32
    K,
    KP,
    first_salient,
    BLOCK: tl.constexpr,
):
    m, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    k = block * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    channel = tl.load(channels_ptr + k, mask=k < KP, other=-1)
    real = channel >= 0
    scale = tl.load(channel_scales_ptr + channel, mask=real, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + m * K + channel, mask=real, other=0.0).to(tl.float32)
    scaled = (x * scale).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + m * KP + k, scaled, mask=k < KP)
    salient = tl.where(k >= first_salient, scaled.to(tl.float32), 0.0)
    tl.store(sums_ptr + m * tl.num_programs(1) + block, tl.sum(salient, axis=0))


def gather_activations(x: torch.Tensor, packed: PackedLinear) -> tuple[torch.Tensor, torch.Tensor]:
    """`x̃` of FORMAT.md in kernel order, and what its salient channels sum to.

    Args:
        x: `[M, K]`, contiguous.

    Returns:
        Activations `[M, KP]` in the dtype of x, zero at padding channels; partial sums `[M, ceil(KP / 1024)]` fp32.
    """
    (M, K), KP = x.shape, packed.channels.shape[0]
    blocks = triton.cdiv(KP, BLOCK)
    out, sums = x.new_empty(M, KP), x.new_empty(M, blocks, dtype=torch.float32)
    _gather_kernel[(M, blocks)](
        x, packed.channels, packed.channel_scales, out, sums, K, KP, packed.binary_units * BINARY_UNIT, BLOCK=BLOCK
    )
    return out, sums


def gather_activations_reference(x: torch.Tensor, packed: PackedLinear) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in plain torch; the whole sum in the first column."""
    padded = torch.nn.functional.pad(scale_activations(x, packed.channel_scales), (0, 1))
    out = padded[:, torch.where(packed.channels == NO_CHANNEL, x.shape[1], packed.channels.long())]
    sums = torch.zeros(len(x), triton.cdiv(out.shape[1], BLOCK), device=x.device)
    sums[:, 0] = out[:, packed.binary_units * BINARY_UNIT :].float().sum(1)
    return out, sums
