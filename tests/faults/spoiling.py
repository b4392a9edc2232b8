"""How tests spoil a checkpoint: a register of faults, and edits of a directory's config, tensors and header."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from shards import sharded
from tiny_checkpoint import build_checkpoint

from squeeze10_kernels import WeightFormat
from squeeze10_kernels.checkpoint import SINGLE_NAME
from squeeze10_quantizer.directory import write_sums

Q_PROJ: Final = "model.layers.0.self_attn.q_proj"
Tensors = dict[str, torch.Tensor]
Spoil = Callable[[Path], object]
FORMATS: Final = {
    "columns": WeightFormat(chunks=2),
    "elements": WeightFormat("elements"),
    "4-bit tables": WeightFormat(chunks=2, head_bits=4),
    "8-bit tables": WeightFormat(chunks=2, head_bits=8),
}
"""Of the sound checkpoints."""
COMMANDS: Final = ("verify", "inspect", "eval", "dequantize")
ALL: Final = (*COMMANDS, "plugin")


@dataclass(frozen=True)
class Fault:
    """One way to spoil a checkpoint.

    Attributes:
        kind: Its letter and number in the plan of the corpus.
        spoil: Does it to a directory.
        says: Part of the sentence that refuses it.
        readers: Who must refuse it.
        base: The checkpoint that is spoiled, of `FORMATS`.
        sealed: Whether the sums are written anew afterwards, as an attacker would.
    """

    kind: str
    spoil: Spoil
    says: str
    readers: tuple[str, ...] = ALL
    base: str = "columns"
    sealed: bool = True


def sound_checkpoints(folder: Path) -> dict[str, Path]:
    """Name in `FORMATS` to a whole checkpoint with sums; copy it before you spoil it."""
    paths = {name: build_checkpoint(folder / name / "model", form).path for name, form in FORMATS.items()}
    for path in paths.values():
        write_sums(path)
    return paths


FAULTS: Final[dict[str, Fault]] = {}
"""Name to fault; filled by the modules `malformed_*`."""


def add(name: str, kind: str, spoil: Spoil, says: str, **more: Any) -> None:
    """Register a fault."""
    assert name not in FAULTS
    FAULTS[name] = Fault(kind, spoil, says, **more)


def tensors(change: Callable[[Tensors], object]) -> Spoil:
    """Edit the tensors of the single file."""

    def spoil(path: Path) -> None:
        loaded = load_file(path / SINGLE_NAME)
        change(loaded)
        save_file(loaded, path / SINGLE_NAME, metadata={"format": "pt"})

    return spoil


def tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Spoil:
    """Replace one tensor by what `change` makes of it."""
    return tensors(lambda loaded: loaded.update({name: change(loaded[name]).contiguous()}))


def config(**changes: Any) -> Spoil:
    """Override entries of config.json; None deletes."""

    def spoil(path: Path) -> None:
        file = path / "config.json"
        entries = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({key: value for key, value in entries.items() if value is not None}))

    return spoil


def quantization(**changes: Any) -> Spoil:
    """Override entries of `quantization_config`."""

    def spoil(path: Path) -> None:
        file = path / "config.json"
        entries = json.loads(file.read_text())
        entries["quantization_config"] |= changes
        file.write_text(json.dumps(entries))

    return spoil


def content(name: str, data: bytes) -> Spoil:
    """Replace a file."""
    return lambda path: (path / name).write_bytes(data)


def replaced(name: str, old: bytes, new: bytes) -> Spoil:
    """Replace the first occurrence of some bytes in a file."""

    def spoil(path: Path) -> None:
        before = (path / name).read_bytes()
        assert old in before
        (path / name).write_bytes(before.replace(old, new, 1))

    return spoil


def header(change: Callable[[dict[str, Any]], object], tail: bytes = b"") -> Spoil:
    """Edit the header of the single file as JSON, and leave its tensors; `tail` is appended to the file."""

    def spoil(path: Path) -> None:
        data = (path / SINGLE_NAME).read_bytes()
        length = int.from_bytes(data[:8], "little")
        entries = json.loads(data[8 : 8 + length])
        change(entries)
        (path / SINGLE_NAME).write_bytes(with_header(json.dumps(entries).encode(), data[8 + length :] + tail))

    return spoil


def with_header(text: bytes, body: bytes = b"") -> bytes:
    """A safetensors file."""
    return len(text).to_bytes(8, "little") + text + body


def shards(change: Callable[[Path, dict[str, str]], object]) -> Spoil:
    """Split the checkpoint, then spoil it; `change` gets the directory and the weight_map."""
    return lambda path: change(path, sharded(path))
