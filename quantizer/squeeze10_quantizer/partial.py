"""The state of an unfinished quantization, beside the output: one safetensors file per finished decoder layer.

A process that is killed leaves a state that the next one takes up: files appear by a rename, the lock ends with its
holder, and what the killed one was still writing is removed.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open

from squeeze10_kernels import BadInput, QuantizedLinear, WeightFormat, pack_linear, unpack_linear
from squeeze10_kernels.checkpoint import read_json
from squeeze10_kernels.llama import LlamaShape, layer_prefix
from squeeze10_quantizer.directory import lock, replaced, write_json, write_safetensors
from squeeze10_quantizer.group import Quantized

SPILL_PREFIX: Final = "activations-"
"""Of the directories, inside that of the state, which hold the calibration activations of a running process."""


@contextmanager
def partial_output(
    out: Path, identity: dict[str, Any], weight_format: WeightFormat, shape: LlamaShape
) -> Iterator["PartialOutput"]:
    """The state of quantizing into `out`, new or of an earlier run with the same identity, for this process alone.

    Raises:
        BadInput: An earlier run had another recipe, model, calibration, version or thread count, or is not over.
    """
    path = out.with_name(f"{out.name}.partial")
    path.mkdir(parents=True, exist_ok=True)
    with lock(path / "lock"):
        yield PartialOutput(path, identity, weight_format, shape)


class PartialOutput:
    """`OUT.partial`: finished layers, kept until the output is whole.

    Attributes:
        path: The directory.
    """

    def __init__(self, path: Path, identity: dict[str, Any], weight_format: WeightFormat, shape: LlamaShape) -> None:
        self.path = path
        self.weight_format = weight_format
        self.shape = shape
        state = self.path / "state.json"
        if state.is_file():
            refuse_difference(self.path, read_json(state), json.loads(json.dumps(identity)))
        else:
            with replaced(state) as file:
                write_json(file, identity)
        for unfinished in (*self.path.glob(f"{SPILL_PREFIX}*"), self.staging):
            if unfinished.exists():
                shutil.rmtree(unfinished)

    @property
    def staging(self) -> Path:
        """Where the output is written before it is published."""
        return self.path / "output"

    def layer_file(self, index: int) -> Path:
        """Where decoder layer `index` is kept."""
        return self.path / f"layer-{index:05d}.safetensors"

    def finished(self, index: int) -> bool:
        """Whether decoder layer `index` is done; a damaged file counts as not done."""
        try:
            self.errors(index)
        except (FileNotFoundError, SafetensorError):
            return False
        return True

    def save(self, index: int, results: dict[str, Quantized]) -> None:
        """Keep one decoder layer."""
        tensors: dict[str, torch.Tensor] = {}
        for name, result in results.items():
            packed = pack_linear(result.layer, self.weight_format)
            tensors |= {f"{name}.{suffix}": tensor for suffix, tensor in packed.items()}
        errors = {name: result.error for name, result in results.items()}
        with replaced(self.layer_file(index)) as file:
            write_safetensors(file, tensors, {"errors": json.dumps(errors)})

    def errors(self, index: int) -> dict[str, float]:
        """Name to relative output error of the linears of a finished layer."""
        with safe_open(self.layer_file(index), framework="pt") as file:
            errors: dict[str, float] = json.loads(file.metadata()["errors"])
        return errors

    def tensor(self, index: int, name: str) -> torch.Tensor:
        """One packed tensor of a finished layer."""
        with safe_open(self.layer_file(index), framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def linear(self, index: int, name: str) -> QuantizedLinear:
        """One linear of a finished layer, by its name inside the layer."""
        N, K = self.shape.linears()[name]
        full = f"{layer_prefix(index)}.{name}"
        suffixes = self.weight_format.tensor_specs(N, K)
        tensors = {suffix: self.tensor(index, f"{full}.{suffix}") for suffix in suffixes}
        return unpack_linear(tensors, self.weight_format, N, K)

    def remove(self) -> None:
        """Delete the directory, once the output is published."""
        shutil.rmtree(self.path)


def refuse_difference(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise `BadInput` naming what changed since the interrupted run."""
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        key = changed[0]
        raise BadInput(
            f"{path} holds an interrupted run with another {key} ({before.get(key)!r}, now {now.get(key)!r}); "
            "repeat that run's command to finish it, or remove the directory to start anew."
        )
