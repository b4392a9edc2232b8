"""`squeeze10::linear`: one opaque functional op per layer, so that nothing is decided while vLLM traces.

vLLM traces a model once with a symbolic number of tokens; whatever depends on tokens or device is chosen in here.
"""

import torch

from squeeze10_kernels.cpu_linear import int4_columns_linear
from squeeze10_kernels.dense_linear import columns_linear, elements_linear
from squeeze10_kernels.kernel_layout import BINARY_UNIT, PackedLinear
from squeeze10_kernels.reference import scale_activations

_LIBRARY = torch.library.Library("squeeze10", "FRAGMENT")  # the op lives as long as this object


def mixed_linear(
    x: torch.Tensor,
    qweight: torch.Tensor,
    qweight_salient: torch.Tensor | None,
    scales: torch.Tensor,
    channel_scales: torch.Tensor,
    channels: torch.Tensor | None,
    salient_mask: torch.Tensor | None,
    bias: torch.Tensor | None,
    layout: str,
    salient_channels: int,
) -> torch.Tensor:
    """`mixed_linear_reference` of a layer `[N, K]` in one of the layouts of `repack`.

    Args:
        x: Activations, `[..., K]` fp16, bf16 or fp32.
        qweight, qweight_salient, channels, salient_mask: By layout, None where it has none.
        scales: `[N, 3]` fp16.
        channel_scales: `[K]` fp16.
        bias: `[N]` or None.
        layout: Of the parameters.
        salient_channels: 4-bit channels of the input under mask `columns`.

    Returns:
        `[..., N]` in the dtype of x.
    """
    rows = x.reshape(-1, x.shape[-1])
    if layout == "dense":
        y = torch.nn.functional.linear(scale_activations(rows, channel_scales), qweight, bias)
    elif layout == "elements":
        assert qweight_salient is not None
        assert salient_mask is not None
        y = elements_linear(rows, qweight, qweight_salient, salient_mask, scales, channel_scales, bias)
    elif layout == "columns_triton":
        # here, since CPUs may have no Triton
        from squeeze10_kernels.mixed_linear import mixed_linear as fused_linear

        assert channels is not None
        packed = packed_linear(qweight, scales, channels, channel_scales, salient_channels)
        y = fused_linear(rows.contiguous(), packed, bias)
    else:
        assert qweight_salient is not None
        assert channels is not None
        weights = (qweight, qweight_salient, scales, channel_scales, channels)
        if layout == "columns_int4":
            y = int4_columns_linear(rows, *weights, salient_channels=salient_channels, bias=bias)
        else:
            y = columns_linear(rows, *weights, bias)
    return y.view(*x.shape[:-1], y.shape[-1])


def packed_linear(
    qweight: torch.Tensor,
    scales: torch.Tensor,
    channels: torch.Tensor,
    channel_scales: torch.Tensor,
    salient_channels: int,
) -> PackedLinear:
    """What the fused kernels read, from the parameters of layout `columns_triton`."""
    binary_units = -((salient_channels - len(channel_scales)) // BINARY_UNIT)  # rounded up
    return PackedLinear(qweight, scales, channels, channel_scales, binary_units)


def mixed_linear_shape(
    x: torch.Tensor,
    qweight: torch.Tensor,
    qweight_salient: torch.Tensor | None,
    scales: torch.Tensor,
    channel_scales: torch.Tensor,
    channels: torch.Tensor | None,
    salient_mask: torch.Tensor | None,
    bias: torch.Tensor | None,
    layout: str,
    salient_channels: int,
) -> torch.Tensor:
    """What tracing knows of the result of `mixed_linear`."""
    return x.new_empty((*x.shape[:-1], scales.shape[0]))


_LIBRARY.define("linear" + torch.library.infer_schema(mixed_linear, mutates_args=()))
_LIBRARY.impl("linear", mixed_linear, "CompositeExplicitAutograd")
torch.library.register_fake("squeeze10::linear", mixed_linear_shape, lib=_LIBRARY)

linear = torch.ops.squeeze10.linear.default
