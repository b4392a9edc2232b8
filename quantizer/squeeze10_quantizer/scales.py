"""Rank-1 scales: one per input channel, three per row; first guesses and the closed-form refit."""

from typing import Final

import torch

from squeeze10_kernels.format import MAX_CHANNEL_SCALE, SALIENT_OFFSET

ALTERNATIONS: Final = 4
SMALLEST_STEP: Final = 1e-8
"""Keeps the division finite for a row whose salient weights are all equal."""
MIN_CHANNEL_SCALE: Final = 1 / MAX_CHANNEL_SCALE
COLLINEAR: Final = 1e-5
"""Eigenvalues of a row's system with unit diagonal that are smaller, relative to the largest, are fp32's rounding.

On SmolLM2 that is at most 1.3e-6; the smallest that means something has 9.8e-5 (`down_proj` of layer 11, columns).
"""


def fit_channel_scales(weight: torch.Tensor) -> torch.Tensor:
    """c of the best rank-1 approximation `|w_ij| ≈ r_i c_j`, geometric mean 1, `[K]` fp16.

    Args:
        weight: `[N, K]` fp32: all rows that read this input.
    """
    magnitude = weight.abs()
    scales = torch.ones(weight.shape[1], device=weight.device)
    for _ in range(ALTERNATIONS):
        rows = magnitude @ scales
        scales = rows @ magnitude
        scales = scales / scales.mean()
    # a channel of zeros has no scale of its own
    return bounded(torch.where(torch.isfinite(scales) & (scales > 0), scales, 1.0))


def bounded(scales: torch.Tensor) -> torch.Tensor:
    """Positive channel scales with geometric mean 1, within the format's bounds, fp16."""
    scales = scales / scales.log().mean().exp()
    return scales.clamp(MIN_CHANNEL_SCALE, MAX_CHANNEL_SCALE).half()


def binary_scale(weight: torch.Tensor, salient: torch.Tensor) -> torch.Tensor:
    """Mean magnitude of each row's non-salient weights, `[N]`; 0 for a row that has none."""
    binary = (~salient).expand_as(weight)
    return (weight.abs() * binary).sum(1) / binary.sum(1).clamp(min=1)


def salient_scales(weight: torch.Tensor, salient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Step s4 and offset z4, `[N]` each, so that codes 0..15 span each row's salient weights."""
    low = torch.where(salient, weight, torch.inf).amin(1)
    high = torch.where(salient, weight, -torch.inf).amax(1)
    low, high = (torch.where(torch.isfinite(edge), edge, 0.0) for edge in (low, high))
    step = ((high - low) / 15).clamp(min=SMALLEST_STEP)
    return step, low + SALIENT_OFFSET * step


def refit_row_scales(
    weight: torch.Tensor, codes: torch.Tensor, salient: torch.Tensor, hessian: torch.Tensor
) -> torch.Tensor:
    """s1, s4, z4 of every row that minimise the output error for given codes: a 3x3 system per row.

    Args:
        weight: Target `[N, K]`, divided by the channel scales.
        codes: `[N, K]` uint8.
        salient: `[K]` or `[N, K]` bool.
        hessian: `[K, K]`, channel scales multiplied in.

    Returns:
        `[N, 3]` fp16.
    """
    values = codes.float()
    rows = salient.expand_as(weight)
    basis = torch.stack(
        (
            torch.where(rows, 0.0, 2 * values - 1),
            torch.where(rows, values - SALIENT_OFFSET, 0.0),
            rows.float(),
        ),
        dim=1,
    )  # [N, 3, K]
    weighted = basis @ hessian  # [N, 3, K]
    system = (weighted @ basis.transpose(1, 2)).double()  # [N, 3, 3]
    target = (weighted @ weight[:, :, None]).double()  # [N, 3, 1]
    return solve_rows(system, target)[:, :, 0].half()


def solve_rows(system: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Least-squares solutions of many 3x3 systems, `[N, 3, 1]` fp64.

    A class without weights, and salient weights that all have one code, leave a system singular: the scales of the
    first become 0, and s4 and z4 of the second share what one of them could do.
    """
    norms = system.diagonal(dim1=1, dim2=2).sqrt()[:, :, None]  # [N, 3, 1]
    norms = torch.where(norms > 0, norms, 1.0)
    alike = system / (norms * norms.mT)
    solution: torch.Tensor = torch.linalg.pinv(alike, rtol=COLLINEAR, hermitian=True) @ (target / norms)
    return solution / norms
