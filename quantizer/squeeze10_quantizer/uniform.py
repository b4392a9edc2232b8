"""4-bit and 1-bit rounding of single rows, as the paper states them (Eq. 1-3)."""

import torch

LEVELS = 15


def round_to_4_bits(weight: torch.Tensor) -> torch.Tensor:
    """Asymmetric min-max rounding of every row of `[N, K]` to 16 levels (Eq. 1-2): the paper's first stage."""
    low = weight.amin(1, keepdim=True)
    step = ((weight.amax(1, keepdim=True) - low) / LEVELS).clamp(min=torch.finfo(weight.dtype).tiny)
    return ((weight - low) / step).round() * step + low


def binarize(weight: torch.Tensor) -> torch.Tensor:
    """`sign(w) mean|w|` of every row of `[N, K]` (Eq. 3); the sign of 0 is +1."""
    scale = weight.abs().mean(1, keepdim=True)
    return torch.where(weight >= 0, scale, -scale)
