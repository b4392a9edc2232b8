"""What sharing costs: the layer error of own and shared channel choice and scales, and of several chunks.

Matrices that read one input share their salient channels and channel scales in the format (FORMAT.md section 7).
This measures what each would reach on its own, on every third layer of a model.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoTokenizer

from squeeze10_kernels import WeightFormat
from squeeze10_quantizer.activations import collect_inputs
from squeeze10_quantizer.calibration import load_calibration
from squeeze10_quantizer.decoder import Decoder
from squeeze10_quantizer.group import relative_error
from squeeze10_quantizer.hessian import inverse
from squeeze10_quantizer.hidden_states import advance, spilled_embeddings
from squeeze10_quantizer.pipeline import Job
from squeeze10_quantizer.recipe import Recipe
from squeeze10_quantizer.rounding import round_rows
from squeeze10_quantizer.salience import choose_channels, hessian_salience
from squeeze10_quantizer.scales import fit_channel_scales

VARIANTS = {
    "own choice, own scales": (False, False, 1),
    "shared choice, own scales": (True, False, 1),
    "shared choice, shared scales": (True, True, 1),
    "shared choice, shared scales, 8 chunks": (True, True, 8),
}
"""Name to: shared choice, shared channel scales, chunks."""

Weights = dict[str, torch.Tensor]


def inputs_of_layers(job: Job, step: int) -> Iterator[tuple[Weights, torch.Tensor]]:
    """Weights by name and Hessian of every input of every `step`-th layer."""
    with tempfile.TemporaryDirectory() as folder:
        hidden = spilled_embeddings(job.decoder, job.tokens, Path(folder, "hidden.bin"))
        for index in range(job.decoder.shape.num_layers):
            layer = job.decoder.layer(index)
            if index % step:
                advance(job.decoder, layer, hidden)
            else:
                statistics = collect_inputs(layer, lambda: advance(job.decoder, layer, hidden), 0, job.decoder.device)  # noqa: B023
                for group, inputs in statistics.items():
                    weights = {name: layer.get_parameter(f"{name}.weight").detach() for name in group}
                    yield weights, inputs.hessian.value()
            job.decoder.drop(index)


def errors_of_group(
    weights: Weights, hessian: torch.Tensor, damp_ratio: float, variant: tuple[bool, bool, int]
) -> dict[str, float]:
    """Relative output error of each matrix of one input, without the 4-bit stage and PBAR."""
    share_choice, share_scales, chunks = variant
    inverse_hessian = inverse(hessian, damp_ratio)
    salience = {name: hessian_salience(weight, inverse_hessian).sum(0) for name, weight in weights.items()}
    together = torch.stack(list(salience.values())).sum(0)
    # the same number for all variants: rounding to 8 in every chunk of a narrow model would choose more
    count = WeightFormat().salient_channels(len(hessian))
    scales = fit_channel_scales(torch.cat(list(weights.values())))
    errors = {}
    for name, weight in weights.items():
        salient = choose_channels(together if share_choice else salience[name], count, chunks)
        own = scales if share_scales else fit_channel_scales(weight)
        layer = round_rows(weight, weight, salient, own, hessian, inverse_hessian)
        errors[name] = relative_error(weight, layer, hessian)
    return errors


def read_job(description: str | None) -> tuple[Job, int]:
    """What the command line asks for: a model with its calibration text, and how many layers to go on by."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, nargs="+", default=[])
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--every", type=int, default=3, help="take every n-th decoder layer")
    options = parser.parse_args()
    recipe = Recipe(samples=options.samples, context=options.context)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    calibration = load_calibration(
        options.calibration, tokenizer, samples=recipe.samples, context=recipe.context, seed=recipe.seed
    )
    return Job(Decoder(options.model, torch.device("cpu")), recipe, WeightFormat(), calibration.tokens), options.every


class Means:
    """Errors by variant and matrix, and their means."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, list[float]]] = {}

    def add(self, variant: str, name: str, error: float) -> None:
        self.rows.setdefault(variant, {}).setdefault(name.rpartition(".")[2], []).append(error)

    def print(self) -> None:
        for variant, columns in self.rows.items():
            means = {name: sum(part) / len(part) for name, part in columns.items()}
            row = " ".join(f"{name} {mean:.4f}" for name, mean in means.items())
            print(f"{variant:40} {row} mean {sum(means.values()) / len(means):.4f}")


def main() -> None:
    job, every = read_job(__doc__)
    table = Means()
    for weights, hessian in inputs_of_layers(job, every):
        for variant, settings in VARIANTS.items():
            for name, error in errors_of_group(weights, hessian, job.recipe.damp_ratio, settings).items():
                table.add(variant, name, error)
    table.print()


if __name__ == "__main__":
    main()
