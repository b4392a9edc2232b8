"""A Hugging Face directory of safetensors shards, read without loading it; and a squeeze10 checkpoint on top."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open

from squeeze10_kernels.errors import BadInput
from squeeze10_kernels.format import WeightFormat, format_from_config
from squeeze10_kernels.linear import QuantizedLinear, check_linear, check_tensor, unpack_linear
from squeeze10_kernels.llama import INPUT_GROUPS, LlamaShape, layer_prefix, shape_from_config

INDEX_NAME: Final = "model.safetensors.index.json"
SINGLE_NAME: Final = "model.safetensors"
PICKLED: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt")

DTYPES: Final = {
    "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor lies: its file, and what the file's header says of it."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; `BadInput` names the file if it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(f"{path} must hold JSON: {error}.") from error
    if not isinstance(value, dict):
        raise BadInput(f"{path} must hold a JSON object; got {type(value).__name__}.")
    return value


@dataclass(frozen=True)
class SafetensorsDirectory:
    """Config and tensor headers of a model directory; tensors are read one at a time."""

    path: Path
    config: dict[str, Any]
    entries: dict[str, TensorEntry]

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor; `BadInput` if the directory lacks it."""
        if name not in self.entries:
            raise BadInput(f"{self.path} lacks the tensor {name}; the checkpoint is incomplete, fetch it again.")
        with safe_open(self.entries[name].file, framework="pt") as shard:
            tensor: torch.Tensor = shard.get_tensor(name)
        return tensor


def open_directory(path: Path) -> SafetensorsDirectory:
    """Read config.json and every shard's header; `BadInput` if one is missing, truncated or outside the directory."""
    if not path.is_dir():
        raise BadInput(f"{path} is not a directory; give a model directory with config.json and safetensors files.")
    config_path = path / "config.json"
    if not config_path.is_file():
        raise BadInput(f"{path} has no config.json; give a Hugging Face model directory.")
    entries: dict[str, TensorEntry] = {}
    for shard in shard_paths(path):
        for name, entry in read_header(shard).items():
            if name in entries:
                raise BadInput(f"{shard} and {entries[name].file} both hold {name}; remove the stale file.")
            entries[name] = entry
    return SafetensorsDirectory(path, read_json(config_path), entries)


def shard_paths(path: Path) -> list[Path]:
    """The safetensors files of a model directory: those of its index, or the single one."""
    index_path = path / INDEX_NAME
    if not index_path.is_file():
        return [single_file(path)]
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise BadInput(f"{index_path} must map tensor names to file names under weight_map.")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or not (path / name).is_file():
            raise BadInput(f"{index_path} names {name!r}, which is no file of {path}; fetch the checkpoint again.")
    return [path / name for name in names]


def single_file(path: Path) -> Path:
    """`model.safetensors`; `BadInput` says what is there instead."""
    single = path / SINGLE_NAME
    if single.is_file():
        return single
    pickled = sorted(file.name for pattern in PICKLED for file in path.glob(pattern))
    if pickled:
        raise BadInput(
            f"{path} holds its weights as pickles ({pickled[0]}), which are not read because they can run code; "
            "convert it with transformers: from_pretrained(...).save_pretrained(..., safe_serialization=True)."
        )
    raise BadInput(f"{path} has neither {INDEX_NAME} nor {SINGLE_NAME}; give a directory of safetensors files.")


def read_header(shard: Path) -> dict[str, TensorEntry]:
    """Name to entry of one safetensors file."""
    entries = {}
    try:
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                part = file.get_slice(name)
                dtype = DTYPES.get(part.get_dtype())
                if dtype is None:
                    raise BadInput(f"{shard}: {name} has the unsupported dtype {part.get_dtype()}.")
                entries[name] = TensorEntry(shard, tuple(part.get_shape()), dtype)
    except SafetensorError as error:
        raise BadInput(f"{shard} is damaged or cut short ({error}); fetch or quantize it again.") from error
    return entries


