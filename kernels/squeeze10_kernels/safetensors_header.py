"""The header of a safetensors file, held to limits before the library reads it.

The library checks that offsets, shapes and the file's length agree. It lets pass what this module refuses: headers of
100 MB, names of any length, a name twice, a thousand dimensions.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open

from squeeze10_kernels.errors import BadInput
from squeeze10_kernels.strict_json import MAX_BYTES, parse_object

DTYPES: Final = {
    "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "BOOL": torch.bool,
}  # fmt: skip
METADATA: Final = "__metadata__"
NAME: Final = re.compile(r"[A-Za-z0-9_.\-]{1,200}")
MAX_DIMENSIONS: Final = 8
LENGTH_BYTES: Final = 8
"""Before the header: its length, little-endian."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor lies: its file, and what the file's header says of it."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


def read_header(shard: Path) -> dict[str, TensorEntry]:
    """Name to entry of one safetensors file; `BadInput` if it is damaged, cut short or beyond the limits."""
    for name in header_json(shard):
        if name != METADATA and not NAME.fullmatch(name):
            raise BadInput(f"{shard}: a tensor is named {name[:80]!r}; names have up to 200 letters, digits, . _ -")
    entries = {}
    try:
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                part = file.get_slice(name)
                entries[name] = entry_of(shard, name, part.get_shape(), part.get_dtype())
    except SafetensorError as error:
        raise damaged(shard, error) from error
    return entries


def entry_of(shard: Path, name: str, shape: list[int], dtype: str) -> TensorEntry:
    """A tensor's entry; `BadInput` for a dtype that no model of ours has, or too many dimensions."""
    if dtype not in DTYPES:
        raise BadInput(f"{shard}: {name} has the unsupported dtype {dtype}.")
    if len(shape) > MAX_DIMENSIONS:
        raise BadInput(f"{shard}: {name} has {len(shape)} dimensions; at most {MAX_DIMENSIONS} are allowed.")
    return TensorEntry(shard, tuple(shape), DTYPES[dtype])


def header_json(shard: Path) -> dict[str, Any]:
    """The header as it stands in the file: name to dtype, shape and data_offsets."""
    with shard.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        if length > MAX_BYTES:
            raise damaged(shard, f"its header claims {length} bytes, at most {MAX_BYTES} are read")
        text = file.read(length)
    if len(text) < max(length, 1):
        raise damaged(shard, "the file ends inside its header")
    return parse_object(text, f"the header of {shard}")


def read_tensor(name: str, entry: TensorEntry) -> torch.Tensor:
    """Read one tensor; `BadInput` if its file has changed since its header was read."""
    try:
        with safe_open(entry.file, framework="pt") as shard:
            tensor: torch.Tensor = shard.get_tensor(name)
    except SafetensorError as error:
        raise damaged(entry.file, error) from error
    if tuple(tensor.shape) != entry.shape or tensor.dtype != entry.dtype:
        raise damaged(entry.file, f"{name} changed while the file was read")
    return tensor


def damaged(shard: Path, reason: object) -> BadInput:
    """The refusal of a file."""
    return BadInput(f"{shard} is damaged or cut short ({reason}); fetch or quantize it again.")
