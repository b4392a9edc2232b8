"""Whether a launch on this GPU, under this Triton, gave what the layer means: a check for the time of loading."""

from typing import Final

import torch

from squeeze10_kernels.errors import BadInput
from squeeze10_kernels.kernel_layout import ROWS, PackedLinear, from_kernel_layout
from squeeze10_kernels.reference import mixed_linear_reference

MAX_ERROR: Final = 1e-2
"""Relative; rounding the output to bf16 alone makes 1.7e-3."""
TOKENS: Final = 64
TINY: Final = 1e-8
"""The kernels multiply and divide by 2^-60 where a scale is 0, so that zero weights give almost, not quite, zero."""


def spot_check(y: torch.Tensor, x: torch.Tensor, packed: PackedLinear, bias: torch.Tensor | None = None) -> None:
    """Compare the first and the last rows of a layer with the reference, for the last tokens.

    Args:
        y: `[M, N]`, what the kernels made of x.
        x: `[M, K]`.
        bias: `[N]` or None.

    Raises:
        BadInput: The relative error is not below `MAX_ERROR`.
    """
    N, tiles = packed.out_features, packed.words.shape[1]
    ends = sorted({0, tiles - 1})
    rows = torch.cat([torch.arange(ROWS * tile, min(ROWS * tile + ROWS, N), device=y.device) for tile in ends])
    some = PackedLinear(
        packed.words[:, ends], packed.scales[rows], packed.channels, packed.channel_scales, packed.binary_units
    )
    own = None if bias is None else bias[rows]
    expected = mixed_linear_reference(x[-TOKENS:], from_kernel_layout(some), own).float()
    error = float((y[-TOKENS:, rows].float() - expected).norm() / expected.norm().clamp(min=TINY))
    if not error < MAX_ERROR:
        raise BadInput(
            f"The kernels are wrong on this GPU: {len(x)} tokens through a layer {[N, packed.in_features]} have the "
            f"relative error {error:.1e}, which must be below {MAX_ERROR:g}. Do not serve here; report it with the "
            "output of `squeeze10 doctor`."
        )
