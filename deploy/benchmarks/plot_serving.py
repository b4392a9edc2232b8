"""Plot the time per output token against the batch, by weights and options of vLLM.

python deploy/benchmarks/plot_serving.py results.csv plot.svg [--size llama2-7b]   # pip install .[bench]
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

WEIGHTS = {"squeeze10": "1.6 bits", "gptq": "GPTQ 4 bits", "bf16": "bf16"}
OPTIONS = {"TRITON_ATTN": "TRITON_ATTN", "enable_pdl": "PDL"}
COMPARED = ("", "TRITON_ATTN, PDL")


def label_of(row: dict[str, str]) -> str:
    return ", ".join(name for key, name in OPTIONS.items() if key in row["options"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("plot", type=Path)
    parser.add_argument("--size", default="llama2-7b")
    arguments = parser.parse_args()
    lines: dict[str, dict[int, float]] = defaultdict(dict)
    with arguments.results.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["size"] == arguments.size and row["head_bits"] == "16"]
    for row in rows:
        label = label_of(row)
        plain = row["options"] == "{}" or label
        if row["prompt"] == "128" and plain and label in COMPARED:
            lines[f"{WEIGHTS[row['weights']]}, {label or 'defaults'}"][int(row["batch"])] = float(row["ms"])
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for label, points in lines.items():
        axes.plot(*zip(*sorted(points.items()), strict=True), marker="o", label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks([1, 8, 16, 32, 64, 256], ["1", "8", "16", "32", "64", "256"])
    axes.set_yticks([2, 4, 8, 16], ["2", "4", "8", "16"])
    axes.set_xlabel("requests at once")
    axes.set_ylabel("ms per output token")
    axes.legend()
    axes.set_title(f"{arguments.size}, {rows[0]['gpu']}, {rows[0]['vllm']}, 128 prompt tokens")
    figure.savefig(arguments.plot, metadata={"Date": None})


if __name__ == "__main__":
    main()
