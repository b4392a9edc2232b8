"""`squeeze10 inspect` and `verify`: bits counted from the files, and whether a checkpoint is whole."""

import json
from pathlib import Path
from typing import Any

from squeeze10_kernels import BadInput, Checkpoint, open_checkpoint
from squeeze10_kernels.checkpoint import check_group_copies, read_json
from squeeze10_quantizer.directory import SUMS_NAME, sha256


def inspect_checkpoint(path: Path) -> dict[str, Any]:
    """Format, achieved salient ratio and real bits of a checkpoint; reads headers only.

    `bits_per_weight` counts every stored byte of the decoder's linears: codes, masks, scales, biases and their
    entries in the safetensors headers. `model_bits_per_weight` counts the whole files over all weights.
    """
    checkpoint = open_checkpoint(path)
    stored = stored_bytes(checkpoint)
    errors = layer_errors(path)
    linears = checkpoint.linears
    weights = sum(N * K for N, K in linears.values())
    layer_bytes = {name: bytes_of_layer(name, stored) for name in linears}
    files = {entry.file for entry in checkpoint.directory.entries.values()}
    dense = sum(size_of(shape) for shape in checkpoint.shape.dense_tensors(16).values())
    return {
        "format_version": checkpoint.directory.config["quantization_config"]["format_version"],
        "mask": checkpoint.weight_format.mask,
        "chunks": checkpoint.weight_format.chunks,
        "head_bits": checkpoint.weight_format.head_bits,
        "salient_ratio": sum(checkpoint.weight_format.salient_weights(*size) for size in linears.values()) / weights,
        "bits_per_weight": 8 * sum(layer_bytes.values()) / weights,
        "model_bits_per_weight": 8 * sum(file.stat().st_size for file in files) / (weights + dense),
        "layers": [
            {
                "name": name,
                "shape": [N, K],
                "bits": 8 * layer_bytes[name] / (N * K),
                "relative_output_error": errors.get(name),
            }
            for name, (N, K) in linears.items()
        ],
    }


def size_of(shape: tuple[int, ...]) -> int:
    """Number of elements of a shape."""
    size = 1
    for length in shape:
        size *= length
    return size


def bytes_of_layer(name: str, stored: dict[str, int]) -> int:
    """Bytes of all tensors of one linear, its bias included."""
    return sum(size for tensor, size in stored.items() if tensor.rpartition(".")[0] == name)


def stored_bytes(checkpoint: Checkpoint) -> dict[str, int]:
    """Tensor name to its bytes in its file: data and its entry in the header."""
    sizes: dict[str, int] = {}
    for file in {entry.file for entry in checkpoint.directory.entries.values()}:
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                text = json.dumps({name: entry}, separators=(",", ":"))
                begin, end = entry["data_offsets"]
                # the braces around the entry stand for the comma after it
                sizes[name] = end - begin + len(text.encode()) - 1
    return sizes


def layer_errors(path: Path) -> dict[str, float]:
    """Relative output errors from the report; empty if the checkpoint came without one."""
    report = path / "squeeze10_report.json"
    if not report.is_file():
        return {}
    errors: dict[str, float] = read_json(report).get("layers", {})
    return errors


def verify_checkpoint(path: Path) -> int:
    """Read and check everything: headers, sums, codes, scales, copies. Returns the number of tensors.

    Raises:
        BadInput: Something is wrong; names the file or tensor.
    """
    checkpoint = open_checkpoint(path)
    verify_sums(path)
    for name in checkpoint.quantized:
        checkpoint.layer(name)
    for index in range(checkpoint.shape.num_layers):
        check_group_copies(checkpoint, index)
    for name in checkpoint.dense_tensors:
        if not checkpoint.directory.tensor(name).isfinite().all():
            raise BadInput(f"{path}: {name} holds NaN or infinity; quantize the model again.")
    return len(checkpoint.directory.entries)


def verify_sums(path: Path) -> None:
    """Raise `BadInput` unless every file of SHA256SUMS has the sum that stands there."""
    sums = path / SUMS_NAME
    if not sums.is_file():
        raise BadInput(f"{path} has no {SUMS_NAME}; its files cannot be verified, fetch the checkpoint again.")
    for line in sums.read_text(encoding="utf-8").splitlines():
        want, _, name = line.partition("  ")
        if Path(name).name != name or not (path / name).is_file():
            raise BadInput(f"{sums} names {name!r}, which is missing; fetch the checkpoint again.")
        if sha256(path / name) != want:
            raise BadInput(f"{path / name} differs from its sum in {SUMS_NAME}; fetch or quantize it again.")
