"""A layer survives packing, and a tensor-parallel slice of its bytes is again a layer."""

import re
from collections.abc import Callable

import pytest
import torch
from assertions import assert_close

from squeeze10_kernels import (
    BadInput,
    QuantizedLinear,
    WeightFormat,
    check_linear,
    mixed_linear_reference,
    pack_linear,
    unpack_linear,
)

FORMATS = [
    pytest.param(WeightFormat(mask, ratio, chunks), id=f"{mask}_{ratio}_of_{chunks}_chunks")
    for mask, chunks in (("columns", 1), ("columns", 8), ("elements", 1))
    for ratio in (0, 0.2, 1)
]
N, K = 24, 512


def random_layer(weight_format: WeightFormat) -> QuantizedLinear:
    if weight_format.mask == "columns":
        width = K // weight_format.chunks
        count = weight_format.salient_channels(K) // weight_format.chunks
        salient = torch.cat([torch.randperm(width) < count for _ in range(weight_format.chunks)])
    else:
        salient = (torch.randperm(N * K) < weight_format.salient_weights(N, K)).view(N, K)
    codes = torch.where(salient.expand(N, K), torch.randint(0, 16, (N, K)), torch.randint(0, 2, (N, K)))
    channel_scales = (torch.randn(K) * 0.3).exp().clamp(max=4).half()
    return QuantizedLinear(codes.to(torch.uint8), salient, (torch.randn(N, 3) * 0.05).half(), channel_scales)


@pytest.mark.parametrize("weight_format", FORMATS)
def test_pack_round_trip(weight_format: WeightFormat) -> None:
    layer = random_layer(weight_format)

    tensors = pack_linear(layer, weight_format)
    back = unpack_linear(tensors, weight_format, N, K)

    assert {suffix: (tuple(tensor.shape), tensor.dtype) for suffix, tensor in tensors.items()} == (
        weight_format.tensor_specs(N, K)
    )
    for field in ("codes", "salient", "scales", "channel_scales"):
        assert torch.equal(getattr(back, field), getattr(layer, field)), field


def test_codes_of_a_row_are_its_channels_ascending_in_every_class() -> None:
    """Golden bytes of two rows: channels 0 to 15 salient, 16 to 23 not."""
    layer = random_layer(WeightFormat())
    salient = torch.arange(80) < 16
    codes = torch.zeros(2, 80, dtype=torch.uint8)
    codes[0, :3] = torch.tensor([1, 2, 3])
    codes[1, 15] = 15
    codes[0, 17] = codes[1, 16] = codes[1, 79] = 1

    tensors = pack_linear(QuantizedLinear(codes, salient, layer.scales[:2], layer.channel_scales[:80]), WeightFormat())

    assert tensors["salient_mask"].tolist() == [255, 255, 0, 0, 0, 0, 0, 0, 0, 0]
    assert tensors["qweight_salient"].tolist() == [[0x21, 0x03, 0, 0, 0, 0, 0, 0], [0] * 7 + [0xF0]]
    assert tensors["qweight"].tolist() == [[2, 0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 128]]


