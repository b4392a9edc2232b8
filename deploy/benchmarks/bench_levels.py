"""Other ways to spend the same bits: more levels of columns, and shares that differ from input to input.

    python deploy/benchmarks/bench_levels.py MODEL [--calibration FILE ...] [--every 3]

*Levels*: each input channel gets 0 to 4 bits by reverse water-filling, `b = c + log2(mean_n w² / [H⁻¹]) / 2`, at the
mean of 1.6 of the two levels; rounding goes from few bits to many, and each row has scales of its own for each level.
*Shares*: each input gets the share of 4-bit channels at which another channel gains the same everywhere, at the mean
of 20 % of all weights. Layer errors on every n-th layer, each matrix rounded by itself as in bench_starts.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from bench_sharing import Means, inputs_of_layers, read_job
from bench_starts import by_salience

from squeeze10_kernels import WeightFormat
from squeeze10_quantizer.gptq import RoundChannel, compensate
from squeeze10_quantizer.group import output_power, relative_error
from squeeze10_quantizer.hessian import compensation_factor, inverse
from squeeze10_quantizer.rounding import round_rows
from squeeze10_quantizer.salience import choose_channels
from squeeze10_quantizer.scales import fit_channel_scales

MEAN_BITS = 1.6
LEVELS = ((1, 4), (1, 2, 3, 4), (0, 1, 4), (0, 1, 2, 3, 4))
SHRINKS = tuple(shrink / 20 for shrink in range(5, 21))
SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)


def water_filled(score: torch.Tensor, levels: tuple[int, ...]) -> torch.Tensor:
    """Bits `[K]` of channels whose need, up to a constant, is `score`: the constant gives the mean."""
    allowed = torch.tensor(levels, dtype=torch.float32)
    low, high = -score.max() - 8, 8 - score.min()
    for _ in range(60):
        middle = (low + high) / 2
        bits = allowed[(score[:, None] + middle - allowed).abs().argmin(1)]
        low, high = (middle, high) if bits.mean() < MEAN_BITS else (low, middle)
    return allowed[(score[:, None] + low - allowed).abs().argmin(1)].int()


def grid(left: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Step and lowest level `[N]` of rows `[N, k]`: of some spans, the one that rounds best."""
    if bits == 0:
        return torch.ones(len(left)), torch.zeros(len(left))
    if bits == 1:
        size = left.abs().mean(1)
        return 2 * size, -size
    low, high = left.aminmax(dim=1)
    best = torch.full_like(low, torch.inf)
    step, start = torch.ones_like(low), low.clone()
    for shrink in SHRINKS:
        steps = ((high - low) * shrink / (2**bits - 1)).clamp(min=1e-8)
        begin = low * shrink
        codes = ((left - begin[:, None]) / steps[:, None]).round().clamp(0, 2**bits - 1)
        error = (codes * steps[:, None] + begin[:, None] - left).square().sum(1)
        better = error < best
        best, step, start = (
            torch.where(better, new, old) for new, old in ((error, best), (steps, step), (begin, start))
        )
    return step, start


def rounder(given: torch.Tensor, left: torch.Tensor, bits: int) -> RoundChannel:
    """Rounds channels to the grids of `left`, and keeps what they became in `given`, `[K, N]`."""
    step, low = grid(left, bits)

    def round_channel(weights: torch.Tensor, place: int) -> torch.Tensor:
        given[place] = ((weights - low) / step).round().clamp(0, 2**bits - 1) * step + low
        return given[place]

    return round_channel


