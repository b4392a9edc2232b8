"""Rows of a quantized embedding table."""

import torch

from squeeze10_kernels.format import SALIENT_OFFSET
from squeeze10_kernels.packing import unpack_nibbles


def look_up(
    ids: torch.Tensor,
    qweight_salient: torch.Tensor,
    scales: torch.Tensor,
    channel_scales: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """`(s4 (code - 8) + z4) c` of the rows `ids`: those of `reference.dequantize`, rounded to `dtype`.

    Args:
        ids: `[...]` int64, below V.
        qweight_salient: `[V, hidden // 2]` uint8.
        scales: `[V, 3]` fp16; s1 is not read.
        channel_scales: `[hidden]` fp16.

    Returns:
        `[..., hidden]`.
    """
    codes = unpack_nibbles(qweight_salient[ids]).float()
    rows = scales[ids].float()
    return ((rows[..., 1:2] * (codes - SALIENT_OFFSET) + rows[..., 2:3]) * channel_scales.float()).to(dtype)
