"""Better starting points for tuning at the same bits: what each does to the layer error, on every n-th layer.

    python deploy/benchmarks/bench_starts.py MODEL [--calibration FILE ...] [--every 3]

Coordinate descent goes over the channels after rounding: each takes the code that is best while all others stay, and
after every pass the row scales are fitted again. A rotation multiplies weights by an orthogonal matrix of the input
channels, which a server would have to apply to the activations.
"""

from collections.abc import Callable, Iterator

import torch
from bench_sharing import Means, inputs_of_layers, read_job

from squeeze10_kernels import QuantizedLinear, WeightFormat
from squeeze10_kernels.format import SALIENT_OFFSET
from squeeze10_quantizer.group import relative_error
from squeeze10_quantizer.hessian import inverse
from squeeze10_quantizer.rounding import round_rows
from squeeze10_quantizer.salience import choose_channels, hessian_salience
from squeeze10_quantizer.scales import fit_channel_scales, refit_row_scales

Choice = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Weights `[N, K]`, Hessian, its inverse to scores of the channels `[K]`."""


def by_salience(weight: torch.Tensor, _: torch.Tensor, inverse_hessian: torch.Tensor) -> torch.Tensor:
    """V summed over the rows: what is used."""
    return hessian_salience(weight, inverse_hessian).sum(0)


def by_power(weight: torch.Tensor, hessian: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """H_jj |w_j|²."""
    return hessian.diagonal() * weight.square().sum(0)


def by_input(_: torch.Tensor, hessian: torch.Tensor, __: torch.Tensor) -> torch.Tensor:
    """H_jj alone, as PTQ1.61 chooses."""
    return hessian.diagonal()


def rounded(weight: torch.Tensor, hessian: torch.Tensor, choice: Choice, damp_ratio: float) -> QuantizedLinear:
    """As the quantizer rounds, with any choice of channels."""
    inverse_hessian = inverse(hessian, damp_ratio)
    scores = choice(weight, hessian, inverse_hessian)
    salient = choose_channels(scores, WeightFormat().salient_channels(len(hessian)), 1)
    return round_rows(weight, weight, salient, fit_channel_scales(weight), hessian, inverse_hessian)


def descended(layer: QuantizedLinear, weight: torch.Tensor, hessian: torch.Tensor) -> QuantizedLinear:
    """One pass of coordinate descent over the channels, then new row scales."""
    scale = layer.channel_scales.float()
    target, hessian = weight / scale, hessian * scale.outer(scale)
    s1, s4, z4 = layer.scales.float().split(1, dim=1)
    codes = layer.codes.float()
    value = torch.where(layer.salient, (codes - SALIENT_OFFSET) * s4 + z4, (2 * codes - 1) * s1)
    pull = (target - value) @ hessian  # [N, K]
    for j in range(len(hessian)):
        best = value[:, j] + pull[:, j] / hessian[j, j].clamp(min=1e-12)
        if layer.salient[j]:
            step = torch.where(s4 == 0, 1.0, s4)[:, 0]
            codes[:, j] = ((best - z4[:, 0]) / step).round().add(SALIENT_OFFSET).clamp(0, 15)
            new = (codes[:, j] - SALIENT_OFFSET) * s4[:, 0] + z4[:, 0]
        else:
            codes[:, j] = (best * s1[:, 0] >= 0).float()
            new = (2 * codes[:, j] - 1) * s1[:, 0]
        pull -= (new - value[:, j])[:, None] * hessian[j]
        value[:, j] = new
    stored = codes.to(torch.uint8)
    scales = refit_row_scales(target, stored, layer.salient, hessian)
    return QuantizedLinear(stored, layer.salient, scales, layer.channel_scales)


def rotation(K: int) -> torch.Tensor:
    """Blocks of the largest Hadamard matrix that divides K, with random signs, `[K, K]`."""
    size = K & -K
    block = torch.ones(1, 1)
    while len(block) < size:
        block = torch.cat((torch.cat((block, block), 1), torch.cat((block, -block), 1)))
    signs = torch.randint(0, 2, (K,), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    return torch.block_diag(*[block / size**0.5] * (K // size)) * signs


def errors(weight: torch.Tensor, hessian: torch.Tensor, damp_ratio: float) -> Iterator[tuple[str, float]]:
    """Relative output error of a matrix by variant."""
    start = layer = rounded(weight, hessian, by_salience, damp_ratio)
    yield "as it is", relative_error(weight, start, hessian)
    for number in range(1, 9):
        layer = descended(layer, weight, hessian)
        if number in (1, 2, 4, 8):
            yield f"coordinate descent, passes: {number}", relative_error(weight, layer, hessian)
    for choice in (by_power, by_input):
        name = f"channels {choice.__name__.replace('_', ' ')}"
        yield name, relative_error(weight, rounded(weight, hessian, choice, damp_ratio), hessian)
    turn = rotation(len(hessian))
    turned, seen = weight @ turn.T, turn @ hessian @ turn.T
    yield (
        "Hadamard",
        relative_error(turned, rounded(turned, seen, by_salience, damp_ratio), seen),
    )


def main() -> None:
    job, every = read_job(__doc__)
    table = Means()
    for weights, hessian in inputs_of_layers(job, every):
        for name, weight in weights.items():
            for variant, error in errors(weight, hessian, job.recipe.damp_ratio):
                table.add(variant, name, error)
    table.print()


if __name__ == "__main__":
    main()
