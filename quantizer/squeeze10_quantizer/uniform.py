"""Uniform and 1-bit rounding of single rows, as the paper states them (Eq. 1-3)."""

import torch


def round_uniform(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Asymmetric min-max rounding of every row of `[N, K]` to `2^bits` levels (Eq. 1-2): the paper's first stage."""
    steps = (1 << bits) - 1
    low = weight.amin(1, keepdim=True)
    step = ((weight.amax(1, keepdim=True) - low) / steps).clamp(min=torch.finfo(weight.dtype).tiny)
    return ((weight - low) / step).round() * step + low


def binarize(weight: torch.Tensor) -> torch.Tensor:
    """`sign(w) mean|w|` of every row of `[N, K]` (Eq. 3); the sign of 0 is +1."""
    scale = weight.abs().mean(1, keepdim=True)
    return torch.where(weight >= 0, scale, -scale)
