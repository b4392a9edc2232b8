"""Writing a Hugging Face directory: shards planned from shapes, published whole by one rename."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file

from squeeze10_kernels import BadInput
from squeeze10_kernels.checkpoint import INDEX_NAME

MAX_SHARD_SIZE: Final = "2GB"
SUMS_NAME: Final = "SHA256SUMS"
REPORT_NAME: Final = "squeeze10_report.json"
COPIED: Final = (
    "tokenizer*.json", "tokenizer.model*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "*.jinja", "generation_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip
"""What a model directory holds besides config and weights, and an export takes over byte for byte."""


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor to be written: what it will be, and how to get it when its shard's turn comes."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]


@contextmanager
def published(out: Path, staging: Path | None = None) -> Iterator[Path]:
    """A directory to fill that becomes `out` by one rename when the block ends well, and vanishes otherwise.

    `staging` is where it is filled, on the file system of `out`; by default beside `out`.
    """
    refuse_existing(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = staging or out.with_name(f".{out.name}.{os.getpid()}.tmp")
    staging.mkdir()
    try:
        yield staging
        for file in sorted(staging.iterdir()):
            make_durable(file)
        make_durable(staging)
        refuse_existing(out)
        staging.rename(out)
        make_durable(out.parent)
    finally:
        if staging.exists():
            shutil.rmtree(staging)


def refuse_existing(out: Path) -> None:
    """Raise `BadInput` if `out` exists: nothing is ever overwritten."""
    if out.exists():
        raise BadInput(f"{out} exists already and is not overwritten; remove it or choose another name.")


def lock(path: Path) -> IO[str]:
    """Hold a file's lock until what is returned is closed, or the process ends in whatever way.

    Raises:
        BadInput: Another process holds it.
    """
    file = path.open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # a holder that ends removes the file: a lock on the removed one excludes nobody
        held = path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
    except BlockingIOError:
        held = False
    if not held:
        file.close()
        raise BadInput(f"another process holds {path}; wait until it has ended, or choose another output.")
    return file


def make_durable(path: Path) -> None:
    """Flush a file or directory to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_shards(folder: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Write tensors as safetensors shards of at most `MAX_SHARD_SIZE`, with an index if there are several.

    Memory: one shard.
    """
    planned = {name: torch.empty(lazy.shape, dtype=lazy.dtype, device="meta") for name, lazy in tensors.items()}
    plan = split_torch_state_dict_into_shards(planned, max_shard_size=MAX_SHARD_SIZE)
    for filename, names in plan.filename_to_tensors.items():
        write_safetensors(folder / filename, {name: tensors[name].read().contiguous() for name in names})
    if plan.is_sharded:
        write_json(folder / INDEX_NAME, {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename})


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write one safetensors file, readable by other users (safetensors itself writes mode 0600).

    Raises:
        OSError: The disk is full or otherwise refuses.
    """
    # cloned: linears of one input share their channel scales in memory, which safetensors refuses
    copies = {name: tensor.cpu().clone() for name, tensor in tensors.items()}
    try:
        save_file(copies, path, metadata={"format": "pt"} | (metadata or {}))
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A file to write, beside `path`, that is flushed and becomes `path` by a rename: `path` is always whole.

    It vanishes if the block does not end well.
    """
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        yield unfinished
        make_durable(unfinished)
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)
    make_durable(path.parent)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, indented."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_companions(source: Path, folder: Path) -> None:
    """Copy tokenizer, generation settings and licence files."""
    for pattern in COPIED:
        for file in sorted(source.glob(pattern)):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)


def write_sums(folder: Path) -> None:
    """Write `SHA256SUMS` over every other file, in sha256sum's format."""
    lines = [f"{sha256(file)}  {file.name}\n" for file in sorted(folder.iterdir()) if file.name != SUMS_NAME]
    (folder / SUMS_NAME).write_text("".join(lines), encoding="utf-8")


def sha256(file: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
