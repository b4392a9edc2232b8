"""Plot speed-up over bf16 cuBLAS against tokens, for the linears of a decoder layer with activations gathered.

PYTHONPATH=kernels python deploy/benchmarks/plot_kernels.py results.csv [more.csv ...] plot.svg   # pip install .[bench]

A CSV is one of bench_kernels.py or bench_rivals.py; each is compared with the cuBLAS of its own run. A line for
everything that was timed, from the first CSV that has it.
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

BASE = "cublas_bf16"
NAMES = {
    "mixed_linear": "Squeeze10, 1.6 bits",
    "marlin_w4": "Marlin, 4 bits",
    "machete_w4": "Machete, 4 bits",
    "gemlite_w4": "GemLite, 4 bits",
    "gemlite_w1": "GemLite, 1 bit",
}
FLOORS = ("read_only", "gather_only", "sweep")


def layer_times(path: Path) -> dict[str, dict[int, float]]:
    """Microseconds of a layer's four linears, by what was timed and tokens; only where all four were."""
    each: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            layers = each[row["what"], int(row["tokens"])]
            layers[row["layer"]] = min(float(row["us"]), layers.get(row["layer"], float("inf")))
    most = max(map(len, each.values()))
    sums: dict[str, dict[int, float]] = defaultdict(dict)
    for (what, tokens), layers in each.items():
        if len(layers) == most:
            sums[what][tokens] = sum(layers.values())
    return sums


def speed_ups(sums: dict[str, dict[int, float]]) -> dict[str, dict[int, float]]:
    """Speed-up by tokens of everything that stands beside cuBLAS."""
    base = sums[BASE]
    lines = {what: times for what, times in sums.items() if what not in (BASE, *FLOORS)}
    return {what: {M: base[M] / us for M, us in sorted(times.items()) if M in base} for what, times in lines.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("plot", type=Path)
    parser.add_argument("--model", default="LLaMA2-7B", help="for the title")
    arguments = parser.parse_args()
    lines: dict[str, dict[int, float]] = {}
    for path in arguments.results:
        lines = speed_ups(layer_times(path)) | lines
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for what, points in lines.items():
        print(what, *(f"{tokens}: {speed_up:.2f}" for tokens, speed_up in points.items()))
        axes.plot(list(points), list(points.values()), marker="o", label=NAMES.get(what, what))
    if len(lines) > 1:
        axes.legend()
    axes.axhline(1, color="gray", linewidth=1)
    axes.set_xscale("log", base=2)
    ticks = sorted(set().union(*lines.values()))
    axes.set_xticks(ticks, [str(tokens) for tokens in ticks])
    axes.set_xlabel("tokens in a step")
    axes.set_ylabel("speed-up over bf16 cuBLAS")
    axes.set_title(f"Linears of a {arguments.model} layer, one H200, activations gathered, cold L2")
    axes.set_ylim(bottom=0)
    figure.savefig(arguments.plot, metadata={"Date": None})


if __name__ == "__main__":
    main()
