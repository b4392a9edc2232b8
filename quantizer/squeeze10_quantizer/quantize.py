"""Quantize a model directory: calibration, every layer, export."""

import hashlib
import platform
import tempfile
from collections.abc import Sequence
from functools import partial as bind
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from squeeze10_kernels import WeightFormat
from squeeze10_kernels.llama import layer_prefix
from squeeze10_quantizer.calibration import Calibration, load_calibration
from squeeze10_quantizer.card import model_card
from squeeze10_quantizer.decoder import Decoder
from squeeze10_quantizer.directory import (
    LazyTensor,
    copy_companions,
    published,
    refuse_existing,
    sha256,
    write_json,
    write_shards,
    write_sums,
)
from squeeze10_quantizer.partial import SPILL_PREFIX, PartialOutput, partial_output
from squeeze10_quantizer.pipeline import Job, choose_format, quantize_layers
from squeeze10_quantizer.recipe import Recipe

REPORT_NAME = "squeeze10_report.json"


def quantize(model: Path, out: Path, recipe: Recipe, files: Sequence[Path], device: torch.device, command: str) -> None:
    """Quantize the model directory `model` into the checkpoint directory `out`, which appears when it is whole.

    An interrupted run is taken up again by the same call.

    Raises:
        BadInput: The model, the calibration files or an interrupted run cannot be used.
        OSError: Reading or writing failed.
    """
    refuse_existing(out)
    decoder = Decoder(model, device)
    weight_format = choose_format(decoder, recipe)
    calibration = load_calibration(
        files,
        AutoTokenizer.from_pretrained(model),
        samples=recipe.samples,
        context=recipe.context,
        seed=recipe.seed,
    )
    report = run_identity(decoder, recipe, weight_format, calibration, device)
    with partial_output(out, report, weight_format, decoder.shape) as partial:
        quantize_all(Job(decoder, recipe, weight_format, calibration.tokens), partial)
        report |= {"command": command, "layers": layer_report(decoder, partial)}
        export(decoder, weight_format, partial, report, out)
        partial.remove()


def quantize_all(job: Job, partial: PartialOutput) -> None:
    """Quantize the layers that `partial` lacks, showing progress and the time left."""
    num_layers = job.decoder.shape.num_layers
    with (
        tempfile.TemporaryDirectory(dir=partial.path, prefix=SPILL_PREFIX) as spill,
        tqdm(total=num_layers, unit="layer", desc="quantize", dynamic_ncols=True) as progress,
    ):
        for index, results in quantize_layers(job, Path(spill), partial):
            if results:
                partial.save(index, results)
            errors = partial.errors(index).values()
            progress.set_postfix_str(f"relative output error {sum(errors) / len(errors):.4f}")
            progress.update()


def run_identity(
    decoder: Decoder,
    recipe: Recipe,
    weight_format: WeightFormat,
    calibration: Calibration,
    device: torch.device,
) -> dict[str, Any]:
    """Everything that decides the output's bytes; kept in the report, and compared on resume."""
    shards = sorted({entry.file for entry in decoder.source.entries.values()})
    return {
        "recipe": recipe.to_json(),
        "format": weight_format.to_config(),
        "model": model_name(decoder.source.path),
        "model_sha256": {file.name: sha256(file) for file in [decoder.source.path / "config.json", *shards]},
        "calibration": calibration.source,
        "calibration_sha256": hashlib.sha256(calibration.tokens.numpy().tobytes()).hexdigest(),
        "versions": {name: version(name) for name in ("squeeze10-vllm", "torch", "transformers")},
        "machine": f"{platform.machine()}, {device.type}, {torch.get_num_threads()} threads",
    }


def model_name(path: Path) -> str:
    """The last part of a model directory's path: what users call the model."""
    return path.resolve().name


def layer_report(decoder: Decoder, partial: PartialOutput) -> dict[str, float]:
    """Full name of every linear to its relative output error."""
    return {name: error for index in range(decoder.shape.num_layers) for name, error in partial.errors(index).items()}


def export(
    decoder: Decoder, weight_format: WeightFormat, partial: PartialOutput, report: dict[str, Any], out: Path
) -> None:
    """Publish the checkpoint."""
    with published(out, partial.staging) as folder:
        write_shards(folder, checkpoint_tensors(decoder, weight_format, partial))
        write_json(folder / "config.json", decoder.source.config | {"quantization_config": weight_format.to_config()})
        copy_companions(decoder.source.path, folder)
        write_json(folder / REPORT_NAME, report)
        (folder / "README.md").write_text(model_card(folder, report), encoding="utf-8")
        write_sums(folder)


def checkpoint_tensors(decoder: Decoder, weight_format: WeightFormat, partial: PartialOutput) -> dict[str, LazyTensor]:
    """Every tensor of the checkpoint: those stored as they are from the source, the linears from `partial`."""
    tensors = {}
    for name in decoder.shape.dense_tensors():
        entry = decoder.source.entries[name]
        tensors[name] = LazyTensor(entry.shape, entry.dtype, bind(decoder.source.tensor, name))
    for index in range(decoder.shape.num_layers):
        for linear, (N, K) in decoder.shape.linears().items():
            for suffix, (shape, dtype) in weight_format.tensor_specs(N, K).items():
                name = f"{layer_prefix(index)}.{linear}.{suffix}"
                tensors[name] = LazyTensor(shape, dtype, bind(partial.tensor, index, name))
    return tensors
