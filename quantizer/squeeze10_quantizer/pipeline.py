"""The loop over decoder layers: the only file that knows the order of the stages.

With FIAS every layer sees the original model's activations, so layers are independent; without it a layer sees
those of the quantized layers before it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from squeeze10_kernels import QuantizedLinear, WeightFormat, dequantize
from squeeze10_kernels.llama import layer_prefix
from squeeze10_quantizer.activations import InputStatistics, collect_inputs
from squeeze10_quantizer.decoder import Decoder
from squeeze10_quantizer.group import InputGroup, Quantized, quantize_group
from squeeze10_quantizer.recipe import Recipe

BATCH_TOKENS = 4096
"""Tokens that run through a layer at a time."""


@dataclass(frozen=True, slots=True)
class Job:
    """A model, how to quantize it, and its calibration tokens `[samples, context]`."""

    decoder: Decoder
    recipe: Recipe
    weight_format: WeightFormat
    tokens: torch.Tensor


def choose_format(decoder: Decoder, recipe: Recipe) -> WeightFormat:
    """The weight format of a recipe on a model; `BadInput` if the model's shapes do not fit it."""
    chunks = 1 if recipe.mask == "elements" else recipe.chunks or decoder.shape.chunks()
    weight_format = WeightFormat(recipe.mask, recipe.salient_ratio, chunks)
    for N, K in decoder.shape.linears().values():
        weight_format.check_shape(N, K)
    return weight_format


class Finished(Protocol):
    """Layers quantized by an earlier run."""

    def finished(self, index: int) -> bool:
        """Whether decoder layer `index` is done."""

    def linear(self, index: int, name: str) -> QuantizedLinear:
        """One linear of a finished layer."""


def quantize_layers(job: Job, spill: Path, earlier: Finished) -> Iterator[tuple[int, dict[str, Quantized]]]:
    """Quantize decoder layers in order, yielding each one's results; none for a layer that is finished already.

    Args:
        spill: Directory for the activations between layers, `samples * context * hidden * 4` bytes.
        earlier: Layers finished by an earlier run.
    """
    hidden = spilled_embeddings(job, spill / "hidden.bin")
    for index in range(job.decoder.shape.num_layers):
        layer = job.decoder.layer(index)
        results: dict[str, Quantized] = {}
        if earlier.finished(index):
            pass_over(job, layer, index, hidden, earlier)
        else:
            results = quantize_layer(job, layer, index, hidden)
        job.decoder.drop(index)
        yield index, results


def pass_over(job: Job, layer: nn.Module, index: int, hidden: torch.Tensor, earlier: Finished) -> None:
    """Move `hidden` past a finished layer: the original one under FIAS, the quantized one without."""
    if not job.recipe.fias:
        for name in job.decoder.shape.linears():
            set_weight(layer, name, earlier.linear(index, name))
    advance(job, layer, hidden)


def quantize_layer(job: Job, layer: nn.Module, index: int, hidden: torch.Tensor) -> dict[str, Quantized]:
    """Quantize one decoder layer and move `hidden` past it; full tensor name to result."""
    statistics = collect_inputs(
        layer,
        lambda: advance(job, layer, hidden, store=job.recipe.fias),
        job.recipe.pbar_tokens if job.recipe.pbar else 0,
        job.decoder.device,
    )
    results = {}
    for group, inputs in statistics.items():
        results.update(quantize_inputs(job, layer, group, inputs))
    if not job.recipe.fias:
        for name, result in results.items():
            set_weight(layer, name, result.layer)
        advance(job, layer, hidden)
    return {f"{layer_prefix(index)}.{name}": result for name, result in results.items()}


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


def spilled_embeddings(job: Job, path: Path) -> torch.Tensor:
    """Hidden states before the first layer, `[samples, context, hidden]` fp32, in a memory-mapped file."""
    samples, context = job.tokens.shape
    size = samples * context * job.decoder.shape.hidden
    hidden = torch.from_file(str(path), shared=True, size=size, dtype=torch.float32)
    hidden = hidden.view(samples, context, job.decoder.shape.hidden)
    for sample, tokens in zip(hidden, job.tokens, strict=True):
        sample.copy_(job.decoder.embed(tokens))
    return hidden


def advance(job: Job, layer: nn.Module, hidden: torch.Tensor, *, store: bool = True) -> None:
    """Run all samples through a layer; with `store`, `hidden` becomes its outputs."""
    batch = max(1, BATCH_TOKENS // hidden.shape[1])
    for part in hidden.split(batch):
        outputs = job.decoder.run(layer, part)
        if store:
            part.copy_(outputs)