def refitted(rounded: torch.Tensor, target: torch.Tensor, bits: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """The same codes under the row scales that are best: for each level a factor and, above one bit, an offset."""
    parts = [rounded * (bits == level) for level in bits.unique() if level > 0]
    parts += [(bits == level).expand_as(rounded).float() for level in bits.unique() if level > 1]
    basis = torch.stack(parts, dim=1).double()  # [N, P, K]
    seen = basis @ hessian.double()
    system, wanted = seen @ basis.mT, seen @ target.double()[:, :, None]  # [N, P, P], [N, P, 1]
    unit = system.diagonal(dim1=1, dim2=2).clamp(min=1e-30).rsqrt()
    factors = torch.linalg.pinv(system * unit[:, :, None] * unit[:, None], rtol=1e-5) @ (wanted * unit[:, :, None])
    return (factors[:, :, 0] * unit)[:, None].matmul(basis)[:, 0].float()


def error_of_levels(weight: torch.Tensor, hessian: torch.Tensor, damp_ratio: float, levels: tuple[int, ...]) -> float:
    """Relative output error of a matrix whose channels have these widths."""
    inverse_hessian, scale = inverse(hessian, damp_ratio), fit_channel_scales(weight).float()
    score = (weight.square().mean(0) / inverse_hessian.diagonal()).log2().float() / 2
    bits = water_filled(score, levels)
    order = bits.argsort(stable=True)
    channels = (weight / scale)[:, order].T.contiguous()
    factor = compensation_factor(inverse_hessian / scale.double().outer(scale.double()), order)
    given, end = torch.zeros_like(channels), 0
    for level in levels:
        begin, end = end, end + int((bits == level).sum())
        if begin < end:
            compensate(channels, factor, range(begin, end), rounder(given, channels[begin:end].T, level))
    rounded = torch.empty_like(given)
    rounded[order] = given
    fitted = refitted(rounded.T, weight / scale, bits, hessian * scale.outer(scale)) * scale
    return output_power(fitted - weight, hessian) / output_power(weight, hessian)


@dataclass
class Curve:
    """Layer errors of the matrices of one input by share, and the weights that they are of."""

    size: int
    errors: list[dict[str, float]]

    def total(self, at: int) -> float:
        return sum(self.errors[at].values())


def errors_by_share(weights: dict[str, torch.Tensor], hessian: torch.Tensor, damp_ratio: float) -> Curve:
    """At each of `SHARES`, channels and scales chosen for all matrices of the input together, as in the format."""
    inverse_hessian, stack = inverse(hessian, damp_ratio), torch.cat(list(weights.values()))
    scores, scales, K = by_salience(stack, hessian, inverse_hessian), fit_channel_scales(stack), len(hessian)
    curve = Curve(stack.numel(), [])
    for share in SHARES:
        salient = choose_channels(scores, WeightFormat(salient_ratio=share).salient_channels(K), 1)
        layers = {name: round_rows(w, w, salient, scales, hessian, inverse_hessian) for name, w in weights.items()}
        curve.errors.append({name: relative_error(weights[name], layer, hessian) for name, layer in layers.items()})
    return curve


def shared_out(curves: list[Curve], mean_share: float) -> list[int]:
    """Places in `SHARES`: from the least on, the step that gains most for its bits, until the mean is reached."""
    chosen, room = [0] * len(curves), mean_share * sum(curve.size for curve in curves)
    used = sum(SHARES[0] * curve.size for curve in curves)

    def gain(i: int) -> float:
        at = chosen[i]
        if at + 1 == len(SHARES) or used + cost(i) > room:
            return 0
        return (curves[i].total(at) - curves[i].total(at + 1)) / cost(i)

    def cost(i: int) -> float:
        return (SHARES[chosen[i] + 1] - SHARES[chosen[i]]) * curves[i].size

    while gain(best := max(range(len(curves)), key=gain)):
        used += cost(best)
        chosen[best] += 1
    return chosen


def add_shares(table: Means, curves: list[Curve]) -> Iterator[str]:
    """Add the errors of equal and of chosen shares; what was chosen, line by line."""
    equal, chosen = SHARES.index(0.2), shared_out(curves, 0.2)
    for curve, at in zip(curves, chosen, strict=True):
        for variant, place in (("share 0.2 everywhere", equal), ("shares by what they gain", at)):
            for name, error in curve.errors[place].items():
                table.add(variant, name, error)
        yield f"{', '.join(curve.errors[0])}: {SHARES[at]}"
    used = sum(SHARES[at] * curve.size for curve, at in zip(curves, chosen, strict=True))
    yield f"mean share {used / sum(curve.size for curve in curves):.4f}"


def main() -> None:
    job, every = read_job(__doc__)
    table, curves = Means(), []
    for weights, hessian in inputs_of_layers(job, every):
        for name, weight in weights.items():
            for levels in LEVELS:
                table.add(f"levels {levels}", name, error_of_levels(weight, hessian, job.recipe.damp_ratio, levels))
        curves.append(errors_by_share(weights, hessian, job.recipe.damp_ratio))
        print(f"{len(curves)} inputs", flush=True)
    print(*add_shares(table, curves), sep="\n")
    table.print()


if __name__ == "__main__":
    main()