@dataclass(frozen=True)
class Checkpoint:
    """A squeeze10 checkpoint whose headers agree with its config."""

    directory: SafetensorsDirectory
    weight_format: WeightFormat
    shape: LlamaShape

    @cached_property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Full name of every quantized linear to `(N, K)`."""
        return {
            f"{layer_prefix(index)}.{linear}": size
            for index in range(self.shape.num_layers)
            for linear, size in self.shape.linears().items()
        }

    @cached_property
    def tables(self) -> dict[str, tuple[int, int]]:
        """Full name of every quantized table to `[vocabulary, hidden]`; none with 16-bit heads."""
        return self.shape.tables(self.weight_format.head_bits)

    @cached_property
    def quantized(self) -> dict[str, tuple[int, int]]:
        """Full name of every linear and table to `(N, K)`."""
        return self.linears | self.tables

    @cached_property
    def dense_tensors(self) -> dict[str, tuple[int, ...]]:
        """Name to shape of every tensor that is stored as it is."""
        return self.shape.dense_tensors(self.weight_format.head_bits)

    def layer(self, name: str) -> QuantizedLinear:
        """Read and check one linear or table; `BadInput` names file and tensor."""
        (N, K), weight_format = self.quantized[name], self.weight_format.of(name)
        suffixes = weight_format.tensor_specs(N, K)
        tensors = {suffix: self.directory.tensor(f"{name}.{suffix}") for suffix in suffixes}
        try:
            check_linear(tensors, weight_format, N, K)
        except BadInput as error:
            raise BadInput(f"{self.directory.path}: {name}.{error}") from error
        return unpack_linear(tensors, weight_format, N, K)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a squeeze10 checkpoint and check every header against config.json, reading no tensor."""
    directory = open_directory(path)
    quantization = directory.config.get("quantization_config")
    if not isinstance(quantization, dict):
        raise BadInput(
            f"{path} is not quantized (config.json has no quantization_config); make a checkpoint with: "
            f"squeeze10 quantize {path} OUT."
        )
    try:
        checkpoint = Checkpoint(directory, format_from_config(quantization), shape_from_config(directory.config))
        check_headers(checkpoint)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error
    return checkpoint


def check_headers(checkpoint: Checkpoint) -> None:
    """Raise `BadInput` unless the files hold exactly the tensors that config.json implies."""
    entries = checkpoint.directory.entries
    expected: set[str] = set()
    for name, (N, K) in checkpoint.quantized.items():
        for suffix, (shape, dtype) in checkpoint.weight_format.of(name).tensor_specs(N, K).items():
            tensor = f"{name}.{suffix}"
            expected.add(tensor)
            require(tensor, entries)
            check_tensor(tensor, entries[tensor].shape, entries[tensor].dtype, shape, dtype)
    for tensor, shape in checkpoint.dense_tensors.items():
        expected.add(tensor)
        require(tensor, entries)
        check_tensor(tensor, entries[tensor].shape, entries[tensor].dtype, shape, entries[tensor].dtype)
    surplus = sorted(set(entries) - expected)
    if surplus:
        raise BadInput(f"the tensor {surplus[0]} does not belong to the model that config.json describes.")


def require(tensor: str, entries: dict[str, TensorEntry]) -> None:
    """Raise `BadInput` if a tensor is missing."""
    if tensor not in entries:
        raise BadInput(
            f"the tensor {tensor} is missing; the checkpoint is incomplete or config.json belongs to another model."
        )


def check_group_copies(checkpoint: Checkpoint, index: int) -> None:
    """Raise `BadInput` unless linears that read one input carry equal channel scales (and column masks)."""
    shared = ("channel_scales", "salient_mask") if checkpoint.weight_format.mask == "columns" else ("channel_scales",)
    for group in INPUT_GROUPS:
        for suffix in shared:
            first = checkpoint.directory.tensor(f"{layer_prefix(index)}.{group[0]}.{suffix}")
            for linear in group[1:]:
                name = f"{layer_prefix(index)}.{linear}.{suffix}"
                if not torch.equal(first, checkpoint.directory.tensor(name)):
                    raise BadInput(
                        f"{checkpoint.directory.path}: {name} must equal that of {group[0]}, which reads the same "
                        "input; the checkpoint is damaged, quantize it again."
                    )
