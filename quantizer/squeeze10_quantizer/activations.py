"""What calibration keeps of a decoder layer's inputs: a Hessian per input, and some tokens for output ranges."""

from collections.abc import Callable

import torch
from torch import nn

from squeeze10_kernels.llama import INPUT_GROUPS
from squeeze10_quantizer.hessian import HessianSum


class InputStatistics:
    """Hessian and leading tokens of one linear input.

    Attributes:
        hessian: Sum over all calibration tokens.
        keep: Tokens still to be kept.
        kept: Inputs of the first tokens, each `[tokens, K]` fp32.
    """

    def __init__(self, K: int, keep: int, device: torch.device) -> None:
        self.hessian = HessianSum(K, device)
        self.keep = keep
        self.kept: list[torch.Tensor] = []

    def add(self, x: torch.Tensor) -> None:
        """Add inputs `[sequences, tokens, K]`."""
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
    hooks = []
    for group in INPUT_GROUPS:
        linear = layer.get_submodule(group[0])
        assert isinstance(linear, nn.Linear)
        statistics[group] = InputStatistics(linear.in_features, keep, device)
        hooks.append(linear.register_forward_pre_hook(recorder(statistics[group])))
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return statistics


def recorder(statistics: InputStatistics) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
    """A forward pre-hook that adds a linear's input."""

    def record(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        statistics.add(inputs[0])

    return record
