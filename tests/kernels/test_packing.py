"""Bytes of codes. A change of a golden byte is a new format version."""

import pytest
import torch

from squeeze10_kernels.packing import pack_bits, pack_nibbles, unpack_bits, unpack_nibbles

SHAPES = [
    pytest.param((1, 8), id="one_byte_of_bits"),
    pytest.param((3, 40), id="odd_rows"),
    pytest.param((4, 0), id="empty"),
    pytest.param((2, 3, 16), id="three_dimensions"),
    pytest.param((24,), id="one_dimension"),
]


def codes_of(shape: tuple[int, ...], top: int) -> torch.Tensor:
    return torch.randint(0, top + 1, shape, dtype=torch.uint8)


def test_bits_are_least_significant_first() -> None:
    bits = torch.tensor([1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1], dtype=torch.uint8)

    assert pack_bits(bits).tolist() == [0b00000001, 0b11000010]


def test_nibbles_are_low_first() -> None:
    codes = torch.tensor([0x1, 0xF, 0xA, 0x0], dtype=torch.uint8)

    assert pack_nibbles(codes).tolist() == [0xF1, 0x0A]


def test_bool_masks_pack_like_codes() -> None:
    mask = codes_of((5, 16), top=1)

    assert torch.equal(pack_bits(mask.bool()), pack_bits(mask))


@pytest.mark.parametrize("shape", SHAPES)
def test_bits_round_trip(shape: tuple[int, ...]) -> None:
    codes = codes_of(shape, top=1)

    packed = pack_bits(codes)

    assert packed.dtype == torch.uint8
    assert packed.shape == (*shape[:-1], shape[-1] // 8)
    assert torch.equal(unpack_bits(packed), codes)


@pytest.mark.parametrize("shape", SHAPES)
def test_nibbles_round_trip(shape: tuple[int, ...]) -> None:
    codes = codes_of(shape, top=15)

    packed = pack_nibbles(codes)

    assert packed.dtype == torch.uint8
    assert packed.shape == (*shape[:-1], shape[-1] // 2)
    assert torch.equal(unpack_nibbles(packed), codes)


def test_packing_leaves_its_input_alone() -> None:
    codes = codes_of((4, 16), top=1)
    before = codes.clone()

    pack_bits(codes).fill_(0xFF)
    pack_nibbles(codes).fill_(0xFF)

    assert torch.equal(codes, before)


def test_partial_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 8 to fill bytes; got 12"):
        pack_bits(codes_of((2, 12), top=1))
    with pytest.raises(ValueError, match="must be even to fill bytes; got 3"):
        pack_nibbles(codes_of((2, 3), top=15))
