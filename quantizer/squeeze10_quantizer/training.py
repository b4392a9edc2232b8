"""What tuning a layer and tuning a model have in common: rates, optimizer, schedule, order of the samples."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from squeeze10_quantizer.latent import LatentLinear, TrainedLinear

BATCH_TOKENS: Final = 8192
"""Tokens of a step."""
BETAS: Final = (0.9, 0.95)
WARM_UP: Final = 0.05
"""Part of all steps in which the rates rise."""


CUBLAS: Final = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
"""What torch wants to be in the environment before the first product on a GPU, for cuBLAS to add in a fixed order."""


@contextmanager
def repeatable() -> Iterator[None]:
    """The same seed gives the same result on the same GPU; else attention's backward pass adds in any order.

    Raises:
        RuntimeError: By torch, if the process used cuBLAS before without `CUBLAS` in its environment.
    """
    os.environ.setdefault(*CUBLAS)
    before, memory = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic
    filled = memory.fill_uninitialized_memory  # type: ignore[attr-defined]  # a property of the module
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # finds mistakes, and takes time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Rates:
    """Learning rates of Adam at their highest: of latents, in steps of a row, and of scales, as parts of them."""

    latent: float
    scales: float


def make_optimizer(linears: Sequence[TrainedLinear], rates: Rates) -> torch.optim.Adam:
    """Adam over scales, those that linears share once, and over the latents of those that have them."""
    latents = [linear.latent for linear in linears if isinstance(linear, LatentLinear)]
    scales = {id(p): p for linear in linears for p in (linear.row_factors, linear.channel_factors)}
    groups: list[dict[str, Any]] = [
        {"params": latents, "peak": rates.latent},
        {"params": list(scales.values()), "peak": rates.scales},
    ]
    device = linears[0].scales.device
    if device.type != "cuda":
        return torch.optim.Adam(groups, betas=BETAS)
    for group in groups:
        group["lr"] = torch.zeros((), device=device)  # a graph that was captured reads it at every replay
    return torch.optim.Adam(groups, betas=BETAS, fused=True, capturable=True)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """All that an optimizer trains."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def set_rates(optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
    """The rates of a step: a line up to their peaks, then a cosine down to nothing."""
    progress = (step + 1) / (steps + 1)
    share = min(progress / WARM_UP, (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))) / 2)
    for group in optimizer.param_groups:
        rate = group["peak"] * share
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def orders(count: int, batch: int, seed: int) -> Iterator[torch.Tensor]:
    """Indices of `batch` samples out of `count`, for ever; every round has an order of its own and drops the rest."""
    assert count >= batch
    generator = torch.Generator().manual_seed(seed)
    while True:
        for chosen in torch.randperm(count, generator=generator).split(batch):
            if len(chosen) == batch:
                yield chosen
