"""A Hugging Face directory of safetensors shards, read without loading it; and a squeeze10 checkpoint on top."""

import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch

from squeeze10_kernels.errors import BadInput
from squeeze10_kernels.format import WeightFormat, format_from_config
from squeeze10_kernels.linear import QuantizedLinear, check_linear, check_tensor, check_values, unpack_linear
from squeeze10_kernels.llama import INPUT_GROUPS, LlamaShape, layer_prefix, shape_from_config
from squeeze10_kernels.model_files import PICKLED, check_files, check_no_code, check_no_other_weights
from squeeze10_kernels.safetensors_header import NAME, TensorEntry, read_header, read_tensor
from squeeze10_kernels.strict_json import MAX_BYTES, parse_object

INDEX_NAME: Final = "model.safetensors.index.json"
SINGLE_NAME: Final = "model.safetensors"

MAX_LABELS: Final = 10_000
"""transformers writes a name for every one of a config's `num_labels`, which no LLaMA of ours uses."""
MAX_TENSORS: Final = 200_000
"""Of a directory, so that names alone do not fill the memory."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; `BadInput` names the file if it is none or beyond the limits of `strict_json`."""
    with path.open("rb") as file:
        return parse_object(file.read(MAX_BYTES + 1), path)


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
        return read_tensor(name, self.entries[name])


def open_directory(path: Path) -> SafetensorsDirectory:
    """Read config.json and every shard's header.

    Raises:
        BadInput: A file is missing, damaged, beyond the limits, outside the directory, or names code to run.
    """
    check_files(path)
    config = read_config(path)
    entries: dict[str, TensorEntry] = {}
    for shard in shard_paths(path):
        for name, entry in read_header(shard).items():
            if name in entries:
                raise BadInput(f"{shard} and {entries[name].file} both hold {name}; remove the stale file.")
            entries[name] = entry
        if len(entries) > MAX_TENSORS:
            raise BadInput(f"{path} must hold at most {MAX_TENSORS} tensors; it has more.")
    return SafetensorsDirectory(path, config, entries)


def read_config(path: Path) -> dict[str, Any]:
    """config.json; it and the tokenizer's must name no code to run."""
    config_path, tokenizer_path = path / "config.json", path / "tokenizer_config.json"
    if not config_path.is_file():
        raise BadInput(f"{path} has no config.json; give a Hugging Face model directory.")
    config = read_json(config_path)
    check_no_code(config_path, config)
    if tokenizer_path.is_file():
        check_no_code(tokenizer_path, read_json(tokenizer_path))
    return config


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
        if not NAME.fullmatch(name) or not (path / name).is_file():
            raise BadInput(f"{index_path} names {name[:200]!r}, which is no file of {path}; fetch it again.")
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


