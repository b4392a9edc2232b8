"""The hidden states of all calibration samples between two decoder layers."""

import os
from pathlib import Path
from typing import Final

import torch
from torch import nn

from squeeze10_quantizer.decoder import Decoder

BATCH_TOKENS: Final = 4096
"""Tokens that run through a layer at a time."""
RESIDENT_PART: Final = 8
"""One part in so many of a GPU's memory may hold the streams: a layer of LLaMA2-7B in training takes 17 of 24 GB."""


def open_stream(decoder: Decoder, tokens: torch.Tensor, path: Path, *, reread: int) -> torch.Tensor:
    """Hidden states before the first layer: in a file at `path`, or on a GPU that has room.

    Args:
        reread: How many streams tuning will read many times, this one among them; 0 leaves it on disk.
    """
    if reread and has_room(decoder, tokens, reread):
        return resident_embeddings(decoder, tokens)
    return spilled_embeddings(decoder, tokens, path)


def has_room(decoder: Decoder, tokens: torch.Tensor, streams: int) -> bool:
    """Whether so many streams take a small part of the GPU's memory, if there is one."""
    device, need = decoder.device, streams * 4 * tokens.numel() * decoder.shape.hidden
    return device.type == "cuda" and need * RESIDENT_PART <= torch.cuda.get_device_properties(device).total_memory


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
