"""Bits, layer error and perplexity of a model quantized with several flags (the quality table of README.md).

    python deploy/benchmarks/bench_quality.py MODEL --text wiki.test.raw [--flags="--salient-ratio 0.4" ...]

Every flag set is one `squeeze10 quantize` and one `squeeze10 eval`; the first line is the model itself.
"""

import argparse
import json
import shlex
import tempfile
from pathlib import Path

from commands import squeeze10

FLAGS = (
    *(f"--salient-ratio {ratio}" for ratio in (1.0, 0.8, 0.6, 0.53, 0.4, 0.2)),
    "--pbar",
    "--fias",
    "--fias --pbar",
    "--staged",
    "--mask elements",
    "--mask elements --fias --pbar",
)


def perplexity(model: Path, options: argparse.Namespace) -> float:
    limit = ["--max-tokens", str(options.max_tokens)] if options.max_tokens else []
    result = squeeze10("eval", str(model), "--text", str(options.text), "--device", options.device, "--json", *limit)
    return float(json.loads(result)["perplexity"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--flags", action="append", help="of `squeeze10 quantize`; repeatable")
    parser.add_argument("--samples", default="128")
    parser.add_argument("--context", default="512", help="of calibration")
    parser.add_argument("--max-tokens", type=int, help="of the text")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    print(f"original: perplexity {perplexity(options.model, options):.2f}", flush=True)
    calibration = ["--samples", options.samples, "--context", options.context, "--device", options.device]
    for flags in options.flags or FLAGS:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "quantized")
            squeeze10("quantize", str(options.model), str(out), *calibration, *shlex.split(flags))
            summary = json.loads(squeeze10("inspect", str(out), "--json"))
            errors = [layer["relative_output_error"] for layer in summary["layers"]]
            # a distilled layer was not to stay near its original
            mean = "unknown" if None in errors else f"{sum(errors) / len(errors):.4f}"
            print(
                f"{flags}: {summary['bits_per_weight']:.3f} bits, {summary['model_bits_per_weight']:.3f} in the model, "
                f"layer error {mean}, perplexity {perplexity(out, options):.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
