"""Plot a CSV of bench_kernels.py: speed-up over bf16 cuBLAS against tokens, as the plugin serves a LLaMA2-7B layer.

PYTHONPATH=kernels python deploy/benchmarks/plot_kernels.py results.csv plot.svg      # pip install .[bench]
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

from squeeze10_kernels.decode_weights import SCRATCH_BYTES
from squeeze10_kernels.tiles import BUCKETS

FUSED = "mixed_with_gather"
DECODED = f"decoded_with_gather_{SCRATCH_BYTES >> 20}MiB"


def layer_times(path: Path) -> dict[str, dict[int, float]]:
    """Microseconds of a layer's four linears, by what was timed and tokens."""
    each: dict[tuple[str, int, str], float] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            key = (row["what"], int(row["tokens"]), row["layer"])
            each[key] = min(float(row["us"]), each.get(key, float("inf")))
    sums: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for (what, tokens, _), us in each.items():
        sums[what][tokens] += us
    return sums


def speed_ups(sums: dict[str, dict[int, float]]) -> dict[int, float]:
    """Speed-up by tokens of what the plugin runs: the fused kernel in the buckets, decoding above."""
    ours = {tokens: sums[FUSED if tokens <= BUCKETS[-1] else DECODED][tokens] for tokens in sums["cublas_bf16"]}
    return {tokens: sums["cublas_bf16"][tokens] / us for tokens, us in sorted(ours.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("plot", type=Path)
    arguments = parser.parse_args()
    points = speed_ups(layer_times(arguments.results))
    print("\n".join(f"{tokens:5d} {speed_up:.2f}" for tokens, speed_up in points.items()))
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(list(points), list(points.values()), marker="o")
    axes.axhline(1, color="gray", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(points), [str(tokens) for tokens in points])
    axes.set_xlabel("tokens in a step")
    axes.set_ylabel("speed-up over bf16 cuBLAS")
    axes.set_title("Linears of a LLaMA2-7B layer, one H200, activations gathered, cold L2")
    axes.set_ylim(bottom=0)
    figure.savefig(arguments.plot, metadata={"Date": None})


if __name__ == "__main__":
    main()
