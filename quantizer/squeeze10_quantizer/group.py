"""Quantize the linears that read one input: salience, one choice, one set of channel scales, rounding."""

from dataclasses import dataclass

import torch

from squeeze10_kernels import QuantizedLinear, WeightFormat, dequantize
from squeeze10_quantizer.hessian import inverse
from squeeze10_quantizer.recipe import Recipe
from squeeze10_quantizer.rounding import round_rows
from squeeze10_quantizer.salience import activation_range, choose_channels, choose_elements, hessian_salience
from squeeze10_quantizer.scales import fit_channel_scales
from squeeze10_quantizer.uniform import binarize, round_to_4_bits


@dataclass(frozen=True, slots=True)
class InputGroup:
    """Linears with one input.

    Attributes:
        weights: Name to weight `[N, K]` fp32.
        hessian: `[K, K]` fp32.
        x: Inputs of the tokens over which output ranges are taken, `[T, K]` fp32; empty without PBAR.
    """

    weights: dict[str, torch.Tensor]
    hessian: torch.Tensor
    x: torch.Tensor


@dataclass(frozen=True, slots=True)
class Quantized:
    """A quantized linear and its relative output error `|ΔW X|² / |W X|²` on the calibration tokens, if measured."""

    layer: QuantizedLinear
    error: float | None


def quantize_group(group: InputGroup, recipe: Recipe, weight_format: WeightFormat) -> dict[str, Quantized]:
    """Quantize the linears of one input; name to result."""
    weight = torch.cat(list(group.weights.values()))  # [ΣN, K]
    sizes = [len(part) for part in group.weights.values()]
    inverse_hessian = inverse(group.hessian, recipe.damp_ratio)
    start = round_to_4_bits(weight) if recipe.staged else weight
    scores = salience_scores(start, inverse_hessian, group.x, recipe)
    layer = round_rows(
        weight,
        start,
        choose_salient(scores, sizes, weight_format),
        fit_channel_scales(weight),
        group.hessian,
        inverse_hessian if recipe.compensate else None,
    )
    parts = zip(group.weights, split_rows(layer, sizes), strict=True)
    return {name: Quantized(part, relative_error(group.weights[name], part, group.hessian)) for name, part in parts}


def salience_scores(
    start: torch.Tensor, inverse_hessian: torch.Tensor, x: torch.Tensor, recipe: Recipe
) -> torch.Tensor:
    """M = V + λ B (Eq. 8), or V alone without PBAR; `[N, K]`."""
    scores = hessian_salience(start, inverse_hessian)
    if recipe.pbar:
        scores += recipe.pbar_weight * activation_range(x, start, binarize(start) - start)
    return scores


def choose_salient(scores: torch.Tensor, sizes: list[int], weight_format: WeightFormat) -> torch.Tensor:
    """Columns: one `[K]` choice from the scores summed over all rows. Elements: `[ΣN, K]`, matrix by matrix."""
    K = scores.shape[1]
    if weight_format.mask == "columns":
        return choose_channels(scores.sum(0), weight_format.salient_channels(K), weight_format.chunks)
    return torch.cat(
        [choose_elements(part, weight_format.salient_weights(*part.shape)) for part in scores.split(sizes)]
    )


def split_rows(layer: QuantizedLinear, sizes: list[int]) -> list[QuantizedLinear]:
    """The matrices of a stack of rows."""
    salient = [layer.salient] * len(sizes) if layer.salient.ndim == 1 else layer.salient.split(sizes)
    parts = zip(layer.codes.split(sizes), salient, layer.scales.split(sizes), strict=True)
    return [QuantizedLinear(codes, mask, scales, layer.channel_scales) for codes, mask, scales in parts]


def relative_error(weight: torch.Tensor, layer: QuantizedLinear, hessian: torch.Tensor) -> float:
    """`|ΔW X|² / |W X|²`, from `H ∝ X Xᵀ`; 0 for a layer without output."""
    power = output_power(weight, hessian)
    return output_power(dequantize(layer) - weight, hessian) / power if power else 0.0


def output_power(weight: torch.Tensor, hessian: torch.Tensor) -> float:
    """`|W X|²` up to a factor that does not depend on W."""
    return float(((weight @ hessian).double() * weight).sum())
