"""Screen tuning recipes: perplexity on held-out text after the blocks and after a distillation of so many seconds.

    python deploy/benchmarks/bench_tuning.py MODEL OUT --text tune.txt --held-out held-out.txt [--seconds 300]

Recipes are chosen on the held-out text; --measure is only printed. The steps of the distillation are set by its time
for 20 of them, so that its rates fall to nothing when the time is up. A second run with the same OUT takes the blocks
from there. The layers are kept in OUT.partial; `questions.txt` is answered at the end.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import torch
from ask_questions import answers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from squeeze10_kernels import dequantize
from squeeze10_kernels.llama import layer_prefix
from squeeze10_quantizer import block_tuning, distillation
from squeeze10_quantizer.calibration import load_calibration
from squeeze10_quantizer.curves import Curves
from squeeze10_quantizer.decoder import Decoder
from squeeze10_quantizer.lesson import distilled_layers, make_lesson
from squeeze10_quantizer.loading import load_model
from squeeze10_quantizer.partial import PartialOutput, Stage, partial_output
from squeeze10_quantizer.perplexity import perplexity
from squeeze10_quantizer.pipeline import Job, choose_format
from squeeze10_quantizer.quantize import quantize_all, run_identity
from squeeze10_quantizer.recipe import Recipe
from squeeze10_quantizer.training import Rates

TIMED_STEPS = 20
RESERVE_SECONDS = 25


def measure(
    options: argparse.Namespace, layers: PartialOutput, stage: Stage, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Print perplexities and answers of a stage, in bf16."""
    model = load_model(options.model, torch.bfloat16, torch.device(options.device))
    for index in range(layers.shape.num_layers):
        for name in layers.shape.linears():
            weight = model.get_parameter(f"{layer_prefix(index)}.{name}.weight")
            weight.data.copy_(dequantize(layers.linear(index, name, stage)))
    for file, context in ((options.held_out, options.context), (options.measure, 2048)):
        if file:
            ids = tokenizer(file.read_text(encoding="utf-8"), verbose=False)["input_ids"]
            print(f"{stage}: {file.name} perplexity {perplexity(model, ids, context)['perplexity']:.3f}", flush=True)
    print(*answers(model, tokenizer), sep="\n", flush=True)


def distill(decoder: Decoder, windows: torch.Tensor, layers: PartialOutput, seconds: float) -> None:
    """The product's distillation for a time."""
    start = time.time()
    run = distillation.Distillation(make_lesson(decoder, layers, windows), tokens=10**12, seed=0)
    print(f"{len(windows)} windows, divergence {run.held_out_divergence():.4f}", flush=True)
    run.train(TIMED_STEPS)  # compiles
    begin = time.time()
    run.train(TIMED_STEPS)
    each = (time.time() - begin) / TIMED_STEPS
    run.steps = run.step + max(1, int((seconds - RESERVE_SECONDS - time.time() + start) / each))
    tokens = run.steps * run.lesson.batch * windows.shape[1]
    print(f"{each * 1e3:.1f} ms a step, {run.steps} steps, {tokens / 1e6:.1f} million tokens", flush=True)
    while run.step < run.steps:
        print(f"{run.step} {run.train(250):.4f} {time.time() - start:.0f} s", flush=True)
    print(f"divergence {run.held_out_divergence():.4f}, {time.time() - start:.0f} s", flush=True)
    for index, result in enumerate(distilled_layers(run.lesson.student)):
        layers.save(index, result, "distilled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", type=Path, nargs="+", default=[])
    parser.add_argument("--distill-text", type=Path, nargs="+", default=[])
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--measure", type=Path)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--block-steps", type=int, default=400)
    parser.add_argument(
        "--block-rates", type=float, nargs=2, default=[block_tuning.RATES.latent, block_tuning.RATES.scales]
    )
    parser.add_argument("--rates", type=float, nargs=2, default=[distillation.RATES.latent, distillation.RATES.scales])
    parser.add_argument("--seconds", type=float, default=0, help="of distillation; 0: none")
    parser.add_argument("--fias", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--salient-ratio", type=float, default=0.2)
    parser.add_argument("--mask", choices=["columns", "elements"], default="columns")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    block_tuning.RATES, distillation.RATES = Rates(*options.block_rates), Rates(*options.rates)
    recipe = Recipe(
        mask=options.mask, salient_ratio=options.salient_ratio, samples=options.samples, context=options.context,
        pbar=False, fias=options.fias, tune="distill", tune_steps=options.block_steps,
    )  # fmt: skip
    decoder = Decoder(options.model, torch.device(options.device))
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    read = partial(load_calibration, tokenizer=tokenizer, context=options.context, seed=0)
    weight_format, start = choose_format(decoder, recipe), time.time()
    calibration = read(options.text, samples=recipe.samples)
    identity = run_identity(decoder, recipe, weight_format, calibration, decoder.device)
    identity |= {"rates": options.block_rates}
    with partial_output(options.out, identity, weight_format, decoder.shape) as layers:
        quantize_all(Job(decoder, recipe, weight_format, calibration.tokens), layers, Curves(None))
        print(f"blocks {time.time() - start:.0f} s", flush=True)
        measure(options, layers, "layer", tokenizer)
        if options.seconds:
            windows = read(options.distill_text or options.text, samples=None).tokens
            distill(decoder, windows, layers, options.seconds)
            measure(options, layers, "distilled", tokenizer)


if __name__ == "__main__":
    main()
