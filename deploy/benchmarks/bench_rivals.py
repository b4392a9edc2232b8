"""Time our linear against others that do its job: bf16 cuBLAS, Marlin, Machete and GemLite.

    PYTHONPATH=kernels:VLLM:GEMLITE python deploy/benchmarks/bench_rivals.py --out results.csv [--commit ID]

As in bench_kernels.py: cold weights, launches replayed from a CUDA graph, medians (p20, p80) of one launch. What a
kernel returns is first compared with what its weights, dequantized here, give in fp32; a wrong one is not timed. What
cannot be imported or raises is reported in one line and left out. Several models make a CSV each, `results-MODEL.csv`.
"""

import argparse
import gc
import time
from collections import defaultdict
from functools import partial
from pathlib import Path

import torch
from rivals import GEMLITE, OURS, RIVALS, Linear, first_line, prepare_gemlite, save_gemlite
from timing import MODELS, Results, Shape, relative_error, time_launches

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096)
MAX_ERROR = 2e-2
"""Relative; GemLite rounds partial sums to bf16 up to hundreds of times for 1 to 4 tokens."""
REPLAYS = 20
USUAL = [what for what in RIVALS if not what.endswith("fp16")]
MISSING = float("nan")


def time_rival(
    what: str, layers: dict[str, Shape], results: Results, arguments: argparse.Namespace
) -> dict[tuple[int, str], float]:
    """Microseconds by tokens and layer."""
    times = {}
    for name, shape in layers.items():
        (N, K, _), linear = shape, None
        try:
            linear = RIVALS[what](shape)
            gc.collect()
            gc.freeze()  # every capture collects garbage
            for M in arguments.tokens:
                if time.time() > arguments.deadline:
                    print(f"out of time: {what} {name} from {M} tokens on", flush=True)
                    return times
                times[M, name] = time_one(what, linear, (name, N, K, M), results, arguments.max_error)
        except Exception as error:  # noqa: BLE001 - the others are timed all the same
            print(f"LEFT OUT: {what} {name}: {first_line(error)}", flush=True)
        del linear
        torch.cuda.empty_cache()
        show = " ".join(f"{times.get((M, name), MISSING):.1f}" for M in arguments.tokens)
        print(f"{what:16s} {name:8s} {show}", flush=True)
    return times


def time_one(what: str, linear: Linear, size: tuple[str, int, int, int], results: Results, max_error: float) -> float:
    name, N, K, M = size
    x = torch.randn(M, K, device="cuda", dtype=linear.dtype)
    try:
        error = relative_error(linear.launch(x, linear.copies[0]), linear.expected(x))
        if not error < max_error:
            print(f"WRONG, not timed: {what} {name} {M} tokens: error {error:.3g}", flush=True)
            return MISSING
        times = time_launches([partial(linear.launch, x, copy) for copy in linear.copies], REPLAYS)
    except Exception as error:  # noqa: BLE001 - other sizes are timed all the same
        print(f"LEFT OUT: {what} {name} {M} tokens: {first_line(error)}", flush=True)
        return MISSING
    results.record(name, N, K, M, what, times, moved=linear.packed_bytes, error=error)
    return times[0]


def print_tables(model: str, times: dict[str, dict[tuple[int, str], float]], layers: dict[str, Shape]) -> None:
    sums: dict[tuple[int, str], float] = defaultdict(lambda: MISSING)
    for what, each in times.items():
        for M in {M for M, _ in each}:
            sums[M, what] = sum(each.get((M, name), MISSING) for name in layers)
    for M in sorted({M for M, _ in sums}):
        print(f"\n{model}, {M} tokens: microseconds" + "".join(f"{name:>10s}" for name in (*layers, "sum", "ours is")))
        for what, each in times.items():
            row = "".join(f"{each.get((M, name), MISSING):10.1f}" for name in layers)
            print(f"{what:>40s}{row}{sums[M, what]:10.1f}{sums[M, what] / sums[M, OURS]:9.2f}x", flush=True)


def run_model(model: str, results: Results, arguments: argparse.Namespace) -> None:
    layers, times = MODELS[model], {}
    chosen = [what for what in RIVALS if what in arguments.rivals]
    tuned = [what for what in chosen if what in GEMLITE]
    for what in chosen:
        if tuned and what == tuned[0]:
            prepare_gemlite(arguments, tuned, layers)
        times[what] = time_rival(what, layers, results, arguments)
    print_tables(model, times, layers)
    if tuned and arguments.gemlite_save:
        save_gemlite(arguments.gemlite_save)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["llama2-7b"])
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS))
    parser.add_argument("--rivals", nargs="+", choices=RIVALS, default=USUAL)
    parser.add_argument("--max-error", type=float, default=MAX_ERROR)
    parser.add_argument("--seconds", type=float, default=540, help="then the tables follow with what there is")
    parser.add_argument("--workers", type=int, default=14, help="that compile for GemLite")
    parser.add_argument("--gemlite-tune", choices=["fast", "max", "default"], default="fast")
    parser.add_argument("--gemlite-caching", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--gemlite-load", type=Path, nargs="*", default=[], help="its configurations: not tuned again")
    parser.add_argument("--gemlite-save", type=Path, help="what it has tuned, for --gemlite-load")
    arguments = parser.parse_args()
    arguments.deadline = time.time() + arguments.seconds
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    for model in arguments.models:
        several = len(arguments.models) > 1
        out = arguments.out.with_stem(f"{arguments.out.stem}-{model}") if several else arguments.out
        run_model(model, Results(out, arguments.commit), arguments)


if __name__ == "__main__":
    main()
