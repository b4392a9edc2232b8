"""Time, peak memory, bits and layer errors of `squeeze10 quantize` on the demo model (`make bench`).

The targets on two cores: under 6 minutes and under 4 GiB with 128 samples of 512 tokens.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from commands import squeeze10


def measure(model: Path, out: Path, flags: list[str]) -> dict[str, Any]:
    """Quantize once; seconds, peak memory of the process in GiB, bits, mean error of each kind of linear."""
    start = time.perf_counter()
    squeeze10("quantize", str(model), str(out), *flags)
    seconds = time.perf_counter() - start
    summary = json.loads(squeeze10("inspect", str(out), "--json"))
    kinds: dict[str, list[float]] = {}
    for layer in summary["layers"]:
        kinds.setdefault(layer["name"].rpartition(".")[2], []).append(layer["relative_output_error"])
    errors = [error for kind in kinds.values() for error in kind]
    return {
        "flags": " ".join(flags),
        "seconds": round(seconds, 1),
        # the largest child so far: run the leaner configuration first
        "peak_GiB": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20, 2),
        "bits_per_weight": round(summary["bits_per_weight"], 4),
        "salient_ratio": round(summary["salient_ratio"], 4),
        "mean_error": round(sum(errors) / len(errors), 4),
        "errors": {kind: round(sum(part) / len(part), 4) for kind, part in kinds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", default="128")
    parser.add_argument("--context", default="512")
    parser.add_argument("--calibration", type=Path, nargs="+", default=[])
    options = parser.parse_args()
    common = ["--samples", options.samples, "--context", options.context, "--device", "cpu"]
    if options.calibration:
        common += ["--calibration", *map(str, options.calibration)]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "demo-model")
        squeeze10("demo-model", str(model))
        for mask in ("columns", "elements"):
            print(json.dumps(measure(model, Path(folder, mask), ["--mask", mask, *common])), flush=True)


if __name__ == "__main__":
    main()
