"""The paper's ablations on the user's own model: quantize every variant, measure it, report."""

import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from squeeze10_kernels import BadInput
from squeeze10_kernels.format import Mask
from squeeze10_quantizer.ablation_report import plot_table, render
from squeeze10_quantizer.ablation_state import ORIGINAL, AblationState, ablation_state
from squeeze10_quantizer.ablation_tables import Table, Variant, make_table, variants_of
from squeeze10_quantizer.ablation_walk import Ablation, quantize_variants
from squeeze10_quantizer.calibration import load_calibration
from squeeze10_quantizer.decoder import Decoder
from squeeze10_quantizer.directory import published, write_json
from squeeze10_quantizer.loading import load_model
from squeeze10_quantizer.measures import Measures
from squeeze10_quantizer.pipeline import choose_format, set_weight
from squeeze10_quantizer.quantize import run_identity
from squeeze10_quantizer.recipe import Recipe
from squeeze10_quantizer.state_directory import SPILL_PREFIX, changes, remove_leftover, was_published
from squeeze10_quantizer.stopping import deferred_sigterm
from squeeze10_quantizer.training import repeatable

RESULTS_NAME: Final = "results.json"
TABLES_NAME: Final = "tables.md"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run.

    Attributes:
        numbers: Of the paper's tables, 3 to 6.
        masks: Every table is run under each.
        base: The recipe that the tables vary.
        calibration: Text files; none: a bundled text.
    """

    numbers: Sequence[int]
    masks: Sequence[Mask]
    base: Recipe
    calibration: Sequence[Path] = ()

    def tables(self) -> list[Table]:
        """One for each number and mask."""
        return [make_table(number, replace(self.base, mask=mask)) for number in self.numbers for mask in self.masks]


def ablate(
    model: Path, out: Path, plan: Plan, measures: Measures, device: torch.device, command: str
) -> dict[str, Any]:
    """Run the tables of a plan on a model directory; the results, which `out` holds too, with tables and plots.

    An interrupted run is taken up again by the same call; of one that had published `out`, only the state is removed.

    Raises:
        BadInput: The model, the calibration files or an interrupted run cannot be used, or `out` is another's.
        OSError: Reading or writing failed.
    """
    finished = was_published(out)
    decoder = Decoder(model, device)
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    base, tables = plan.base, plan.tables()
    text = load_calibration(plan.calibration, tokenizer, samples=base.samples, context=base.context, seed=base.seed)
    ablation = Ablation(decoder, variants_of(tables), text.tokens)
    identity = run_identity(decoder, base, choose_format(decoder, base), text, device)
    identity |= {"numbers": list(plan.numbers), "masks": list(plan.masks), "measured": measures.identity}
    if finished:
        remove_leftover(out, identity, partial(difference_from_results, out, identity))
        tqdm.write(f"{out} was already finished; the state that its run left beside it is removed.", file=sys.stderr)
        return read_results(out)
    with ablation_state(out, identity) as state:
        with repeatable() if base.tuned else nullcontext():
            quantize_all(ablation, state)
        measure_all(ablation, state, measures, tokenizer)
        results = identity | {"command": command} | collect_results(ablation, state, tables)
        with published(out, state.staging) as folder:
            write_json(folder / RESULTS_NAME, results)
            (folder / TABLES_NAME).write_text(render(results), encoding="utf-8")
            for table in results["tables"]:
                plot_table(table, folder)
        state.remove()
    return results


def read_results(out: Path) -> dict[str, Any]:
    """What an ablation published; `BadInput` if it is no results."""
    try:
        results: dict[str, Any] = json.loads((out / RESULTS_NAME).read_text(encoding="utf-8"))  # with NaN
    except (OSError, ValueError) as error:
        raise BadInput(f"{out} holds no {RESULTS_NAME} that can be read: {error}.") from error
    return results


def difference_from_results(out: Path, identity: dict[str, Any]) -> str:
    """Why `out` does not hold what an ablation with this identity publishes; empty if it does."""
    try:
        results = read_results(out)
    except BadInput as error:
        return str(error).rstrip(".")
    return changes({key: results.get(key) for key in identity}, identity)


def quantize_all(ablation: Ablation, state: AblationState) -> None:
    """Quantize the layers that `state` lacks, showing progress and the time left."""
    total = len(ablation.layers) * len(ablation.variants)
    with (
        tempfile.TemporaryDirectory(dir=state.path, prefix=SPILL_PREFIX) as spill,
        tqdm(total=total, unit="layer", desc="quantize", dynamic_ncols=True) as progress,
        deferred_sigterm() as asked_to_stop,
    ):
        for index, variant in quantize_variants(ablation, state, Path(spill)):
            progress.set_postfix_str(f"layer {index} of {variant.name}")
            progress.update()
            if asked_to_stop():
                break


def measure_all(
    ablation: Ablation, state: AblationState, measures: Measures, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Measure the original and every variant, as far as `state` lacks it."""
    if all(state.measures(name) is not None for name in (ORIGINAL, *(v.name for v in ablation.variants))):
        return
    decoder = ablation.decoder
    model = load_model(decoder.source.path, torch.float32, decoder.device)
    for variant in (None, *ablation.variants):
        name = variant.name if variant else ORIGINAL
        if state.measures(name) is not None:
            continue
        if variant:
            set_variant(model, ablation, state, variant)
        found = measures.take(model, tokenizer)
        state.save_measures(name, found)
        tqdm.write(f"{name}: {summary(found)}", file=sys.stderr)


def set_variant(model: PreTrainedModel, ablation: Ablation, state: AblationState, variant: Variant) -> None:
    """Give a model the weights of a variant, all decoder linears of it."""
    for index in ablation.layers:
        for name, linear in state.linears(variant, index, ablation.decoder.device).items():
            set_weight(model.model.layers[index], name, linear)


def summary(found: dict[str, Any]) -> str:
    """Measures in a line."""
    parts = [f"perplexity {found['perplexity']:.4f}"] if "perplexity" in found else []
    parts += [f"{name} {task['acc']:.4f}" for name, task in found.get("tasks", {}).items()]
    return ", ".join(parts)


def collect_results(ablation: Ablation, state: AblationState, tables: Sequence[Table]) -> dict[str, Any]:
    """The tables with what was measured, as plain values."""
    found = {variant: measured_variant(ablation, state, variant) for variant in ablation.variants}
    return {
        "original": state.measures(ORIGINAL),
        "tables": [
            {
                "number": table.number,
                "title": table.title,
                "mask": table.mask,
                "column": table.column,
                "paper_column": table.paper_column,
                "rows": [
                    {"label": row.label, "paper": row.paper, "paper_better": row.paper_better} | found[row.variant]
                    for row in table.rows
                ],
            }
            for table in tables
        ],
    }


def measured_variant(ablation: Ablation, state: AblationState, variant: Variant) -> dict[str, Any]:
    """Bits, error and measures of a variant."""
    decoder = ablation.decoder
    errors = [error for index in ablation.layers for error in state.errors(variant, index).values()]
    return {
        "variant": variant.name,
        "salient_bits": variant.salient_bits,
        "bits": variant.bits(decoder.shape, choose_format(decoder, variant.recipe)),
        "layer_error": sum(errors) / len(errors),
        **(state.measures(variant.name) or {}),
    }
