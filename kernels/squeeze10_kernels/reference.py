"""What a quantized layer means: plain fp32 torch, the oracle of every kernel, of the quantizer and the plugin."""

import torch

from squeeze10_kernels.format import SALIENT_OFFSET
from squeeze10_kernels.linear import QuantizedLinear


def dequantize(layer: QuantizedLinear) -> torch.Tensor:
    """The weight `[N, K]` in fp32, FORMAT.md section 4.

    `w = s1 (2 code - 1) c` where not salient, `w = (s4 (code - 8) + z4) c` where salient.
    """
    return decode_rows(layer) * layer.channel_scales.float()


def decode_rows(layer: QuantizedLinear) -> torch.Tensor:
    """The weight `[N, K]` in fp32 before its channel scales."""
    s1, s4, z4 = layer.scales.float().split(1, dim=1)  # [N, 1] each
    codes = layer.codes.float()  # [N, K]
    return torch.where(layer.salient, s4 * (codes - SALIENT_OFFSET) + z4, s1 * (2 * codes - 1))


def sum_parts(rows: torch.Tensor, width: int) -> torch.Tensor:
    """Rows of a quantized table from those of its parts: `[..., parts * width]` to `[..., width]`."""
    whole: torch.Tensor = rows.unflatten(-1, (-1, width)).sum(-2)
    return whole


def scale_activations(x: torch.Tensor, channel_scales: torch.Tensor) -> torch.Tensor:
    """`round(x c)` in the dtype of x: normative, so that every reader feeds the same activations. `[M, K]`."""
    return (x.float() * channel_scales.float()).to(x.dtype)


def mixed_linear_reference(x: torch.Tensor, layer: QuantizedLinear, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`y = round(x c) wᵀ + bias` with w from `decode_rows`, accumulated in fp32.

    Args:
        x: Activations, `[..., K]` fp16, bf16 or fp32.
        layer: The layer `[N, K]`.
        bias: `[N]` or None.

    Returns:
        `[..., N]` in the dtype of x.
    """
    y = scale_activations(x, layer.channel_scales).float() @ decode_rows(layer).T
    if bias is not None:
        y = y + bias.float()
    return y.to(x.dtype)
