"""The hidden states of all calibration samples between two decoder layers."""

import os
from pathlib import Path
from typing import Final

import torch
from torch import nn

from squeeze10_quantizer.decoder import Decoder

BATCH_TOKENS: Final = 4096
"""Tokens that run through a layer at a time."""


def spilled_embeddings(decoder: Decoder, tokens: torch.Tensor, path: Path) -> torch.Tensor:
    """Those before the first layer, `[samples, context, hidden]` fp32, in a memory-mapped file.

    Raises:
        OSError: The disk has no room for it.
    """
    size = tokens.numel() * decoder.shape.hidden
    with path.open("wb") as file:
        # a page of a sparse file for which the disk has no room kills the process with SIGBUS when it is written
        os.posix_fallocate(file.fileno(), 0, size * torch.float32.itemsize)
    return fill(torch.from_file(str(path), shared=True, size=size, dtype=torch.float32), decoder, tokens)


def resident_embeddings(decoder: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    """The same on the device."""
    size = tokens.numel() * decoder.shape.hidden
    return fill(torch.empty(size, device=decoder.device), decoder, tokens)


def fill(hidden: torch.Tensor, decoder: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    """Embed sample by sample into flat memory."""
    hidden = hidden.view(*tokens.shape, decoder.shape.hidden)
    table = decoder.source.tensor("model.embed_tokens.weight")
    for sample, ids in zip(hidden, tokens, strict=True):
        sample.copy_(nn.functional.embedding(ids, table))
    return hidden


def finite_samples(states: torch.Tensor) -> torch.Tensor:
    """Which samples of `[samples, context, hidden]` hold neither NaN nor infinity, `[samples]` bool."""
    low, high = states.flatten(1).aminmax(dim=1)  # both are NaN if one value is
    return low.isfinite() & high.isfinite()


def batches(hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Views of a few samples each."""
    parts: tuple[torch.Tensor, ...] = hidden.split(max(1, BATCH_TOKENS // hidden.shape[1]))
    return parts


def advance(decoder: Decoder, layer: nn.Module, hidden: torch.Tensor, *, store: bool = True) -> None:
    """Run all samples through a layer; with `store`, `hidden` becomes its outputs."""
    for part in batches(hidden):
        outputs = decoder.run(layer, part)
        if store:
            part.copy_(outputs)