@dataclass(frozen=True)
class Checkpoint:
    """A squeeze10 checkpoint that `open_checkpoint` has checked."""

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
        """Full name of every quantized table to `(vocabulary, parts * hidden)`; none with 16-bit heads."""
        return self.shape.tables(self.weight_format.table_parts)

    @cached_property
    def quantized(self) -> dict[str, tuple[int, int]]:
        """Full name of every linear and table to `(N, K)`."""
        return self.linears | self.tables

    @cached_property
    def dense_tensors(self) -> dict[str, tuple[int, ...]]:
        """Name to shape of every tensor that is stored as it is."""
        return self.shape.dense_tensors(self.weight_format.table_parts)

    def layer(self, name: str) -> QuantizedLinear:
        """Read one linear or table, and check it again as it is read; `BadInput` names file and tensor."""
        (N, K), weight_format = self.quantized[name], self.weight_format.of(name)
        suffixes = weight_format.tensor_specs(N, K)
        tensors = {suffix: self.directory.tensor(f"{name}.{suffix}") for suffix in suffixes}
        try:
            check_linear(tensors, weight_format, N, K)
        except BadInput as error:
            raise BadInput(f"{self.directory.path}: {name}.{error}") from error
        return unpack_linear(tensors, weight_format, N, K)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a squeeze10 checkpoint after checking all that FORMAT.md binds: the one way in, for every reader.

    Headers, scales, masks and dense tensors are read, codes are not: every byte of them is lawful. Whether files are
    those that were published, only their sums say: `squeeze10 verify`.

    Raises:
        BadInput: Names the file or tensor.
    """
    checkpoint = open_headers(path)
    check_tensors(checkpoint)
    return checkpoint


def open_headers(path: Path) -> Checkpoint:
    """The first half of `open_checkpoint`: all files, config.json and headers, no tensor."""
    directory = open_directory(path)
    quantization = directory.config.get("quantization_config")
    if not isinstance(quantization, dict):
        raise BadInput(
            f"{path} is not quantized (config.json has no quantization_config); make a checkpoint with: "
            f"squeeze10 quantize {path} OUT."
        )
    check_no_other_weights(path, set(shard_paths(path)))
    check_index(directory)
    try:
        shape = shape_from_config(directory.config)
        check_llama(directory.config, shape)
        checkpoint = Checkpoint(directory, format_from_config(quantization), shape)
        check_headers(checkpoint)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error
    return checkpoint


def check_tensors(checkpoint: Checkpoint) -> None:
    """The second half: scales, masks, copies for one input, dense tensors."""
    for name in checkpoint.tables:
        check_layer(checkpoint, name)
    for index in range(checkpoint.shape.num_layers):
        layers = {name: check_layer(checkpoint, f"{layer_prefix(index)}.{name}") for name in checkpoint.shape.linears()}
        check_group_copies(checkpoint, index, layers)
    check_finite(checkpoint.directory, checkpoint.dense_tensors)


def check_finite(directory: SafetensorsDirectory, names: Iterable[str]) -> None:
    """Raise `BadInput` if a tensor holds NaN or infinity."""
    for name in names:
        # both ends are NaN if one value is; isfinite() alone takes 40 times as long in bf16
        if not torch.stack(directory.tensor(name).aminmax()).isfinite().all():
            raise BadInput(f"{directory.path}: {name} must be finite; it holds NaN or infinity.")


def check_index(directory: SafetensorsDirectory) -> None:
    """Raise `BadInput` unless the index, where there is one, says of every tensor which shard holds it."""
    path = directory.path / INDEX_NAME
    if not path.is_file():
        return
    weight_map = read_json(path)["weight_map"]
    for name in sorted(weight_map.keys() | directory.entries.keys()):
        entry = directory.entries.get(name)
        if entry is None or entry.file.name != weight_map.get(name):
            raise BadInput(f"{path} and the shards disagree on where {name[:200]!r} is; fetch the checkpoint again.")


def check_llama(config: dict[str, Any], shape: LlamaShape) -> None:
    """Raise `BadInput` unless transformers and vLLM build from config.json the model that its sizes describe."""
    if config.get("model_type") != "llama":
        raise BadInput(f"config.json: model_type must be 'llama'; got {reprlib.repr(config.get('model_type'))}.")
    labels = config.get("num_labels", 2)
    if type(labels) is not int or not 0 <= labels <= MAX_LABELS:
        raise BadInput(f"config.json: num_labels must be from 0 to {MAX_LABELS}; got {reprlib.repr(labels)}.")
    if shape.heads % shape.kv_heads:
        raise BadInput(
            f"config.json: num_attention_heads must be a multiple of num_key_value_heads; got {shape.heads} and "
            f"{shape.kv_heads}."
        )
    if shape.head_dim % 2:
        raise BadInput(f"config.json: head_dim must be even, for rotary embeddings; got {shape.head_dim}.")


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
        dtype = entries[tensor].dtype
        if not dtype.is_floating_point:
            raise BadInput(f"{tensor} must be of a floating-point dtype; the file has {dtype}.")
        check_tensor(tensor, entries[tensor].shape, dtype, shape, dtype)
    surplus = sorted(set(entries) - expected)
    if surplus:
        raise BadInput(f"the tensor {surplus[0]} does not belong to the model that config.json describes.")


def check_layer(checkpoint: Checkpoint, name: str) -> dict[str, torch.Tensor]:
    """What describes the codes of a linear or table, by suffix; `BadInput` unless it is lawful."""
    suffixes = ("scales", "channel_scales", "salient_mask")
    tensors = {suffix: checkpoint.directory.tensor(f"{name}.{suffix}") for suffix in suffixes}
    try:
        check_values(tensors, checkpoint.weight_format.of(name), *checkpoint.quantized[name])
    except BadInput as error:
        raise BadInput(f"{checkpoint.directory.path}: {name}.{error}") from error
    return tensors


def require(tensor: str, entries: dict[str, TensorEntry]) -> None:
    """Raise `BadInput` if a tensor is missing."""
    if tensor not in entries:
        raise BadInput(
            f"the tensor {tensor} is missing; the checkpoint is incomplete or config.json belongs to another model."
        )


def check_group_copies(checkpoint: Checkpoint, index: int, layers: dict[str, dict[str, torch.Tensor]]) -> None:
    """Raise `BadInput` unless linears that read one input carry equal channel scales (and column masks).

    Args:
        layers: Of decoder layer `index`: a linear's name to what `check_layer` read.
    """
    shared = ("channel_scales", "salient_mask") if checkpoint.weight_format.mask == "columns" else ("channel_scales",)
    for group in INPUT_GROUPS:
        for suffix in shared:
            for linear in group[1:]:
                if not torch.equal(layers[group[0]][suffix], layers[linear][suffix]):
                    raise BadInput(
                        f"{checkpoint.directory.path}: {layer_prefix(index)}.{linear}.{suffix} must equal that of "
                        f"{group[0]}, which reads the same input; the checkpoint is damaged, quantize it again."
                    )
