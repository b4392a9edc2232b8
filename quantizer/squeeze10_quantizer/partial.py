"""The state of an unfinished quantization, beside the output: one safetensors file per finished decoder layer."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open

from squeeze10_kernels import BadInput, QuantizedLinear, WeightFormat, pack_linear, unpack_linear
from squeeze10_kernels.llama import LlamaShape, layer_prefix
from squeeze10_quantizer.directory import replaced, write_safetensors
from squeeze10_quantizer.distillation import Distillation
from squeeze10_quantizer.inspection import read_report, verify_checkpoint
from squeeze10_quantizer.layer_result import LayerResult
from squeeze10_quantizer.state_directory import StateDirectory, changes, state_directory

Stage = Literal["layer", "distilled"]
"""Of a decoder layer's file: quantized and perhaps tuned by itself, or with the whole model."""


@contextmanager
def partial_output(
    out: Path, identity: dict[str, Any], weight_format: WeightFormat, shape: LlamaShape
) -> Iterator["PartialOutput"]:
    """The state of quantizing into `out`, new or of an earlier run with the same identity, for this process alone.

    Raises:
        BadInput: An earlier run had another recipe, model, calibration, version or thread count, or is not over.
    """
    with state_directory(out, identity) as path:
        yield PartialOutput(path, weight_format, shape)


def difference_from_output(out: Path, identity: dict[str, Any]) -> str:
    """Why `out` is not, byte for byte, what a run with this identity publishes; empty if it is."""
    try:
        report = read_report(out)
        verify_checkpoint(out)
    except BadInput as error:
        return str(error).rstrip(".")
    return changes({key: report.get(key) for key in identity}, identity)


class PartialOutput(StateDirectory):
    """Finished layers.

    Attributes:
        distillation: The file that keeps an unfinished distillation.
    """

    def __init__(self, path: Path, weight_format: WeightFormat, shape: LlamaShape) -> None:
        super().__init__(path)
        self.weight_format = weight_format
        self.shape = shape
        self.distillation = path / "distillation.safetensors"

    def layer_file(self, index: int, stage: Stage = "layer") -> Path:
        """Where decoder layer `index` is kept."""
        return self.path / f"{stage}-{index:05d}.safetensors"

    def finished(self, index: int) -> bool:
        """Whether decoder layer `index`, or after the last one the tables, are done; a damaged file counts as not."""
        try:
            self.errors(index)
        except (FileNotFoundError, SafetensorError):
            return False
        return True

    def save(self, index: int, result: LayerResult, stage: Stage = "layer") -> None:
        """Keep one decoder layer."""
        tensors = {f"{name}.latent": latent for name, latent in result.latents.items()}
        for name, linear in result.linears.items():
            packed = pack_linear(linear.layer, self.weight_format.of(name))
            tensors |= {f"{name}.{suffix}": tensor for suffix, tensor in packed.items()}
        errors = {name: linear.error for name, linear in result.linears.items()}
        damping = {name: linear.raised_damping for name, linear in result.linears.items() if linear.raised_damping}
        loss = asdict(result.loss) if result.loss else None
        notes = {"errors": errors, "loss": loss, "damping": damping, "dropped": result.dropped}
        with replaced(self.layer_file(index, stage)) as file:
            write_safetensors(file, tensors, {key: json.dumps(note) for key, note in notes.items()})

    def errors(self, index: int, stage: Stage = "layer") -> dict[str, float | None]:
        """Name to relative output error of the linears of a finished layer; None where it was not measured."""
        errors: dict[str, float | None] = self.note(index, "errors", stage)
        return errors

    def loss(self, index: int) -> dict[str, float] | None:
        """The `BlockLoss` of a finished layer, as plain values; None if it was not tuned."""
        loss: dict[str, float] | None = self.note(index, "loss", "layer")
        return loss

    def raised_damping(self, index: int) -> dict[str, float]:
        """Name to the damping of its Hessian, of the linears of a finished layer for which it had to be raised."""
        damping: dict[str, float] = self.note(index, "damping", "layer")
        return damping

    def dropped(self, index: int) -> list[int]:
        """Calibration samples that a finished layer was quantized without."""
        dropped: list[int] = self.note(index, "dropped", "layer")
        return dropped

    def note(self, index: int, key: str, stage: Stage) -> Any:
        """What was written beside the tensors of a finished layer."""
        with safe_open(self.layer_file(index, stage), framework="pt") as file:
            return json.loads(file.metadata()[key])

    def tensor(self, index: int, name: str, stage: Stage = "layer") -> torch.Tensor:
        """One packed tensor of a finished layer."""
        with safe_open(self.layer_file(index, stage), framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def linear(self, index: int, name: str, stage: Stage = "layer") -> QuantizedLinear:
        """One linear of a finished layer, by its name inside the layer."""
        return self.unpacked(index, f"{layer_prefix(index)}.{name}", self.shape.linears()[name], stage)

    def tables(self) -> dict[str, QuantizedLinear]:
        """The quantized embeddings and lm_head; empty with 16-bit heads."""
        tables = self.shape.tables(self.weight_format.table_parts)
        return {name: self.unpacked(self.shape.num_layers, name, size) for name, size in tables.items()}

    def unpacked(self, index: int, full: str, size: tuple[int, int], stage: Stage = "layer") -> QuantizedLinear:
        """A linear or table by its full name."""
        weight_format = self.weight_format.of(full)
        suffixes = weight_format.tensor_specs(*size)
        tensors = {suffix: self.tensor(index, f"{full}.{suffix}", stage) for suffix in suffixes}
        return unpack_linear(tensors, weight_format, *size)

    def latent(self, index: int, name: str) -> torch.Tensor:
        """The latents of one linear of a finished layer, by its name inside the layer."""
        return self.tensor(index, f"{layer_prefix(index)}.{name}.latent")

    @property
    def last(self) -> Stage:
        """The stage that the output is made of."""
        return "distilled" if self.layer_file(0, "distilled").exists() else "layer"

    def save_distillation(self, run: Distillation, before: float) -> None:
        """Keep an unfinished distillation, and the divergence that it began with."""
        with replaced(self.distillation) as file:
            write_safetensors(file, run.state(), {"before": json.dumps(before)})

    def take_up(self, run: Distillation) -> float | None:
        """Set a distillation to the kept state; the divergence that it began with, or None without a whole one."""
        try:
            with safe_open(self.distillation, framework="pt") as file:
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
                before: float = json.loads(file.metadata()["before"])
        except (FileNotFoundError, SafetensorError):
            return None
        run.load(state)
        return before

    def forget(self, stage: Stage) -> None:
        """Delete all layers of a stage."""
        for file in self.path.glob(f"{stage}-*"):
            file.unlink()
