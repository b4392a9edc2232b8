"""One walk over the decoder layers that quantizes every variant of an ablation.

Variants with FIAS all see the original model's activations: its Hessians are taken once for all of them. A variant
without FIAS, and every variant that is tuned, sees those of its own quantized layers, and carries them along.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import nn

from squeeze10_kernels import BadInput, QuantizedLinear
from squeeze10_quantizer.ablation_state import AblationState
from squeeze10_quantizer.ablation_tables import Variant
from squeeze10_quantizer.activations import InputStatistics, collect_inputs
from squeeze10_quantizer.block_tuning import tune_layer
from squeeze10_quantizer.decoder import Decoder
from squeeze10_quantizer.group import GroupQuantizer, InputGroup, Quantized, relative_error
from squeeze10_quantizer.hidden_states import advance, open_stream
from squeeze10_quantizer.lesson import on_device
from squeeze10_quantizer.pipeline import choose_format, measure_tuned, set_weight

Statistics = dict[tuple[str, ...], InputStatistics]


@dataclass(frozen=True)
class Ablation:
    """A model, the variants of it, and its calibration tokens `[samples, context]`."""

    decoder: Decoder
    variants: Sequence[Variant]
    tokens: torch.Tensor

    @cached_property
    def on_original(self) -> list[Variant]:
        """Those that are calibrated on the original model's activations."""
        return [variant for variant in self.variants if variant.recipe.fias]

    @cached_property
    def with_stream(self) -> list[Variant]:
        """Those that need the activations of their own quantized layers."""
        return [variant for variant in self.variants if variant.recipe.tuned or not variant.recipe.fias]

    @property
    def layers(self) -> range:
        """Indices of the decoder layers."""
        return range(self.decoder.shape.num_layers)

    def finished(self, state: AblationState) -> bool:
        """Whether every layer of every variant is done."""
        return all(state.finished(variant, index) for variant in self.variants for index in self.layers)


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """A decoder layer to run, whose weights change, and the original ones by the linears' names."""

    layer: nn.Module
    weights: dict[str, torch.Tensor]

    @torch.no_grad()
    def restore(self) -> None:
        """Give the layer its original weights."""
        for name, weight in self.weights.items():
            self.layer.get_parameter(f"{name}.weight").copy_(weight)

    def set(self, linears: dict[str, QuantizedLinear]) -> None:
        """Give the layer a variant's weights."""
        for name, linear in linears.items():
            set_weight(self.layer, name, linear)


def quantize_variants(ablation: Ablation, state: AblationState, spill: Path) -> Iterator[tuple[int, Variant]]:
    """Quantize the layers that `state` lacks into it, yielding each one that is finished, also by an earlier run.

    Args:
        spill: Directory for the activations between layers, `samples * context * hidden * 4` bytes for the original
            model and as many for each variant that needs its own.
    """
    if ablation.finished(state):
        yield from ((index, variant) for index in ablation.layers for variant in ablation.variants)
        return
    decoder = ablation.decoder
    streams = 1 + len(ablation.with_stream)
    tuned = any(variant.recipe.tuned for variant in ablation.variants)
    embeddings = partial(open_stream, decoder, ablation.tokens, reread=streams if tuned else 0)
    original = embeddings(spill / "original.bin")
    own = {variant: embeddings(spill / f"{variant.name}.bin") for variant in ablation.with_stream}
    for index in ablation.layers:
        layer = decoder.layer(index)
        names = decoder.shape.linears()
        block = LayerWeights(layer, {name: layer.get_parameter(f"{name}.weight").clone() for name in names})
        hessians, rounded = quantize_on_original(ablation, block, index, original, state)
        yield from ((index, variant) for variant in ablation.on_original if variant not in own)
        for variant, hidden in own.items():
            if not state.finished(variant, index):
                block.restore()
                linears = rounded.pop(variant, None) or quantize_on_own(ablation, block, variant, hidden, hessians)
                if variant.recipe.tuned:
                    linears = tune_variant(ablation, block, variant, linears, (hidden, original), hessians)
                state.save(variant, index, linears)
            block.set(state.linears(variant, index, decoder.device))
            advance(decoder, layer, hidden)
            yield index, variant
        decoder.drop(index)


