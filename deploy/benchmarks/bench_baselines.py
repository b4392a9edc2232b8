"""Ours beside other quantizers in one harness: real bits and perplexity, one calibration text, one evaluation text.

    python deploy/benchmarks/bench_baselines.py MODEL --text wiki.test.raw --work DIR --out FILE.csv [--rows rtn-2 ...]

Every row is a model directory in DIR, measured by `squeeze10 eval`; what is there already is not made again. All
calibrate on the same windows. Bits count what a file holds: of ours the checkpoint, of llama.cpp the GGUF, of the
others the tensors that the weights were decoded from, `NAME.safetensors` beside the directory.

Rows gptq-* need the package llmcompressor, rows iq* and gguf-* the packages llama-cpp-python and gguf.
"""

import argparse
import csv
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import baselines
import gguf_baselines
import torch
from bench_quality import perplexity
from commands import squeeze10
from transformers import AutoTokenizer

from squeeze10_kernels.llama import layer_prefix
from squeeze10_quantizer.calibration import load_calibration
from squeeze10_quantizer.decoder import Decoder
from squeeze10_quantizer.directory import write_safetensors
from squeeze10_quantizer.inspection import inspect_checkpoint, size_of
from squeeze10_quantizer.loading import is_quantized
from squeeze10_quantizer.recipe import Recipe

FIELDS: Final = ("row", "made_by", "bits_per_weight", "model_bits_per_weight", "perplexity", "quantize_s", "eval_s")


@dataclass(frozen=True)
class Bench:
    """A model, where its baselines lie, and the calibration that all of them share."""

    model: Path
    work: Path
    samples: int
    context: int

    @cached_property
    def decoder(self) -> Decoder:
        return Decoder(self.model, torch.device("cpu"))

    @cached_property
    def tokens(self) -> torch.Tensor:
        """`[samples, context]`, those of `squeeze10 quantize` with the same options."""
        tokenizer = AutoTokenizer.from_pretrained(self.model)
        seed = Recipe().seed
        return load_calibration([], tokenizer, samples=self.samples, context=self.context, seed=seed).tokens

    @cached_property
    def importance(self) -> dict[str, torch.Tensor]:
        """Name of a linear to the mean squares of its inputs up to one factor, `[K]`: llama.cpp's importance."""
        found = {}

        def record(index: int, weights: baselines.Weights, hessian: torch.Tensor) -> dict[str, baselines.Stored]:
            for name in weights:
                found[f"{layer_prefix(index)}.{name}"] = hessian.diagonal().clone()
            return {}

        baselines.walk(self.decoder, self.tokens, record, own=False)
        return found


def ours(flags: tuple[str, ...], bench: Bench, out: Path) -> None:
    calibration = ("--samples", str(bench.samples), "--context", str(bench.context), "--device", "cpu")
    squeeze10("quantize", str(bench.model), str(out), *calibration, *flags)


def store(bench: Bench, out: Path, results: dict[str, baselines.Stored]) -> None:
    """Write a baseline's file, and the model directory that it means."""
    tensors = {f"{name}.{suffix}": part for name, one in results.items() for suffix, part in one.tensors.items()}
    write_safetensors(out.with_name(f"{out.name}.safetensors"), tensors)
    baselines.write_plain(bench.decoder, {name: stored.weight for name, stored in results.items()}, out)


def nearest(bits: int, bench: Bench, out: Path) -> None:
    linears = gguf_baselines.linear_sizes(bench.decoder.shape)
    weights = {name: bench.decoder.source.tensor(f"{name}.weight").float() for name in linears}
    store(bench, out, {name: baselines.nearest(weight, bits).stored() for name, weight in weights.items()})


def gptq(bits: int, bench: Bench, out: Path) -> None:
    store(bench, out, baselines.gptq_of_llmcompressor(bench.model, bench.tokens, bits))


def pb_llm(bench: Bench, out: Path) -> None:
    store(bench, out, baselines.walk(bench.decoder, bench.tokens, baselines.round_partly_binary, own=True))


def ptq161_mask(bench: Bench, out: Path) -> None:
    round_input = partial(baselines.round_by_input, bench.decoder.shape.chunks())
    store(bench, out, baselines.walk(bench.decoder, bench.tokens, round_input, own=False))


