"""The loop over decoder layers: the only file that knows the order of the stages.

With FIAS every layer sees the original model's activations, so layers are independent; without it a layer sees
those of the quantized layers before it. Tuning needs both: a layer is to give the original outputs for the inputs
that it will have.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from squeeze10_kernels import BadInput, QuantizedLinear, WeightFormat, dequantize
from squeeze10_kernels.llama import layer_prefix
from squeeze10_quantizer.activations import InputStatistics, collect_inputs
from squeeze10_quantizer.block_tuning import BlockLoss, tune_layer
from squeeze10_quantizer.decoder import Decoder
from squeeze10_quantizer.group import InputGroup, Quantized, quantize_group, relative_error
from squeeze10_quantizer.hidden_states import advance, open_stream
from squeeze10_quantizer.latent import LatentLinear
from squeeze10_quantizer.layer_result import LayerResult
from squeeze10_quantizer.recipe import Recipe
from squeeze10_quantizer.tables import quantize_tables


@dataclass(frozen=True, slots=True)
class Job:
    """A model, how to quantize it, and its calibration tokens `[samples, context]`."""

    decoder: Decoder
    recipe: Recipe
    weight_format: WeightFormat
    tokens: torch.Tensor

    @property
    def steps(self) -> range:
        """Indices of the decoder layers, and with quantized heads one more, for the tables."""
        return range(self.decoder.shape.num_layers + bool(self.weight_format.table_parts))


@dataclass(frozen=True, slots=True)
class Streams:
    """Hidden states before a layer, `[samples, context, hidden]` fp32.

    Attributes:
        original: Of the original model; None if nothing needs them.
        quantized: Of the model as quantized so far; None if nothing needs them.
    """

    original: torch.Tensor | None
    quantized: torch.Tensor | None


def choose_format(decoder: Decoder, recipe: Recipe) -> WeightFormat:
    """The weight format of a recipe on a model; `BadInput` if the model's shapes do not fit it."""
    chunks = 1 if recipe.mask == "elements" else recipe.chunks or decoder.shape.chunks()
    weight_format = WeightFormat(recipe.mask, recipe.salient_ratio, chunks, recipe.head_bits)
    for N, K in decoder.shape.linears().values():
        weight_format.check_shape(N, K)
    return weight_format


class Finished(Protocol):
    """Layers quantized by an earlier run."""

    def finished(self, index: int) -> bool:
        """Whether decoder layer `index` is done; the number of layers stands for the tables."""

    def linear(self, index: int, name: str) -> QuantizedLinear:
        """One linear of a finished layer."""


def quantize_layers(job: Job, spill: Path, earlier: Finished) -> Iterator[tuple[int, LayerResult | None]]:
    """Quantize decoder layers in order, yielding each one's result; None for a layer that is finished already.

    With quantized heads the embeddings and lm_head follow as one more.

    Args:
        spill: Directory for the activations between layers, `samples * context * hidden * 4` bytes for each stream.
        earlier: Layers finished by an earlier run.
    """
    layers = range(job.decoder.shape.num_layers)
    if all(earlier.finished(index) for index in job.steps):
        yield from ((index, None) for index in job.steps)
        return
    streams = open_streams(job, spill)
    for index in layers:
        layer = job.decoder.layer(index)
        result = None
        if earlier.finished(index):
            linears = {name: earlier.linear(index, name) for name in job.decoder.shape.linears()}
            pass_over(job, layer, linears, streams)
        else:
            try:
                result = quantize_layer(job, layer, index, streams)
            except BadInput as error:
                raise BadInput(f"Decoder layer {index}: {error}") from error
        job.decoder.drop(index)
        yield index, result
    for index in job.steps[len(layers) :]:
        yield index, None if earlier.finished(index) else quantize_head(job, streams)


def quantize_head(job: Job, streams: Streams) -> LayerResult:
    """Quantize the embeddings and lm_head on what the last layer gives."""
    hidden = streams.original if streams.original is not None else streams.quantized
    assert hidden is not None
    return LayerResult(quantize_tables(job.decoder, hidden, job.recipe))


def open_streams(job: Job, spill: Path) -> Streams:
    """Hidden states before the first layer; tuning needs both streams."""
    recipe = job.recipe
    embeddings = partial(open_stream, job.decoder, job.tokens, reread=2 if recipe.tuned else 0)
    return Streams(
        embeddings(spill / "original.bin") if recipe.fias or recipe.tuned else None,
        embeddings(spill / "quantized.bin") if not recipe.fias or recipe.tuned else None,
    )


