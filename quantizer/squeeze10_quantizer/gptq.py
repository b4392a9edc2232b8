"""Rounding channel by channel, each error compensated by the channels that are still to be rounded (GPTQ)."""

from collections.abc import Callable
from typing import Final

import torch

BLOCK: Final = 64
"""Channels whose errors are applied to the rest in one product."""

RoundChannel = Callable[[torch.Tensor, int], torch.Tensor]
"""Weights `[N]` of a channel and its place in the order to their rounded values `[N]`."""


def compensate(channels: torch.Tensor, factor: torch.Tensor, places: range, round_channel: RoundChannel) -> None:
    """Round the channels at `places` in turn; channels at later places absorb the errors.

    Args:
        channels: Weights in the order of rounding, transposed: `[K, N]` fp32, changed in place.
        factor: Upper factor U of the inverse Hessian in that order, `[K, K]`.
        places: Consecutive places to round.
        round_channel: Sees each channel as changed by the errors of those before it.
    """
    for start in range(places.start, places.stop, BLOCK):
        stop = min(start + BLOCK, places.stop)
        errors = torch.empty_like(channels[start:stop])  # [B, N]
        for place in range(start, stop):
            weights = channels[place]
            errors[place - start] = (weights - round_channel(weights, place)) / factor[place, place]
            rest = channels[place + 1 : stop]
            rest.addmm_(factor[place, place + 1 : stop, None], errors[None, place - start], alpha=-1)
        channels[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
