"""The layout that the kernels read, made from the canonical one at load time and turned back exactly.

Mask `columns` only. The binary channels come first, ascending, padded to whole units of 256; then the salient
channels, ascending, padded to whole units of 64. A unit of 16 rows is 512 bytes in either class: four 32-bit words for
each of the 32 lanes of a warp, in the order in which a tensor core wants the left operand of 16 rows by 16 channels. So
a lane loads its 16 bytes at once and unpacks them in place.
"""

from dataclasses import dataclass
from typing import Final

import torch

from squeeze10_kernels.linear import QuantizedLinear

ROWS: Final = 16
"""Rows of a unit: those of one tensor core tile."""
BINARY_UNIT: Final = 256
SALIENT_UNIT: Final = 64
UNIT_HALFWORDS: Final = 256
"""16-bit halves of the 128 words of a unit."""
NO_CHANNEL: Final = -1
"""In `PackedLinear.channels`: a padding channel, whose activation is zero."""


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A layer `[N, K]` as the kernels read it.

    Attributes:
        words: `[U, ceil(N / 16), 256]` int16: the binary units, then the salient ones. A unit is
            `[8 rows, 4 lanes, 4 words, 2 halves]`.
        scales: `[N, 3]` fp16: s1, s4, z4.
        channels: `[256 U1 + 64 U4]` int32: the input channel of every kernel channel, or -1.
        channel_scales: `[K]` fp16.
        binary_units: U1.
    """

    words: torch.Tensor
    scales: torch.Tensor
    channels: torch.Tensor
    channel_scales: torch.Tensor
    binary_units: int

    @property
    def salient_units(self) -> int:
        """U4."""
        return self.words.shape[0] - self.binary_units

    @property
    def out_features(self) -> int:
        """N."""
        return self.scales.shape[0]

    @property
    def in_features(self) -> int:
        """K."""
        return self.channel_scales.shape[0]


def to_kernel_layout(layer: QuantizedLinear) -> PackedLinear:
    """Kernel layout of a layer under mask `columns`."""
    if layer.salient.ndim != 1:
        raise ValueError("to_kernel_layout takes a layer under mask columns; salient must be [K].")
    binary = _padded(torch.nonzero(~layer.salient).flatten(), BINARY_UNIT)
    salient = _padded(torch.nonzero(layer.salient).flatten(), SALIENT_UNIT)
    words = torch.cat((_pack_binary(_columns(layer.codes, binary)), _pack_salient(_columns(layer.codes, salient))))
    channels = torch.cat((binary, salient)).int()
    return PackedLinear(words, layer.scales, channels, layer.channel_scales, len(binary) // BINARY_UNIT)


def from_kernel_layout(packed: PackedLinear) -> QuantizedLinear:
    """Inverse of `to_kernel_layout`."""
    N, K, U1 = packed.out_features, packed.in_features, packed.binary_units
    codes = torch.cat(
        (_unpack_binary(packed.words[:U1]), _unpack_salient(packed.words[U1:])), dim=1
    )  # [16 T, channels]
    real = packed.channels != NO_CHANNEL
    channels = packed.channels[real].long()
    layer_codes = torch.empty(N, K, dtype=torch.uint8, device=codes.device)
    layer_codes[:, channels] = codes[:N, real]
    salient = torch.zeros(K, dtype=torch.bool, device=codes.device)
    salient[packed.channels[U1 * BINARY_UNIT :][real[U1 * BINARY_UNIT :]].long()] = True
    return QuantizedLinear(layer_codes, salient, packed.scales, packed.channel_scales)


def _padded(channels: torch.Tensor, unit: int) -> torch.Tensor:
    return torch.nn.functional.pad(channels, (0, -len(channels) % unit), value=NO_CHANNEL)


def _columns(codes: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
    """Codes of `channels`, zero where padded, rows padded to whole units. `[16 T, len(channels)]`."""
    chosen = codes[:, channels.clamp(min=0)] * (channels != NO_CHANNEL)
    return torch.nn.functional.pad(chosen, (0, 0, 0, -len(codes) % ROWS))


# A channel of a unit is (word, step, lane, half k, pair) for 1 bit and (step, lane, half k, pair) for 4 bits: a lane
# holds four channels in a row, of which a tensor core tile takes two in either half of its k; a row is (half row, row).


def _pack_binary(bits: torch.Tensor) -> torch.Tensor:
    """`[16 T, 256 U]` to `[U, T, 256]`; bit 8 half row + 2 step + half k of the half-word pair."""
    tiles, units = bits.shape[0] // ROWS, bits.shape[1] // BINARY_UNIT
    fields = bits.view(tiles, 2, 8, units, 4, 4, 4, 2, 2)  # tile, half row, row, unit, word, step, lane, half k, pair
    fields = fields.permute(3, 0, 2, 6, 4, 8, 1, 5, 7).reshape(units, tiles, UNIT_HALFWORDS, 16)
    return _gather_bits(fields, width=1)


def _unpack_binary(words: torch.Tensor) -> torch.Tensor:
    units, tiles = words.shape[:2]
    fields = _scatter_bits(words, width=1).view(units, tiles, 8, 4, 4, 2, 2, 4, 2)
    return fields.permute(1, 6, 2, 0, 4, 7, 3, 8, 5).reshape(tiles * ROWS, units * BINARY_UNIT)


def _pack_salient(codes: torch.Tensor) -> torch.Tensor:
    """`[16 T, 64 U]` to `[U, T, 256]`; nibble 2 half k + half row, every word rotated left by 3."""
    tiles, units = codes.shape[0] // ROWS, codes.shape[1] // SALIENT_UNIT
    fields = codes.view(tiles, 2, 8, units, 4, 4, 2, 2)  # tile, half row, row, unit, step, lane, half k, pair
    fields = fields.permute(3, 0, 2, 5, 4, 7, 6, 1).reshape(units, tiles, UNIT_HALFWORDS, 4)
    return _rotate_left(_gather_bits(fields, width=4), 3)


def _unpack_salient(words: torch.Tensor) -> torch.Tensor:
    units, tiles = words.shape[:2]
    fields = _scatter_bits(_rotate_left(words, 29), width=4).view(units, tiles, 8, 4, 4, 2, 2, 2)
    return fields.permute(1, 7, 2, 0, 4, 3, 6, 5).reshape(tiles * ROWS, units * SALIENT_UNIT)


def _gather_bits(fields: torch.Tensor, width: int) -> torch.Tensor:
    """`[..., 16 / width]` uint8 to `[...]` int16, lowest field first."""
    words = torch.zeros(fields.shape[:-1], dtype=torch.int16, device=fields.device)
    for i in range(fields.shape[-1]):
        words |= fields[..., i].to(torch.int16) << (i * width)
    return words


def _scatter_bits(words: torch.Tensor, width: int) -> torch.Tensor:
    """Inverse of `_gather_bits`."""
    shifts = torch.arange(0, 16, width, dtype=torch.int16, device=words.device)
    return (words.unsqueeze(-1) >> shifts & (1 << width) - 1).to(torch.uint8)


def _rotate_left(halfwords: torch.Tensor, amount: int) -> torch.Tensor:
    """Rotate the 32-bit words that pairs of half-words make, low half first."""
    words = halfwords.contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    rotated = (words << amount | words >> (32 - amount)) & 0xFFFFFFFF
    return rotated.to(torch.int32).view(torch.int16)
