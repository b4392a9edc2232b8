"""What calibration keeps of a decoder layer's inputs: a Hessian per input, and some tokens for output ranges.

A sample that turns into NaN or infinity in the layer is left out: its outputs are not finite, then nor are those of
any later layer, and so it is left out of all of them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from squeeze10_kernels.llama import INPUT_GROUPS
from squeeze10_quantizer.decoder import hidden_states_of
from squeeze10_quantizer.hessian import HessianSum
from squeeze10_quantizer.hidden_states import finite_samples


class InputStatistics:
    """Hessian and leading tokens of one linear input.

    Attributes:
        hessian: Sum over all calibration tokens.
        keep: Tokens still to be kept.
        kept: Inputs of the first tokens, each `[tokens, K]` fp32.
        samples: Samples seen.
        dropped: Those left out, by their place among all; the same for every input of a layer.
    """

    def __init__(self, K: int, keep: int, device: torch.device) -> None:
        self.hessian = HessianSum(K, device)
        self.keep = keep
        self.kept: list[torch.Tensor] = []
        self.samples = 0
        self.dropped: list[int] = []

    def add(self, x: torch.Tensor, sound: torch.Tensor) -> None:
        """Add inputs `[sequences, tokens, K]`, those of the `sound` sequences, `[sequences]` bool."""
        self.dropped += (self.samples + (~sound).nonzero().flatten()).tolist()
        self.samples += len(x)
        if not sound.all():
            x = x[sound]
        self.hessian.add(x)
        if self.keep > 0:
            rows = x.flatten(0, 1)[: self.keep]
            self.kept.append(rows.clone())
            self.keep -= len(rows)

    def tokens(self) -> torch.Tensor:
        """The kept inputs, `[T, K]`; empty if none were asked for."""
        return torch.cat(self.kept) if self.kept else torch.empty(0)


def collect_inputs(
    layer: nn.Module, run: Callable[[], None], keep: int, device: torch.device
) -> dict[tuple[str, ...], InputStatistics]:
    """Statistics of every input group of a decoder layer while `run` drives calibration through it."""
    statistics: dict[tuple[str, ...], InputStatistics] = {}
    inputs: dict[tuple[str, ...], torch.Tensor] = {}  # of the batch in the layer
    hooks = [layer.register_forward_hook(adder(statistics, inputs))]
    for group in INPUT_GROUPS:
        linear = layer.get_submodule(group[0])
        assert isinstance(linear, nn.Linear)
        statistics[group] = InputStatistics(linear.in_features, keep, device)
        hooks.append(linear.register_forward_pre_hook(holder(inputs, group)))
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return statistics


def holder(
    inputs: dict[tuple[str, ...], torch.Tensor], group: tuple[str, ...]
) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
    """A forward pre-hook of a linear that holds its input."""

    def hold(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        inputs[group] = arguments[0]

    return hold


def adder(
    statistics: dict[tuple[str, ...], InputStatistics], inputs: dict[tuple[str, ...], torch.Tensor]
) -> Callable[[nn.Module, tuple[torch.Tensor, ...], Any], None]:
    """A forward hook of a decoder layer that adds what its linears read, now that its outputs tell what is sound."""

    def add(_: nn.Module, __: tuple[torch.Tensor, ...], outputs: Any) -> None:
        sound = finite_samples(hidden_states_of(outputs))
        for group, x in inputs.items():
            statistics[group].add(x, sound)
        inputs.clear()

    return add
