"""The state of an unfinished ablation, beside its output: every variant's layers, and what was measured of it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from squeeze10_kernels import QuantizedLinear
from squeeze10_kernels.packing import pack_bits, unpack_bits
from squeeze10_quantizer.ablation_tables import Variant
from squeeze10_quantizer.directory import replaced, write_json, write_safetensors
from squeeze10_quantizer.group import Quantized
from squeeze10_quantizer.state_directory import StateDirectory, state_directory

ORIGINAL = "original"
"""Name under which the model itself is measured."""


@contextmanager
def ablation_state(out: Path, identity: dict[str, Any]) -> Iterator["AblationState"]:
    """The state of an ablation into `out`, new or of an earlier run with the same identity, for this process alone.

    Raises:
        BadInput: An earlier run had other options, model, texts, version or thread count, or is not over.
    """
    with state_directory(out, identity) as path:
        yield AblationState(path)


class AblationState(StateDirectory):
    """Finished layers of every variant, and measures."""

    def layer_file(self, variant: Variant, index: int) -> Path:
        """Where decoder layer `index` of a variant is kept: a byte a weight, the mask and the scales."""
        return self.path / variant.name / f"layer-{index:05d}.safetensors"

    def finished(self, variant: Variant, index: int) -> bool:
        """Whether decoder layer `index` of a variant is done; a damaged file counts as not."""
        try:
            self.errors(variant, index)
        except (FileNotFoundError, SafetensorError):
            return False
        return True

    def save(self, variant: Variant, index: int, linears: dict[str, Quantized]) -> None:
        """Keep a decoder layer of a variant, its linears by their names inside the layer."""
        tensors = {}
        for name, linear in linears.items():
            layer = linear.layer
            tensors[f"{name}.codes"] = layer.codes
            tensors[f"{name}.salient"] = pack_bits(layer.salient)
            tensors[f"{name}.scales"] = layer.scales
            tensors[f"{name}.channel_scales"] = layer.channel_scales
        errors = {name: linear.error for name, linear in linears.items()}
        self.layer_file(variant, index).parent.mkdir(exist_ok=True)
        with replaced(self.layer_file(variant, index)) as file:
            write_safetensors(file, tensors, {"errors": json.dumps(errors)})

    def errors(self, variant: Variant, index: int) -> dict[str, float]:
        """Name to relative output error of the linears of a finished layer."""
        with safe_open(self.layer_file(variant, index), framework="pt") as file:
            errors: dict[str, float] = json.loads(file.metadata()["errors"])
        return errors

    def linears(self, variant: Variant, index: int, device: torch.device) -> dict[str, QuantizedLinear]:
        """The linears of a finished layer."""
        with safe_open(self.layer_file(variant, index), framework="pt") as file:
            names = json.loads(file.metadata()["errors"])
            return {
                name: QuantizedLinear(
                    file.get_tensor(f"{name}.codes").to(device),
                    unpack_bits(file.get_tensor(f"{name}.salient").to(device)).bool(),
                    file.get_tensor(f"{name}.scales").to(device),
                    file.get_tensor(f"{name}.channel_scales").to(device),
                )
                for name in names
            }

    def measures_file(self, name: str) -> Path:
        """Where a variant's measures are kept."""
        return self.path / f"{name}.json"

    def measures(self, name: str) -> dict[str, Any] | None:
        """What was measured of a variant, or of the original; None if nothing was yet."""
        file = self.measures_file(name)
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None  # NaN too, unlike read_json

    def save_measures(self, name: str, measures: dict[str, Any]) -> None:
        """Keep what was measured."""
        with replaced(self.measures_file(name)) as file:
            write_json(file, measures)