def quantize_on_original(
    ablation: Ablation, block: LayerWeights, index: int, hidden: torch.Tensor, state: AblationState
) -> tuple[dict[tuple[str, ...], torch.Tensor], dict[Variant, dict[str, Quantized]]]:
    """Quantize a layer's variants with FIAS and move the original stream past it.

    Returns:
        The Hessian of every input, by which all variants' errors are measured; empty if all of them are finished.
        On the host, what is still to be tuned of the variants with FIAS; the others of them are saved.
    """
    decoder = ablation.decoder
    if all(state.finished(variant, index) for variant in ablation.variants):
        advance(decoder, block.layer, hidden)
        return {}, {}
    missing = [variant for variant in ablation.on_original if not state.finished(variant, index)]
    statistics = statistics_of(ablation, block, missing, hidden, store=True)
    hessians = {group: seen.hessian.value() for group, seen in statistics.items()}
    results: dict[Variant, dict[str, Quantized]] = {variant: {} for variant in missing}
    for group, seen in statistics.items():
        if missing:
            quantizer = group_quantizer(block, group, hessians[group], seen, missing[0])
        for variant in missing:
            linears = quantize_inputs(decoder, quantizer, variant)
            results[variant] |= moved(linears, torch.device("cpu")) if variant.recipe.tuned else linears
    for variant in [variant for variant in results if not variant.recipe.tuned]:
        state.save(variant, index, results.pop(variant))
    return hessians, results


def quantize_on_own(
    ablation: Ablation,
    block: LayerWeights,
    variant: Variant,
    hidden: torch.Tensor,
    hessians: dict[tuple[str, ...], torch.Tensor],
) -> dict[str, Quantized]:
    """Quantize a layer of a variant without FIAS; its stream stays before the layer, which has its own weights."""
    results: dict[str, Quantized] = {}
    for group, seen in statistics_of(ablation, block, [variant], hidden, store=False).items():
        quantizer = group_quantizer(block, group, seen.hessian.value(), seen, variant)
        for name, result in quantize_inputs(ablation.decoder, quantizer, variant).items():
            # on the original model's inputs, so that all variants' errors compare
            error = relative_error(block.weights[name], result.layer, hessians[group])
            results[name] = replace(result, error=error)
    return results


def tune_variant(
    ablation: Ablation,
    block: LayerWeights,
    variant: Variant,
    linears: dict[str, Quantized],
    streams: tuple[torch.Tensor, torch.Tensor],
    hessians: dict[tuple[str, ...], torch.Tensor],
) -> dict[str, Quantized]:
    """Tune a variant's layer; `streams` are its own before the layer and the original one past it."""
    linears = moved(linears, ablation.decoder.device)
    start = {name: result.layer for name, result in linears.items()}
    tuned, _ = tune_layer(ablation.decoder, block.layer, start, *streams, variant.recipe, variant.salient_bits)
    return measure_tuned(block.layer, linears, tuned, hessians)


def moved(linears: dict[str, Quantized], device: torch.device) -> dict[str, Quantized]:
    """Copies on a device: a layer of every variant would not fit a GPU beside one that is tuned."""
    return {name: replace(result, layer=on_device(result.layer, device)) for name, result in linears.items()}


def statistics_of(
    ablation: Ablation, block: LayerWeights, variants: Sequence[Variant], hidden: torch.Tensor, *, store: bool
) -> Statistics:
    """What the variants need to know of a layer's inputs; with `store`, `hidden` becomes its outputs."""
    keep = max((variant.recipe.pbar_tokens for variant in variants if variant.recipe.pbar), default=0)
    decoder = ablation.decoder
    layer = block.layer
    statistics = collect_inputs(layer, lambda: advance(decoder, layer, hidden, store=store), keep, decoder.device)
    for seen in statistics.values():
        if seen.dropped:
            raise BadInput(f"Calibration samples {seen.dropped} give NaN or infinity; give other text.")
    return statistics


def group_quantizer(
    block: LayerWeights, group: tuple[str, ...], hessian: torch.Tensor, seen: InputStatistics, variant: Variant
) -> GroupQuantizer:
    """Of the linears that read one input, for all variants that see this input."""
    weights = {name: block.weights[name] for name in group}
    return GroupQuantizer(InputGroup(weights, hessian, seen.tokens()), variant.recipe.damp_ratio)


def quantize_inputs(decoder: Decoder, quantizer: GroupQuantizer, variant: Variant) -> dict[str, Quantized]:
    """Quantize the linears of one input for one variant."""
    return quantizer.quantize(variant.recipe, choose_format(decoder, variant.recipe), variant.salient_bits)
