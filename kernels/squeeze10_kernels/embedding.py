"""Rows of a quantized embedding table."""

import torch

from squeeze10_kernels.format import SALIENT_OFFSET
from squeeze10_kernels.packing import unpack_nibbles
from squeeze10_kernels.reference import sum_parts


def look_up(
    ids: torch.Tensor,
    qweight_salient: torch.Tensor,
    scales: torch.Tensor,
    channel_scales: torch.Tensor,
    width: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """`(s4 (code - 8) + z4) c` of the rows `ids`, parts added: those of `reference.dequantize`, rounded to `dtype`.

    Args:
        ids: `[...]` int64, below V.
        qweight_salient: `[V, parts * hidden // 2]` uint8.
        scales: `[V, 3]` fp16; s1 is not read.
        channel_scales: `[parts * hidden]` fp16.
        width: hidden.

    Returns:
        `[..., hidden]`.
    """
    codes = unpack_nibbles(qweight_salient[ids]).float()
    rows = scales[ids].float()
    parts = (rows[..., 1:2] * (codes - SALIENT_OFFSET) + rows[..., 2:3]) * channel_scales.float()
    return sum_parts(parts, width).to(dtype)
