"""What the linears of the original and of the quantized model read and give, on the same tokens.

Both models go through their decoder layers side by side, one layer of each in memory. So a linear is seen with and
without quantized inputs: on those of its own model, and on those of the original.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import nn

from squeeze10_kernels import BadInput, Checkpoint
from squeeze10_kernels.llama import INPUT_GROUPS, layer_prefix
from squeeze10_quantizer.decoder import Decoder
from squeeze10_quantizer.hidden_states import batches
from squeeze10_quantizer.loading import checkpoint_weight

TAIL: Final = 0.001
"""Share of an input's values beyond each of its two quantiles."""

Seen = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Linear to its inputs and outputs, `[tokens, K]` and `[tokens, N]`."""


class InputRange:
    """Extremes of one linear input.

    Attributes:
        channels: The largest magnitude of every channel, `[K]`.
        lowest: The smallest values of all, ascending, `[tail]`; after `close` its ends, `[2]`.
        highest: The largest, descending, alike.
    """

    def __init__(self, values: int) -> None:
        """Expect so many `values` in all: tokens times channels."""
        self.tail = max(1, int(TAIL * values))
        self.channels = torch.zeros(())
        self.lowest = self.highest = torch.empty(0)

    def add(self, x: torch.Tensor) -> None:
        """Add inputs `[tokens, K]`."""
        self.channels = torch.maximum(self.channels.to(x.device), x.abs().amax(0))
        self.lowest = self.extremes(self.lowest, x, largest=False)
        self.highest = self.extremes(self.highest, x, largest=True)

    def extremes(self, known: torch.Tensor, x: torch.Tensor, *, largest: bool) -> torch.Tensor:
        """At most `tail` values of those known and of `x`, the most extreme one first."""
        values = torch.cat((known.to(x.device), x.flatten()))
        return values.topk(min(self.tail, len(values)), largest=largest).values

    def close(self) -> None:
        """Keep of both tails their ends alone, now that nothing will be added."""
        self.channels = self.channels.cpu()
        self.lowest, self.highest = self.lowest[[0, -1]].cpu(), self.highest[[0, -1]].cpu()

    @property
    def low(self) -> float:
        """The smallest value."""
        return float(self.lowest[0])

    @property
    def high(self) -> float:
        """The largest value."""
        return float(self.highest[0])

    @property
    def quantiles(self) -> tuple[float, float]:
        """The value below which 0.1 % of all values lie, and the one above which 0.1 % lie."""
        return float(self.lowest[-1]), float(self.highest[-1])


@dataclass(slots=True)
class Distance:
    """How far one tensor is from another, summed over tokens."""

    error: float = 0.0
    power: float = 0.0

    def add(self, original: torch.Tensor, other: torch.Tensor) -> None:
        """Add what should be equal, `[tokens, channels]` each."""
        self.error += float((other - original).square().sum(dtype=torch.float64))
        self.power += float(original.square().sum(dtype=torch.float64))

    @property
    def relative(self) -> float:
        """`|other - original|² / |original|²`; 0 where there is nothing to be far from."""
        return self.error / self.power if self.power else 0.0


@dataclass(slots=True)
class InputComparison:
    """One linear input in both models.

    Attributes:
        drift: How far the quantized model's is from the original's.
    """

    original: InputRange
    quantized: InputRange
    drift: Distance = field(default_factory=Distance)


@dataclass(slots=True)
class LinearComparison:
    """Output error of one quantized linear.

    Attributes:
        same_inputs: On the original model's inputs: of its weights alone.
        own_inputs: On the quantized model's: with what came before it.
    """

    same_inputs: Distance = field(default_factory=Distance)
    own_inputs: Distance = field(default_factory=Distance)


@dataclass(frozen=True, slots=True)
class LayerComparison:
    """One decoder layer in both models.

    Attributes:
        inputs: By the first linear of each of `INPUT_GROUPS`.
        linears: By name inside the layer.
        outputs: Of the linears asked for, in the original and the quantized model, `[tokens, N]` each on the CPU,
            over the first sample.
    """

    inputs: dict[str, InputComparison]
    linears: dict[str, LinearComparison]
    outputs: dict[str, tuple[torch.Tensor, torch.Tensor]]


def compare_activations(
    decoder: Decoder, checkpoint: Checkpoint, tokens: torch.Tensor, keep: dict[int, list[str]]
) -> Iterator[LayerComparison]:
    """Compare a checkpoint with its original, layer by layer; on the CPU it needs `2 * tokens * hidden * 4` bytes.

    Args:
        tokens: `[samples, context]` int64.
        keep: Layer to the linears whose outputs are wanted.

    Raises:
        BadInput: The models differ in shape, or the tokens give NaN or infinity.
    """
    if decoder.shape != checkpoint.shape:
        raise BadInput(
            f"{decoder.source.path} must have the shapes of {checkpoint.directory.path}; give the model that the "
            "checkpoint was made from."
        )
    table = "model.embed_tokens.weight"
    hidden = [
        nn.functional.embedding(tokens, weight.float())
        for weight in (decoder.source.tensor(table), checkpoint_weight(checkpoint, table))
    ]
    for index in range(decoder.shape.num_layers):
        original = decoder.layer(index)
        layers = [original, quantized_layer(original, checkpoint, index)]
        found = compare_layer(decoder, layers, hidden, keep.get(index, []))
        if not all(states.isfinite().all() for states in hidden):
            raise BadInput(f"The calibration tokens give NaN or infinity in decoder layer {index}; give other text.")
        decoder.drop(index)
        yield found


@torch.no_grad()
def quantized_layer(original: nn.Module, checkpoint: Checkpoint, index: int) -> nn.Module:
    """Decoder layer `index` of a checkpoint, in fp32 beside the original one."""
    layer = copy.deepcopy(original)
    for name, parameter in layer.named_parameters(layer_prefix(index)):
        parameter.copy_(checkpoint_weight(checkpoint, name))
    return layer


def compare_layer(
    decoder: Decoder, layers: list[nn.Module], hidden: list[torch.Tensor], keep: list[str]
) -> LayerComparison:
    """Compare a layer and its quantized form; both streams become its outputs."""
    shape, tokens = decoder.shape.linears(), hidden[0].shape[:2].numel()
    values = {group[0]: tokens * shape[group[0]][1] for group in INPUT_GROUPS}
    found = LayerComparison(
        {name: InputComparison(InputRange(count), InputRange(count)) for name, count in values.items()},
        {name: LinearComparison() for name in shape},
        {},
    )
    for parts in zip(*map(batches, hidden), strict=True):
        before, after = (run(decoder, *pair, list(shape)) for pair in zip(layers, parts, strict=True))
        for name in keep:
            if name not in found.outputs:
                first = slice(hidden[0].shape[1])
                found.outputs[name] = (before[name][1][first].cpu(), after[name][1][first].cpu())
        add_batch(found, layers[1], before, after)
    for comparison in found.inputs.values():
        comparison.original.close()
        comparison.quantized.close()
    return found


def add_batch(found: LayerComparison, quantized: nn.Module, before: Seen, after: Seen) -> None:
    """Add what both models' linears read and gave."""
    for name, comparison in found.inputs.items():
        original, other = before[name][0], after[name][0]
        comparison.original.add(original)
        comparison.quantized.add(other)
        comparison.drift.add(original, other)
    for name, errors in found.linears.items():
        inputs, outputs = before[name]
        errors.same_inputs.add(outputs, quantized.get_submodule(name)(inputs))
        errors.own_inputs.add(outputs, after[name][1])


def run(decoder: Decoder, layer: nn.Module, states: torch.Tensor, names: list[str]) -> Seen:
    """Run a batch `[samples, context, hidden]`, which becomes the layer's outputs; what the linears saw."""
    seen: Seen = {}

    def record(name: str, x: torch.Tensor, y: torch.Tensor) -> None:
        seen[name] = (x.flatten(0, -2), y.flatten(0, -2))

    hooks = [
        layer.get_submodule(name).register_forward_hook(lambda _, x, y, name=name: record(name, x[0], y))
        for name in names
    ]
    try:
        states.copy_(decoder.run(layer, states))
    finally:
        for hook in hooks:
            hook.remove()
    return seen
