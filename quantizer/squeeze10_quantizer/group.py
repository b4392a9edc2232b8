"""Quantize the linears that read one input: salience, one choice, one set of channel scales, rounding."""

from dataclasses import dataclass
from functools import cached_property

import torch

from squeeze10_kernels import BadInput, QuantizedLinear, WeightFormat, dequantize
from squeeze10_kernels.format import SALIENT_BITS
from squeeze10_kernels.reference import sum_parts
from squeeze10_quantizer.hessian import damped_inverse
from squeeze10_quantizer.recipe import Recipe
from squeeze10_quantizer.rounding import round_rows
from squeeze10_quantizer.salience import activation_range, choose_channels, choose_elements, hessian_salience
from squeeze10_quantizer.scales import fit_channel_scales
from squeeze10_quantizer.uniform import binarize, round_uniform


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
    """A quantized linear.

    Attributes:
        error: Its relative output error `|ΔW X|² / |W X|²` on the calibration tokens, if measured.
        raised_damping: Of its Hessian, in mean diagonals; None if the recipe's was enough.
    """

    layer: QuantizedLinear
    error: float | None
    raised_damping: float | None = None


class Start:
    """Weights that are rounded, and the two parts of their salience.

    Attributes:
        weight: `[N, K]` fp32: the weights themselves, or their uniform stage.
        hessian_salience: V, `[N, K]`.
    """

    def __init__(self, weight: torch.Tensor, inverse_hessian: torch.Tensor, x: torch.Tensor) -> None:
        self.weight = weight
        self.hessian_salience = hessian_salience(weight, inverse_hessian)
        self.x = x

    @cached_property
    def activation_range(self) -> torch.Tensor:
        """B, `[N, K]`; it costs a product with the weights, and no λ changes it."""
        return activation_range(self.x, self.weight, binarize(self.weight) - self.weight)

    def scores(self, recipe: Recipe) -> torch.Tensor:
        """M = V + λ B (Eq. 8), or V alone without PBAR; `[N, K]`."""
        if not recipe.pbar:
            return self.hessian_salience
        return self.hessian_salience + recipe.pbar_weight * self.activation_range


class GroupQuantizer:
    """Quantizes the linears of one input, under one recipe or many: what these share is computed once."""

    def __init__(self, group: InputGroup, damp_ratio: float) -> None:
        self.group = group
        self.damp_ratio = damp_ratio
        self.weight = torch.cat(list(group.weights.values()))  # [ΣN, K]
        self.inverse_hessian, self.raised_damping = damped_inverse(group.hessian, damp_ratio)
        self.channel_scales = fit_channel_scales(self.weight)
        self.starts: dict[int | None, Start] = {}

    def start(self, stage_bits: int | None) -> Start:
        """The weights rounded to so many bits first, or as they are."""
        if stage_bits not in self.starts:
            weight = self.weight if stage_bits is None else round_uniform(self.weight, stage_bits)
            self.starts[stage_bits] = Start(weight, self.inverse_hessian, self.group.x)
        return self.starts[stage_bits]

    def quantize(
        self, recipe: Recipe, weight_format: WeightFormat, salient_bits: int = SALIENT_BITS
    ) -> dict[str, Quantized]:
        """Name to result; the stage has the width of the salient part, as in the paper's Table 3."""
        assert recipe.damp_ratio == self.damp_ratio
        group, sizes = self.group, [len(part) for part in self.group.weights.values()]
        start = self.start(salient_bits if recipe.staged else None)
        layer = round_rows(
            self.weight,
            start.weight,
            choose_salient(start.scores(recipe), sizes, weight_format),
            self.channel_scales,
            group.hessian,
            self.inverse_hessian if recipe.compensate else None,
            salient_bits,
        )
        results = {}
        for (name, weight), part in zip(group.weights.items(), split_rows(layer, sizes), strict=True):
            check_scales(name, part)
            results[name] = Quantized(part, relative_error(weight, part, group.hessian), self.raised_damping)
        return results


def quantize_group(group: InputGroup, recipe: Recipe, weight_format: WeightFormat) -> dict[str, Quantized]:
    """Quantize the linears of one input; name to result."""
    return GroupQuantizer(group, recipe.damp_ratio).quantize(recipe, weight_format)


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


def check_scales(name: str, layer: QuantizedLinear) -> None:
    """Raise `BadInput` unless fp16 holds the scales of a linear."""
    if not layer.scales.isfinite().all():
        raise BadInput(f"the weights of {name} must have row scales below 65504, the end of fp16; give another model.")


def relative_error(weight: torch.Tensor, layer: QuantizedLinear, hessian: torch.Tensor) -> float:
    """`|ΔW X|² / |W X|²`, from `H ∝ X Xᵀ`, of a linear or table; 0 for a layer without output."""
    power = output_power(weight, hessian)
    error = sum_parts(dequantize(layer), weight.shape[1]) - weight
    return output_power(error, hessian) / power if power else 0.0


def output_power(weight: torch.Tensor, hessian: torch.Tensor) -> float:
    """`|W X|²` up to a factor that does not depend on W; rounding in fp32 may leave it below 0."""
    return max(0.0, float(((weight @ hessian).double() * weight).sum()))
