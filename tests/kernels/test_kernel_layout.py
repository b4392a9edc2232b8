"""The kernel layout holds every code once, at the place that the kernel expects."""

import pytest
import torch
from random_layers import random_layer

from squeeze10_kernels import QuantizedLinear
from squeeze10_kernels.kernel_layout import NO_CHANNEL, from_kernel_layout, to_kernel_layout


def words_of_one_code(row: int, channel: int, code: int, channels: int, salient: bool) -> torch.Tensor:
    """Words of 16 rows in which all codes are zero but one."""
    codes = torch.zeros(16, channels, dtype=torch.uint8)
    codes[row, channel] = code
    is_salient = torch.full((channels,), salient)
    layer = QuantizedLinear(codes, is_salient, torch.zeros(16, 3).half(), torch.ones(channels).half())
    return to_kernel_layout(layer).words


@pytest.mark.parametrize(("N", "K"), [(1, 8), (16, 256), (17, 264), (40, 1000), (24, 4096)])
@pytest.mark.parametrize("ratio", [0, 0.2, 1])
def test_round_trip(N: int, K: int, ratio: float) -> None:
    layer = random_layer(N, K, int(ratio * K))

    back = from_kernel_layout(to_kernel_layout(layer))

    for field in ("codes", "salient", "scales", "channel_scales"):
        assert torch.equal(getattr(back, field), getattr(layer, field)), field


def test_channels_are_binary_then_salient_ascending_and_padded() -> None:
    layer = random_layer(4, 300, 100)

    packed = to_kernel_layout(layer)

    binary, salient = packed.channels.split([256, 128])
    assert binary.tolist() == torch.nonzero(~layer.salient).flatten().tolist() + [NO_CHANNEL] * 56
    assert salient.tolist() == torch.nonzero(layer.salient).flatten().tolist() + [NO_CHANNEL] * 28
    assert (packed.binary_units, packed.salient_units) == (1, 2)


@pytest.mark.parametrize(
    ("row", "channel", "halfword", "bit"),
    [
        pytest.param(0, 0, 0, 0, id="first"),
        pytest.param(0, 1, 1, 0, id="pair_is_the_other_half_of_the_word"),
        pytest.param(0, 2, 0, 1, id="second_half_of_a_tile"),
        pytest.param(0, 4, 8, 0, id="next_lane"),
        pytest.param(8, 0, 0, 8, id="lower_half_of_the_rows"),
        pytest.param(0, 16, 0, 2, id="next_tile"),
        pytest.param(0, 64, 2, 0, id="next_word"),
        pytest.param(1, 0, 32, 0, id="next_row"),
        pytest.param(15, 255, 255, 15, id="last"),
    ],
)
def test_place_of_a_binary_code(row: int, channel: int, halfword: int, bit: int) -> None:
    words = words_of_one_code(row, channel, 1, 256, salient=False).flatten().int() & 0xFFFF

    assert torch.nonzero(words).flatten().tolist() == [halfword]
    assert words[halfword] == 1 << bit


@pytest.mark.parametrize(
    ("row", "channel", "word", "bit"),
    [
        pytest.param(0, 0, 0, 3, id="first"),
        pytest.param(0, 1, 0, 19, id="pair_is_16_bits_higher"),
        pytest.param(0, 2, 0, 11, id="second_half_of_a_tile"),
        pytest.param(0, 4, 4, 3, id="next_lane"),
        pytest.param(0, 16, 1, 3, id="next_tile"),
        pytest.param(8, 0, 0, 7, id="lower_half_of_the_rows"),
        pytest.param(8, 2, 0, 15, id="fourth_nibble_crosses_the_halves"),
    ],
)
def test_place_of_a_salient_code(row: int, channel: int, word: int, bit: int) -> None:
    words = words_of_one_code(row, channel, 15, 64, salient=True).view(torch.int32).flatten()

    assert torch.nonzero(words).flatten().tolist() == [word]
    assert words[word] == 15 << bit
