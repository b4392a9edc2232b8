"""Quantize a model directory: calibration, every layer, export."""

import hashlib
import math
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial as bind
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from squeeze10_kernels import BadInput, WeightFormat
from squeeze10_kernels.llama import layer_prefix
from squeeze10_quantizer.calibration import Calibration, load_calibration
from squeeze10_quantizer.card import model_card
from squeeze10_quantizer.curves import Curves
from squeeze10_quantizer.decoder import Decoder
from squeeze10_quantizer.directory import (
    REPORT_NAME,
    LazyTensor,
    copy_companions,
    published,
    sha256,
    write_json,
    write_shards,
    write_sums,
)
from squeeze10_quantizer.distillation import Distillation
from squeeze10_quantizer.lesson import distilled_layers, make_lesson
from squeeze10_quantizer.partial import PartialOutput, difference_from_output, partial_output
from squeeze10_quantizer.pipeline import Job, choose_format, quantize_layers
from squeeze10_quantizer.recipe import Recipe
from squeeze10_quantizer.state_directory import SPILL_PREFIX, remove_leftover, was_published
from squeeze10_quantizer.stopping import deferred_sigterm
from squeeze10_quantizer.training import repeatable

SHOW_STEPS: Final = 20
SAVE_SECONDS: Final = 300.0
"""Between two states of a distillation on disk: what a crash may cost."""


@dataclass(frozen=True, slots=True)
class Text:
    """Files to calibrate on and to distill on; none: a bundled text, and the text of the calibration."""

    calibration: Sequence[Path] = ()
    distillation: Sequence[Path] = ()


def quantize(
    model: Path, out: Path, recipe: Recipe, text: Text, device: torch.device, command: str, curves: Curves
) -> None:
    """Quantize the model directory `model` into the checkpoint directory `out`, which appears when it is whole.

    An interrupted run is taken up again by the same call; of one that had published `out`, only the state is removed.

    Raises:
        BadInput: The model, the calibration files or an interrupted run cannot be used, or `out` is another's.
        OSError: Reading or writing failed.
    """
    finished = was_published(out)
    decoder = Decoder(model, device)
    weight_format = choose_format(decoder, recipe)
    calibration, distillation = read_text(model, recipe, text)
    report = run_identity(decoder, recipe, weight_format, calibration, device)
    if distillation:
        report |= {"distillation": distillation.source, "distillation_sha256": digest(distillation.tokens)}
    if finished:
        remove_leftover(out, report, bind(difference_from_output, out, report))
        tqdm.write(f"{out} was already finished; the state that its run left beside it is removed.")
        return
    with (
        partial_output(out, report, weight_format, decoder.shape) as partial,
        repeatable() if recipe.tuned else nullcontext(),
    ):
        job = Job(decoder, recipe, weight_format, calibration.tokens)
        quantize_all(job, partial, curves)
        report |= calibration_report(job, partial)
        if recipe.tuned:
            report |= {"blocks": block_report(decoder, partial)}
        if distillation:
            report |= {"divergence": distill_all(decoder, recipe, distillation.tokens, partial, curves)}
        report |= {"command": command, "layers": layer_report(decoder, partial)}
        if weight_format.table_parts:
            report |= {"tables": partial.errors(decoder.shape.num_layers)}
        export(decoder, weight_format, partial, report, out)
        partial.remove()


def read_text(model: Path, recipe: Recipe, text: Text) -> tuple[Calibration, Calibration | None]:
    """What to calibrate on, and what to distill on if anything is distilled."""
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    read = bind(load_calibration, tokenizer=tokenizer, context=recipe.context, seed=recipe.seed)
    calibration = read(text.calibration, samples=recipe.samples)
    if recipe.tune != "distill":
        if text.distillation:
            raise BadInput(f"--distill-text is for --tune distill only; --tune is {recipe.tune}.")
        return calibration, None
    distillation = read(text.distillation or text.calibration, samples=None)
    if len(distillation.tokens) < 2:
        raise BadInput(f"The text to distill on must have 2 samples of {recipe.context} tokens; give more of it.")
    return calibration, distillation


def quantize_all(job: Job, partial: PartialOutput, curves: Curves) -> None:
    """Quantize the layers that `partial` lacks, showing progress and the time left."""
    with (
        tempfile.TemporaryDirectory(dir=partial.path, prefix=SPILL_PREFIX) as spill,
        tqdm(total=len(job.steps), unit="layer", desc="quantize", dynamic_ncols=True) as progress,
        deferred_sigterm() as asked_to_stop,
    ):
        dropped: set[int] = set()
        for index, result in quantize_layers(job, Path(spill), partial):
            if result:
                partial.save(index, result)
            for line in calibration_warnings(index, partial, dropped):
                tqdm.write(line, file=sys.stderr)
            dropped.update(partial.dropped(index))
            errors = [error for error in partial.errors(index).values() if error is not None]
            mean = sum(errors) / len(errors)
            curves.add("layer/relative_output_error", index, mean)
            if result and result.loss:
                curves.add("layer/loss_before_tuning", index, result.loss.before)
                curves.add("layer/loss_after_tuning", index, result.loss.after)
            progress.set_postfix_str(f"relative output error {mean:.4f}")
            progress.update()
            if asked_to_stop():
                break


