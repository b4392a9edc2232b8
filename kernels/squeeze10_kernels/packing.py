"""Bytes of 1-bit and 4-bit codes. Pure torch, any device."""

import torch


def pack_bits(bits: torch.Tensor) -> torch.Tensor:
    """Pack 0/1 codes along the last dimension, least significant bit first.

    Args:
        bits: Codes, `[..., n]` bool or uint8 in {0, 1}; n a multiple of 8.

    Returns:
        Bytes, `[..., n // 8]` uint8; bit `j` of byte `i` is code `8 i + j`.
    """
    if bits.shape[-1] % 8:
        raise ValueError(f"The last dimension must be a multiple of 8 to fill bytes; got {bits.shape[-1]}.")
    octets = bits.to(torch.uint8).unflatten(-1, (bits.shape[-1] // 8, 8))
    packed: torch.Tensor = octets[..., 0].clone()
    for j in range(1, 8):
        packed |= octets[..., j] << j
    return packed


def unpack_bits(packed: torch.Tensor) -> torch.Tensor:
    """Inverse of `pack_bits`: `[..., n // 8]` uint8 to `[..., n]` uint8 in {0, 1}."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits: torch.Tensor = packed.unsqueeze(-1) >> shifts & 1
    return bits.flatten(-2)


def pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """Pack 4-bit codes along the last dimension, low nibble first.

    Args:
        codes: Codes, `[..., n]` uint8 in 0..15; n even.

    Returns:
        Bytes, `[..., n // 2]` uint8; the low nibble of byte `i` is code `2 i`.
    """
    if codes.shape[-1] % 2:
        raise ValueError(f"The last dimension must be even to fill bytes; got {codes.shape[-1]}.")
    return codes[..., 0::2] | codes[..., 1::2] << 4


def unpack_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """Inverse of `pack_nibbles`: `[..., n // 2]` uint8 to `[..., n]` uint8 in 0..15."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)
