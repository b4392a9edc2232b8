"""Plot perplexity against real bits of the linears, both masks, of models that were distilled.

python deploy/benchmarks/plot_bits.py results.csv plot.svg --original 21.97   # pip install .[bench]
"""

import argparse
import csv
from pathlib import Path

from matplotlib.figure import Figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("plot", type=Path)
    parser.add_argument("--original", type=float, required=True, help="perplexity of the original model")
    parser.add_argument("--title", default="SmolLM2-135M, WikiText-2, distilled over 20 million tokens")
    arguments = parser.parse_args()
    with arguments.results.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["tune"] == "distill"]
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for mask in ("columns", "elements"):
        points = sorted((float(r["bits_per_weight"]), float(r["perplexity"])) for r in rows if r["mask"] == mask)
        axes.plot(*zip(*points, strict=True), marker="o", label=f"mask {mask}")
    axes.axhline(arguments.original, color="gray", linewidth=1, label="original, 16 bits")
    axes.legend()
    axes.set_xlabel("bits per weight of the linears, everything counted")
    axes.set_ylabel("perplexity")
    axes.set_ylim(bottom=0)
    axes.set_title(arguments.title)
    figure.savefig(arguments.plot, metadata={"Date": None})


if __name__ == "__main__":
    main()