def llama_cpp(file_type: str | None, folded: bool, bench: Bench, out: Path) -> None:
    """A format of llama.cpp, or its fp32 as a check of the way there and back."""
    shape, file = bench.decoder.shape, out.with_name(f"{out.name}.gguf")
    source = file if file_type is None else out.with_name(f"{out.name}.source.gguf")
    gguf_baselines.write_gguf(bench.model, source, folded=folded)
    if file_type is not None:
        importance = gguf_baselines.importance_of(bench.importance, shape, folded=folded)
        gguf_baselines.quantize_gguf(source, file, file_type, importance, keep_tables=folded)
        source.unlink()
    baselines.write_plain(bench.decoder, gguf_baselines.read_gguf(file, shape), out)


OURS: Final = "squeeze10"
LOOP: Final = "our loop"
LLAMA_CPP: Final = "llama.cpp"

ROWS: Final[dict[str, tuple[str, Callable[[Bench, Path], None]]]] = {
    "ours-columns": (OURS, partial(ours, ("--mask", "columns", "--pbar", "--fias"))),
    "ours-elements": (OURS, partial(ours, ("--mask", "elements", "--pbar", "--fias"))),
    "ours-columns-plain": (OURS, partial(ours, ("--mask", "columns"))),
    "ours-elements-plain": (OURS, partial(ours, ("--mask", "elements"))),
    **{f"rtn-{bits}": (LOOP, partial(nearest, bits)) for bits in (2, 3, 4)},
    **{f"gptq-{bits}": ("llmcompressor", partial(gptq, bits)) for bits in (2, 3)},
    "pb-llm": (LOOP, pb_llm),
    "ptq161-mask": (LOOP, ptq161_mask),
    "gguf-f32": ("gguf", partial(llama_cpp, None, False)),
    **{
        f"{name}{suffix}": (LLAMA_CPP, partial(llama_cpp, name.upper(), folded))
        for suffix, folded in (("", False), ("-folded", True))
        for name in ("iq1_s", "iq2_xxs")
    },
}
"""Name to who made it, and how."""


def bits(bench: Bench, out: Path) -> tuple[float, float]:
    """Bits per weight of the decoder linears, and of the whole model."""
    if is_quantized(out):
        summary = inspect_checkpoint(out)
        return summary["bits_per_weight"], summary["model_bits_per_weight"]
    shape = bench.decoder.shape
    weights = sum(N * K for N, K in gguf_baselines.linear_sizes(shape).values())
    dense = {name: size_of(size) for name, size in shape.dense_tensors().items()}
    everything = weights + sum(dense.values())
    gguf_file, own_file = out.with_name(f"{out.name}.gguf"), out.with_name(f"{out.name}.safetensors")
    if gguf_file.exists():
        linears = gguf_baselines.stored_bytes(gguf_file, shape)
        return 8 * linears / weights, 8 * gguf_file.stat().st_size / everything
    entries = bench.decoder.source.entries
    dense_bytes = sum(count * entries[name].dtype.itemsize for name, count in dense.items())
    linears = own_file.stat().st_size if own_file.exists() else weights * torch.bfloat16.itemsize
    return 8 * linears / weights, 8 * (linears + dense_bytes) / everything


def measure(bench: Bench, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Make a row's model, unless it is there, and measure it."""
    made_by, make = ("", None) if name == "original" else ROWS[name]
    out, seconds = bench.model if make is None else bench.work / name, ""
    if make is not None and not out.exists():
        start = time.monotonic()
        with torch.no_grad():
            make(bench, out)
        seconds = f"{time.monotonic() - start:.0f}"
    linear_bits, model_bits = bits(bench, out)
    start = time.monotonic()
    found = perplexity(out, options)
    values = (name, made_by, f"{linear_bits:.3f}", f"{model_bits:.3f}", f"{found:.2f}", seconds)
    return dict(zip(FIELDS, (*values, f"{time.monotonic() - start:.0f}"), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="directory for the models; grows by 0.5 GB a row")
    parser.add_argument("--out", type=Path, required=True, help="CSV; rows are appended as they finish")
    parser.add_argument("--rows", nargs="+", default=["original", *ROWS], choices=["original", *ROWS])
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--context", type=int, default=512, help="of calibration")
    parser.add_argument("--max-tokens", type=int, help="of the text")
    parser.add_argument("--device", default="cpu", help="of the evaluation")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.model, options.work, options.samples, options.context)
    fresh = not options.out.exists()
    with options.out.open("a", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if fresh:
            table.writeheader()
        for name in options.rows:
            row = measure(bench, name, options)
            table.writerow(row)
            file.flush()
            print(*row.values(), flush=True)


if __name__ == "__main__":
    main()