def input_slice(tensors: dict[str, torch.Tensor], rank: int, ranks: int) -> dict[str, torch.Tensor]:
    """Rank `rank` of `ranks` when the input is split, FORMAT.md section 6."""

    def part(tensor: torch.Tensor) -> torch.Tensor:
        share = tensor.shape[-1] // ranks
        return tensor[..., rank * share : (rank + 1) * share]

    return {suffix: tensor if suffix == "scales" else part(tensor) for suffix, tensor in tensors.items()}


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("ratio", [0, 0.2, 1])
def test_slices_of_the_input_sum_to_the_whole(ratio: float, ranks: int) -> None:
    weight_format = WeightFormat("columns", ratio, 8)
    layer, x = random_layer(weight_format), torch.randn(3, K)
    tensors = pack_linear(layer, weight_format)

    total = torch.zeros(3, N)
    for rank in range(ranks):
        piece = unpack_linear(input_slice(tensors, rank, ranks), weight_format, N, K // ranks)
        channels = slice(rank * K // ranks, (rank + 1) * K // ranks)
        assert torch.equal(piece.codes, layer.codes[:, channels])
        total += mixed_linear_reference(x[:, channels], piece)

    assert_close(total, mixed_linear_reference(x, layer), rms=1e-6)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_slice_of_several_chunks_passes_every_check(ranks: int) -> None:
    weight_format = WeightFormat("columns", 0.2, 8)
    tensors = pack_linear(random_layer(weight_format), weight_format)

    for rank in range(ranks):
        check_linear(input_slice(tensors, rank, ranks), WeightFormat("columns", 0.2, 8 // ranks), N, K // ranks)


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_slices_of_the_rows_make_up_the_whole(ranks: int) -> None:
    weight_format = WeightFormat("columns", 0.2, 8)
    layer, x = random_layer(weight_format), torch.randn(3, K)
    tensors, rows = pack_linear(layer, weight_format), N // ranks
    outputs = []

    for rank in range(ranks):
        piece = {
            suffix: tensor if suffix in ("channel_scales", "salient_mask") else tensor[rank * rows :][:rows]
            for suffix, tensor in tensors.items()
        }
        check_linear(piece, weight_format, rows, K)
        outputs.append(mixed_linear_reference(x, unpack_linear(piece, weight_format, rows, K)))

    assert_close(torch.cat(outputs, dim=1), mixed_linear_reference(x, layer), rms=1e-6)


def flip_first_bit(tensor: torch.Tensor) -> torch.Tensor:
    flipped = tensor.clone()
    flipped.view(-1)[0] ^= 1
    return flipped


def with_first(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        changed = tensor.clone()
        changed.view(-1)[0] = value
        return changed

    return change


@pytest.mark.parametrize(
    ("suffix", "change", "sentence"),
    [
        ("salient_mask", flip_first_bit, "salient_mask must select 16 channels in each chunk; it selects"),
        ("scales", with_first(float("inf")), "scales must be finite"),
        ("scales", with_first(float("nan")), "scales must be finite"),
        ("channel_scales", with_first(0.0), "channel_scales must lie above 0 and at most 4"),
        ("channel_scales", with_first(-1.0), "channel_scales must lie above 0 and at most 4"),
        ("channel_scales", with_first(4.004), "channel_scales must lie above 0 and at most 4"),
        ("channel_scales", with_first(float("nan")), "channel_scales must lie above 0 and at most 4"),
        ("qweight", lambda tensor: tensor[:-1], "[24, 48] uint8 by config.json; the file has [23, 48] uint8"),
        ("qweight", lambda tensor: tensor.char(), "by config.json; the file has [24, 48] int8"),
        ("scales", lambda tensor: tensor.bfloat16(), "scales must be [24, 3] float16 by config.json"),
    ],
)  # fmt: skip
def test_damaged_tensor_is_refused(suffix: str, change: Callable[[torch.Tensor], torch.Tensor], sentence: str) -> None:
    weight_format = WeightFormat("columns", 0.25, 8)
    tensors = pack_linear(random_layer(weight_format), weight_format)

    damaged = tensors | {suffix: change(tensors[suffix])}

    with pytest.raises(BadInput, match=re.escape(sentence)):
        check_linear(damaged, weight_format, N, K)


def test_bits_moved_between_chunks_are_refused() -> None:
    """The total stays right, the chunks do not: a rank would get another number of salient channels."""
    weight_format = WeightFormat("columns", 0.25, 8)
    tensors = pack_linear(random_layer(weight_format), weight_format)
    mask = tensors["salient_mask"].view(8, -1).clone()
    mask[0], mask[1] = 0, 0
    mask[0, :2], mask[1, :2], mask[1, 2:4], mask[0, 2:4] = 255, 255, 0, 0
    mask[0, 2], mask[1, 0] = 255, 0

    with pytest.raises(BadInput, match="channels in each chunk"):
        check_linear(tensors | {"salient_mask": mask.flatten()}, weight_format, N, K)


def test_missing_tensor_is_refused() -> None:
    tensors = pack_linear(random_layer(WeightFormat()), WeightFormat())
    del tensors["scales"]

    with pytest.raises(BadInput, match="scales is missing"):
        check_linear(tensors, WeightFormat(), N, K)


def test_wrong_mask_of_elements_is_refused() -> None:
    weight_format = WeightFormat("elements", 0.25)
    tensors = pack_linear(random_layer(weight_format), weight_format)

    with pytest.raises(BadInput, match=r"salient_mask must select 3072 weights; it selects"):
        check_linear(tensors | {"salient_mask": flip_first_bit(tensors["salient_mask"])}, weight_format, N, K)