def pass_over(job: Job, layer: nn.Module, linears: dict[str, QuantizedLinear], streams: Streams) -> None:
    """Move the streams past a layer whose linears are quantized."""
    if streams.original is not None:
        advance(job.decoder, layer, streams.original)
    if streams.quantized is not None:
        for name, linear in linears.items():
            set_weight(layer, name, linear)
        advance(job.decoder, layer, streams.quantized)


def quantize_layer(job: Job, layer: nn.Module, index: int, streams: Streams) -> LayerResult:
    """Quantize one decoder layer and move the streams past it."""
    recipe, prefix = job.recipe, layer_prefix(index)
    calibration = streams.original if recipe.fias else streams.quantized
    assert calibration is not None
    inputs = tuning_inputs(recipe, streams)
    statistics = collect_inputs(
        layer,
        lambda: advance(job.decoder, layer, calibration, store=recipe.fias),
        recipe.pbar_tokens if recipe.pbar else 0,
        job.decoder.device,
    )
    results: dict[str, Quantized] = {}
    for group, seen in statistics.items():
        results |= quantize_inputs(job, layer, group, seen)
    loss: BlockLoss | None = None
    latents: dict[str, torch.Tensor] = {}
    if recipe.tuned:
        results, loss, latents = tune(job, layer, results, statistics, streams, inputs)
    quantized = {name: result.layer for name, result in results.items()}
    pass_over(job, layer, quantized, Streams(None, streams.quantized))
    return LayerResult(
        {f"{prefix}.{name}": result for name, result in results.items()},
        loss,
        {f"{prefix}.{name}": latent for name, latent in latents.items()},
        next(iter(statistics.values())).dropped,
    )


def tuning_inputs(recipe: Recipe, streams: Streams) -> torch.Tensor | None:
    """What a layer reads while it is tuned: the quantized model's states, mixed with the original ones if wanted."""
    if not recipe.tuned or streams.quantized is None or recipe.tune_inputs == 1:
        return streams.quantized
    assert streams.original is not None
    mixed = torch.empty_like(streams.quantized)
    for out, original, quantized in zip(mixed, streams.original, streams.quantized, strict=True):
        torch.lerp(original, quantized, recipe.tune_inputs, out=out)
    return mixed


def tune(
    job: Job,
    layer: nn.Module,
    results: dict[str, Quantized],
    statistics: dict[tuple[str, ...], InputStatistics],
    streams: Streams,
    inputs: torch.Tensor | None,
) -> tuple[dict[str, Quantized], BlockLoss, dict[str, torch.Tensor]]:
    """Tune a quantized layer: linears, loss, latents by name if distillation is to go on from them.

    The original stream is past the layer afterwards, the quantized one still before it.
    """
    assert streams.original is not None
    assert inputs is not None
    if not job.recipe.fias:
        advance(job.decoder, layer, streams.original)
    start = {name: result.layer for name, result in results.items()}
    tuned, loss = tune_layer(job.decoder, layer, start, inputs, streams.original, job.recipe)
    hessians = {group: seen.hessian.value() for group, seen in statistics.items()}
    after = measure_tuned(layer, results, tuned, hessians)
    goes_on = tuned if job.recipe.tune == "distill" and job.recipe.distill_codes else {}
    return after, loss, {name: linear.latent.detach() for name, linear in goes_on.items()}


def measure_tuned(
    layer: nn.Module,
    results: dict[str, Quantized],
    tuned: dict[str, LatentLinear],
    hessians: dict[tuple[str, ...], torch.Tensor],
) -> dict[str, Quantized]:
    """What tuning made of a layer's linears, with their errors; `layer` has its original weights."""
    after: dict[str, Quantized] = {}
    for group, hessian in hessians.items():
        for name in group:
            linear = tuned[name].quantized()
            error = relative_error(layer.get_parameter(f"{name}.weight"), linear, hessian)
            after[name] = replace(results[name], layer=linear, error=error)
    return after


def quantize_inputs(
    job: Job, layer: nn.Module, group: tuple[str, ...], inputs: InputStatistics
) -> dict[str, Quantized]:
    """Quantize the linears of one input of a decoder layer."""
    weights = {name: layer.get_parameter(f"{name}.weight").detach() for name in group}
    return quantize_group(InputGroup(weights, inputs.hessian.value(), inputs.tokens()), job.recipe, job.weight_format)


def set_weight(layer: nn.Module, name: str, quantized: QuantizedLinear) -> None:
    """Replace a linear's weight by what its codes mean."""
    with torch.no_grad():
        layer.get_parameter(f"{name}.weight").copy_(dequantize(quantized))
