"""One quantized linear layer in its canonical layout: codes in, tensors out, and back."""

from dataclasses import dataclass

import torch

from squeeze10_kernels.errors import BadInput
from squeeze10_kernels.format import MAX_CHANNEL_SCALE, WeightFormat
from squeeze10_kernels.packing import pack_bits, pack_nibbles, unpack_bits, unpack_nibbles


@dataclass(frozen=True, slots=True)
class QuantizedLinear:
    """Codes and scales of a linear layer `[N, K]`, unpacked.

    Attributes:
        codes: `[N, K]` uint8; 0 or 1 where not salient, 0..15 where salient.
        salient: `[K]` bool under mask `columns`, `[N, K]` bool under mask `elements`.
        scales: `[N, 3]` fp16: s1, s4, z4 of each row.
        channel_scales: `[K]` fp16, c.
    """

    codes: torch.Tensor
    salient: torch.Tensor
    scales: torch.Tensor
    channel_scales: torch.Tensor


def pack_linear(layer: QuantizedLinear, weight_format: WeightFormat) -> dict[str, torch.Tensor]:
    """Tensors of `layer` as they lie on disk, by suffix.

    Each class's codes are packed in row-major order: rows first, then channels ascending.
    """
    N, K = layer.codes.shape
    specs = weight_format.tensor_specs(N, K)
    salient = layer.salient.expand(N, K)
    tensors = {
        "qweight": pack_bits(layer.codes[~salient]).reshape(specs["qweight"][0]),
        "qweight_salient": pack_nibbles(layer.codes[salient]).reshape(specs["qweight_salient"][0]),
        "scales": layer.scales,
        "channel_scales": layer.channel_scales,
        "salient_mask": pack_bits(layer.salient),
    }
    check_linear(tensors, weight_format, N, K)
    return tensors


def unpack_linear(tensors: dict[str, torch.Tensor], weight_format: WeightFormat, N: int, K: int) -> QuantizedLinear:
    """Inverse of `pack_linear`. Free of synchronisation, so it may run inside a CUDA graph."""
    salient = unpack_bits(tensors["salient_mask"]).bool()
    rows = salient.expand(N, K)
    codes = torch.empty(N, K, dtype=torch.uint8, device=salient.device)
    codes.masked_scatter_(~rows, unpack_bits(tensors["qweight"]))
    codes.masked_scatter_(rows, unpack_nibbles(tensors["qweight_salient"]))
    return QuantizedLinear(codes, salient, tensors["scales"], tensors["channel_scales"])


def check_linear(tensors: dict[str, torch.Tensor], weight_format: WeightFormat, N: int, K: int) -> None:
    """Raise `BadInput` unless `tensors` is a valid layer `[N, K]`: names, shapes, dtypes, counts, scales."""
    specs = weight_format.tensor_specs(N, K)
    for suffix, (shape, dtype) in specs.items():
        if suffix not in tensors:
            raise BadInput(f"{suffix} is missing.")
        check_tensor(suffix, tuple(tensors[suffix].shape), tensors[suffix].dtype, shape, dtype)
    check_values(tensors, weight_format, N, K)


def check_values(tensors: dict[str, torch.Tensor], weight_format: WeightFormat, N: int, K: int) -> None:
    """Raise `BadInput` unless the mask's counts and all scales are lawful; every code is, so codes are not needed.

    Args:
        tensors: `scales`, `channel_scales` and `salient_mask` of the right shapes and dtypes.
    """
    check_salient_mask(tensors["salient_mask"], weight_format, N, K)
    if not tensors["scales"].isfinite().all():
        raise BadInput("scales must be finite; it holds NaN or infinity.")
    channel_scales = tensors["channel_scales"]
    if not ((channel_scales > 0) & (channel_scales <= MAX_CHANNEL_SCALE)).all():
        raise BadInput(f"channel_scales must lie above 0 and at most {MAX_CHANNEL_SCALE:g}.")


def check_tensor(
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    want_shape: tuple[int, ...],
    want_dtype: torch.dtype,
) -> None:
    """Raise `BadInput` unless a tensor has the shape and dtype that config.json implies."""
    if shape != want_shape or dtype != want_dtype:
        raise BadInput(
            f"{name} must be {list(want_shape)} {str(want_dtype).removeprefix('torch.')} by config.json; "
            f"the file has {list(shape)} {str(dtype).removeprefix('torch.')}."
        )


def check_salient_mask(packed: torch.Tensor, weight_format: WeightFormat, N: int, K: int) -> None:
    """Raise `BadInput` unless the mask selects exactly as many weights as the format says."""
    if weight_format.mask == "columns":
        counts = unpack_bits(packed).view(weight_format.chunks, -1).sum(1, dtype=torch.int64)
        want = weight_format.salient_channels(K) // weight_format.chunks
        unit = "channels in each chunk"
    else:
        # a byte a weight would take a minute for the masks of 7B
        bits_of_byte = unpack_bits(torch.arange(256, dtype=torch.uint8, device=packed.device)[:, None]).sum(1)
        counts = (torch.bincount(packed.flatten(), minlength=256) * bits_of_byte).sum().view(1)
        want = weight_format.salient_weights(N, K)
        unit = "weights"
    if (counts != want).any():
        raise BadInput(f"salient_mask must select {want} {unit}; it selects {counts.tolist()}.")
