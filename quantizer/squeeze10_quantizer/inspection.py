"""`squeeze10 inspect` and `verify`: bits counted from the files, and whether a checkpoint is whole."""

import json
from pathlib import Path
from typing import Any, Final

from squeeze10_kernels import BadInput, Checkpoint, open_checkpoint
from squeeze10_kernels.checkpoint import check_tensors, open_headers, read_json
from squeeze10_kernels.safetensors_header import METADATA, header_json
from squeeze10_quantizer.directory import REPORT_NAME, SUMS_NAME, sha256

MAX_SUMS_BYTES: Final = 2**20


def inspect_checkpoint(path: Path) -> dict[str, Any]:
    """Format, achieved salient ratio and real bits of a checkpoint, after checking it.

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
    dense = sum(size_of(shape) for shape in checkpoint.shape.dense_tensors().values())
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
        for name, entry in header_json(file).items():
            if name != METADATA:
                text = json.dumps({name: entry}, separators=(",", ":"))
                begin, end = entry["data_offsets"]
                # the braces around the entry stand for the comma after it
                sizes[name] = end - begin + len(text.encode()) - 1
    return sizes


def layer_errors(path: Path) -> dict[str, float | None]:
    """Relative output errors from the report, None where they were not measured; empty if there is no report."""
    errors = read_report(path).get("layers", {})
    if not isinstance(errors, dict) or not all(error is None or type(error) is float for error in errors.values()):
        raise BadInput(
            f"{path / REPORT_NAME} must map names of linears to numbers under layers; remove it or fetch it again."
        )
    return errors


def read_report(path: Path) -> dict[str, Any]:
    """What `squeeze10 quantize` wrote of how it made a checkpoint; empty if it is not there."""
    report = path / REPORT_NAME
    return read_json(report) if report.is_file() else {}


def verify_checkpoint(path: Path) -> int:
    """Check everything that every reader checks, and the sums of all files. Returns the number of tensors.

    Raises:
        BadInput: Something is wrong; names the file or tensor.
    """
    checkpoint = open_headers(path)
    verify_sums(path)
    check_tensors(checkpoint)
    return len(checkpoint.directory.entries)


def verify_sums(path: Path) -> None:
    """Raise `BadInput` unless SHA256SUMS lists every file of the directory once, with the sum that the file has.

    Hidden files, which download tools leave, need no sum; no reader reads them.
    """
    sums = path / SUMS_NAME
    if not sums.is_file():
        raise BadInput(f"{path} has no {SUMS_NAME}; its files cannot be verified, fetch the checkpoint again.")
    listed = read_sums(sums)
    for name, want in listed.items():
        if Path(name).name != name or not (path / name).is_file():
            raise BadInput(f"{sums} names {name[:200]!r}, which is missing; fetch the checkpoint again.")
        if sha256(path / name) != want:
            raise BadInput(f"{path / name} differs from its sum in {SUMS_NAME}; fetch or quantize it again.")
    for file in sorted(path.iterdir()):
        if file.is_file() and not file.name.startswith(".") and file.name not in listed and file != sums:
            raise BadInput(f"{file} has no sum in {SUMS_NAME}; remove it or fetch the checkpoint again.")


def read_sums(sums: Path) -> dict[str, str]:
    """File name to SHA-256, from lines as `sha256sum` writes them."""
    with sums.open("rb") as file:
        content = file.read(MAX_SUMS_BYTES + 1)
    if len(content) > MAX_SUMS_BYTES:
        raise BadInput(f"{sums} must hold at most {MAX_SUMS_BYTES} bytes; it has more.")
    listed: dict[str, str] = {}
    for line in content.split(b"\n")[:-1] if content.endswith(b"\n") else [content]:
        want, _, name = line.decode("utf-8", errors="replace").partition("  ")
        if not name or name in listed:
            raise BadInput(f"{sums} must hold lines of a sum, two blanks and a name, each once; got {line[:200]!r}.")
        listed[name] = want
    return listed
