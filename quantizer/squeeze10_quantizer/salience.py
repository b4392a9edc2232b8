"""Which weights stay at 4 bits: Hessian salience V, activation range B, and PBAR's M = V + λ B."""

from typing import Final

import torch

CANDIDATES: Final = 16
"""Largest and smallest outputs of a row that are tried first; they certify about 99 % of the ranges."""
ROWS: Final = 16
"""Rows at a time: bounds the memory of the tried outputs, `ROWS * 2 * CANDIDATES * K` floats."""
OUTPUT_ROWS: Final = 512
PAIRS: Final = 256


def hessian_salience(weight: torch.Tensor, inverse_hessian: torch.Tensor) -> torch.Tensor:
    """`V_ij = w_ij² / [H⁻¹]_jj²` (Eq. 5), `[N, K]` fp32."""
    return (weight.double() / inverse_hessian.diagonal()).square().float()


def activation_range(x: torch.Tensor, weight: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """`B_ij = max_t Z - min_t Z` with `Z_t = Y_ti + δ_ij X_tj` (Eq. 7), exact for every weight.

    Only tokens whose output lies near a row's extreme can set the range. The `CANDIDATES` largest and smallest
    are tried; a value is certified if no other token can exceed it even with the largest |X_tj|, and the rest
    is computed over all tokens.

    Args:
        x: Inputs X, `[T, K]` fp32.
        weight: `[N, K]` fp32; Y = X Wᵀ.
        delta: What binarizing each weight alone adds to it, `[N, K]`.

    Returns:
        `[N, K]` fp32.
    """
    # the range depends on the set of inputs only, and the first layer's inputs repeat with every token
    x = x.unique(dim=0)
    peak = x.abs().amax(0)  # [K]
    ranges = torch.empty_like(delta)
    for start in range(0, len(weight), OUTPUT_ROWS):
        outputs = weight[start : start + OUTPUT_ROWS] @ x.T  # [R, T]
        for part in range(0, len(outputs), ROWS):
            rows = slice(start + part, start + part + ROWS)
            ranges[rows] = range_of_rows(x, outputs[part : part + ROWS], delta[rows], peak)
    return ranges


def range_of_rows(x: torch.Tensor, outputs: torch.Tensor, delta: torch.Tensor, peak: torch.Tensor) -> torch.Tensor:
    """B for a few rows: outputs `[R, T]`, delta `[R, K]`, peak `[K]`; returns `[R, K]`."""
    count = min(CANDIDATES, outputs.shape[1])
    largest, at_largest = outputs.topk(count, dim=1)  # [R, C]
    smallest, at_smallest = outputs.topk(count, dim=1, largest=False)
    tokens = torch.cat((at_largest, at_smallest), dim=1)  # [R, 2C]
    changed = x[tokens].mul_(delta[:, None, :]).add_(outputs.gather(1, tokens)[:, :, None])  # [R, 2C, K]
    low, high = changed.aminmax(dim=1)  # [R, K]
    reach = delta.abs() * peak
    certified = (high >= largest[:, -1:] + reach) & (low <= smallest[:, -1:] - reach)
    ranges = high - low
    for pairs in (~certified).nonzero().split(PAIRS):
        row, channel = pairs.unbind(1)
        exact = x.T[channel].mul_(delta[row, channel, None]).add_(outputs[row])  # [P, T]
        low, high = exact.aminmax(dim=1)
        ranges[row, channel] = high - low
    return ranges


def choose_channels(salience: torch.Tensor, count: int, chunks: int) -> torch.Tensor:
    """The `count / chunks` channels of largest salience in each of `chunks` equal parts.

    Args:
        salience: `[K]`. Ties go to the lower channel.

    Returns:
        `[K]` bool.
    """
    parts = salience.view(chunks, -1)
    chosen = torch.zeros_like(parts, dtype=torch.bool)
    ranked = parts.argsort(dim=1, descending=True, stable=True)
    chosen.scatter_(1, ranked[:, : count // chunks], True)
    return chosen.view(-1)


def choose_elements(salience: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` weights of largest salience of a matrix `[N, K]`; ties go to the earlier one. `[N, K]` bool."""
    return choose_channels(salience.flatten(), count, chunks=1).view_as(salience)
