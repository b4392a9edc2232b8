"""Decode the codes of a layer to a matmul's dtype, then multiply densely: any device, both masks.

Codes are exact in every matmul dtype (±1 and -8..7); the row scales stay in fp32 and act on the products. Nothing
here synchronises with the device, so everything may run inside a CUDA graph.
"""

import torch
import torch.nn.functional as F

from squeeze10_kernels.format import SALIENT_OFFSET, WeightFormat
from squeeze10_kernels.linear import unpack_linear
from squeeze10_kernels.packing import unpack_bits, unpack_nibbles
from squeeze10_kernels.reference import decode_rows, scale_activations


def channel_order(salient: torch.Tensor) -> torch.Tensor:
    """The channels in the order of the packed codes: the 1-bit ones ascending, then the 4-bit ones.

    Args:
        salient: `[K]` bool.

    Returns:
        `[K]` int64, on the device of `salient`. It synchronises: call it at load.
    """
    return torch.cat(((~salient).nonzero(), salient.nonzero())).flatten()


def columns_linear(
    x: torch.Tensor,
    qweight: torch.Tensor,
    qweight_salient: torch.Tensor,
    scales: torch.Tensor,
    channel_scales: torch.Tensor,
    channels: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """`mixed_linear_reference` of a layer with mask `columns`, from its tensors as they lie on disk.

    Args:
        x: Activations, `[M, K]` fp16, bf16 or fp32.
        qweight: 1-bit codes, `[N, B // 8]` uint8.
        qweight_salient: 4-bit codes, `[N, S // 2]` uint8; B + S = K.
        scales: `[N, 3]` s1, s4, z4.
        channel_scales: `[K]` c.
        channels: `[K]` int64, see `channel_order`.
        bias: `[N]` or None.

    Returns:
        `[M, N]` in the dtype of x.
    """
    binary_channels = 8 * qweight.shape[1]
    scaled = scale_activations(x, channel_scales)
    dtype = matmul_dtype(x)
    binary = scaled.index_select(1, channels[:binary_channels])  # [M, B]
    salient = scaled.index_select(1, channels[binary_channels:])  # [M, S]
    signs = unpack_bits(qweight).to(dtype).mul_(2).sub_(1)  # [N, B]
    levels = unpack_nibbles(qweight_salient).to(dtype).sub_(SALIENT_OFFSET)  # [N, S]
    return combine_parts(
        matmul_fp32(binary.to(dtype), signs),
        matmul_fp32(salient.to(dtype), levels),
        salient.sum(1, dtype=torch.float32),
        scales,
        bias,
        x.dtype,
    )


def elements_linear(
    x: torch.Tensor,
    qweight: torch.Tensor,
    qweight_salient: torch.Tensor,
    salient_mask: torch.Tensor,
    scales: torch.Tensor,
    channel_scales: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """`mixed_linear_reference` of a layer with mask `elements`, its weight rounded to the dtype of x.

    Args:
        x: Activations, `[M, K]` fp16, bf16 or fp32.
        qweight: 1-bit codes in row-major order, `[n]` uint8.
        qweight_salient: 4-bit codes in row-major order, `[m]` uint8.
        salient_mask: `[N, K // 8]` uint8.
        scales: `[N, 3]` s1, s4, z4.
        channel_scales: `[K]` c.
        bias: `[N]` or None.

    Returns:
        `[M, N]` in the dtype of x.
    """
    weight = elements_weight(qweight, qweight_salient, salient_mask, scales, channel_scales, dtype=x.dtype)
    return F.linear(scale_activations(x, channel_scales), weight, bias)


def elements_weight(
    qweight: torch.Tensor,
    qweight_salient: torch.Tensor,
    salient_mask: torch.Tensor,
    scales: torch.Tensor,
    channel_scales: torch.Tensor,
    *,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The weight `[N, K]` before its channel scales, rounded to `dtype`; arguments as for `elements_linear`."""
    tensors = {
        "qweight": qweight,
        "qweight_salient": qweight_salient,
        "salient_mask": salient_mask,
        "scales": scales,
        "channel_scales": channel_scales,
    }
    N, K = salient_mask.shape[0], 8 * salient_mask.shape[1]
    return decode_rows(unpack_linear(tensors, WeightFormat(mask="elements"), N, K)).to(dtype)


def matmul_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype in which `x` multiplies fastest: its own, or fp32 on CPUs without bf16 arithmetic.

    A CPU without AVX512-BF16 emulates bf16 and fp16 products, eight times slower than fp32.
    """
    if x.device.type != "cpu":
        return x.dtype
    if x.dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.float32


def matmul_fp32(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`x weightᵀ` as fp32: `[M, n]` and `[N, n]` to `[M, N]`.

    On CUDA the sum leaves the accumulator unrounded: before its row scale a sum of ±x̃ may exceed fp16's range.
    """
    if x.is_cuda and x.dtype != torch.float32:
        return torch.mm(x, weight.t(), out_dtype=torch.float32)
    return F.linear(x, weight).float()


def combine_parts(
    binary: torch.Tensor,
    salient: torch.Tensor,
    salient_sum: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """`s1 binary + s4 salient + z4 Σx̃ + bias`, in fp32.

    Args:
        binary: `Σ ± x̃` over the 1-bit channels, `[M, N]`.
        salient: `Σ (code - 8) x̃` over the 4-bit channels, `[M, N]`.
        salient_sum: `Σ x̃` over the 4-bit channels, `[M]` fp32.
        scales: `[N, 3]` s1, s4, z4.
        bias: `[N]` or None.
        dtype: Of the result.

    Returns:
        `[M, N]` in `dtype`.
    """
    s1, s4, z4 = scales.float().unbind(1)  # [N] each
    y = binary.float() * s1
    y.addcmul_(salient.float(), s4)
    y.addcmul_(salient_sum.unsqueeze(1), z4)
    if bias is not None:
        y += bias.float()
    return y.to(dtype)