def calibration_warnings(index: int, partial: PartialOutput, known: set[int]) -> Iterator[str]:
    """What a user should hear of a finished layer's calibration; `known` samples were named before."""
    for sample in sorted(set(partial.dropped(index)) - known):
        yield f"Calibration sample {sample} turns into NaN or infinity in layer {index}; it is left out from there on."
    for name, damping in partial.raised_damping(index).items():
        yield f"The Hessian of {name} was singular; its damping is raised to {damping:g} of its mean diagonal."


def distill_all(
    decoder: Decoder, recipe: Recipe, windows: torch.Tensor, partial: PartialOutput, curves: Curves
) -> dict[str, float]:
    """Distill what `partial` holds, keeping the state there; the divergence before and after, in nats a token."""
    lesson = make_lesson(decoder, partial, windows, codes=recipe.distill_codes)
    run = Distillation(lesson, tokens=recipe.distill_tokens, seed=recipe.seed, checkpointing=recipe.checkpointing)
    partial.forget("distilled")  # of a run that was stopped while it saved them
    before = partial.take_up(run)
    before = run.held_out_divergence() if before is None else before
    if not math.isfinite(before):
        raise BadInput("The text held out of distillation gives NaN or infinity; distill on other text.")
    saved = time.monotonic()
    with (
        tqdm(total=run.steps, initial=run.step, unit="step", desc="distill", dynamic_ncols=True) as progress,
        deferred_sigterm() as asked_to_stop,
    ):
        while run.step < run.steps:
            start, loss = run.step, run.train(SHOW_STEPS)
            if not math.isfinite(loss):
                break
            curves.add("distillation/divergence", run.step, loss)
            progress.set_postfix_str(f"divergence {loss:.4f}")
            progress.update(run.step - start)
            if asked_to_stop() or time.monotonic() - saved > SAVE_SECONDS:
                partial.save_distillation(run, before)
                saved = time.monotonic()
            if asked_to_stop():
                break
    run.end()
    after = run.held_out_divergence()
    if not after < before:
        tqdm.write(f"Distillation did not help (divergence {before:.4f} before, {after:.4f} after); it is left out.")
        return {"before": before, "after": before}
    for index, result in enumerate(distilled_layers(run.lesson.student)):
        partial.save(index, result, "distilled")
    return {"before": before, "after": after}


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
        "calibration_sha256": digest(calibration.tokens),
        "versions": {name: version(name) for name in ("squeeze10-vllm", "torch", "transformers")},
        "machine": f"{platform.machine()}, {device_name(device)}, {torch.get_num_threads()} threads",
    }


def device_name(device: torch.device) -> str:
    """What computes: on another GPU the same run gives other bytes."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def digest(tokens: torch.Tensor) -> str:
    """SHA-256 of token ids, hexadecimal."""
    return hashlib.sha256(tokens.numpy().tobytes()).hexdigest()


def model_name(path: Path) -> str:
    """The last part of a model directory's path: what users call the model."""
    return path.resolve().name


def layer_report(decoder: Decoder, partial: PartialOutput) -> dict[str, float | None]:
    """Full name of every linear to its relative output error, if it was measured."""
    layers = range(decoder.shape.num_layers)
    return {name: error for index in layers for name, error in partial.errors(index, partial.last).items()}


def calibration_report(job: Job, partial: PartialOutput) -> dict[str, Any]:
    """Sample to the first layer that was quantized without it; full name of a linear to its raised damping."""
    damping: dict[str, float] = {}
    dropped: dict[int, int] = {}
    for index in job.steps:
        damping |= partial.raised_damping(index)
        dropped = dict.fromkeys(partial.dropped(index), index) | dropped
    return {"dropped_samples": dropped, "raised_damping": damping}


def block_report(decoder: Decoder, partial: PartialOutput) -> list[dict[str, float] | None]:
    """Loss of every decoder layer before and after tuning it by itself, and the steps that were kept."""
    return [partial.loss(index) for index in range(decoder.shape.num_layers)]


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
    for name in decoder.shape.dense_tensors(weight_format.table_parts):
        entry = decoder.source.entries[name]
        tensors[name] = LazyTensor(entry.shape, entry.dtype, bind(decoder.source.tensor, name))
    for index in range(decoder.shape.num_layers):
        for linear, (N, K) in decoder.shape.linears().items():
            for suffix, (shape, dtype) in weight_format.tensor_specs(N, K).items():
                name = f"{layer_prefix(index)}.{linear}.{suffix}"
                tensors[name] = LazyTensor(shape, dtype, bind(partial.tensor, index, name, partial.last))
    for table, size in decoder.shape.tables(weight_format.table_parts).items():
        for suffix, (shape, dtype) in weight_format.of(table).tensor_specs(*size).items():
            name = f"{table}.{suffix}"
            tensors[name] = LazyTensor(shape, dtype, bind(partial.tensor, decoder.shape.num_layers, name))
    return tensors
