"""Clients' requests to a running server at rising rates: `vllm bench serve` against `vllm serve`.

    PYTHONPATH=deploy python deploy/benchmarks/bench_requests.py --out results.csv --tokenizer DIR [--size llama2-7b]
        [--weights squeeze10 bf16 gptq] [--flags FLAG ...] [--rates 1 4 16 inf] [--seconds 20] [--commit ID]
    PYTHONPATH=deploy python deploy/benchmarks/bench_requests.py --out results.csv --checkpoint DIR

Random prompts of 128 tokens, 128 tokens of answer. Without a checkpoint the weights are meaningless, of these sizes but
for the vocabulary, which is the tokenizer's. A rate is of requests a second; `inf` sends them all at once.
"""

import argparse
import csv
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from bench_serving import COLUMNS, SIZES, machine, write_model
from vllm_server import SERVED_NAME, VLLM, serving

TOKENS = 128
SATURATION = 512
"""Requests at once for the rate `inf`."""
MEASURED = (
    "completed",
    "request_throughput",
    "output_throughput",
    "median_ttft_ms",
    "p99_ttft_ms",
    "median_tpot_ms",
    "p99_tpot_ms",
)


def write_sizes(directory: Path, size: str, weights: str, tokenizer: Path) -> list[str]:
    """A model of these sizes with that tokenizer; the flags by which vLLM loads it."""
    vocabulary = len(json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"])
    loading = write_model(directory, size, weights, 16, vocab_size=vocabulary)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, directory / name)
    return [text for key, value in loading.items() for text in (f"--{key.replace('_', '-')}", value)]


def measure(url: str, tokenizer: Path, rate: str, seconds: float) -> dict[str, float]:
    """What `vllm bench serve` says of one rate."""
    prompts = SATURATION if rate == "inf" else max(4, round(float(rate) * seconds))
    with tempfile.TemporaryDirectory() as folder:
        command = [*VLLM, "bench", "serve", "--backend", "openai", "--base-url", url.removesuffix("/v1")]
        command += ["--model", SERVED_NAME, "--tokenizer", str(tokenizer), "--dataset-name", "random", "--ignore-eos"]
        command += ["--random-input-len", str(TOKENS), "--random-output-len", str(TOKENS), "--disable-tqdm"]
        command += ["--num-prompts", str(prompts), "--request-rate", rate, "--save-result"]
        command += ["--result-dir", folder, "--result-filename", "result.json", "--percentile-metrics", "ttft,tpot"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        result = json.loads(Path(folder, "result.json").read_text())
    return {name: float(result[name]) for name in MEASURED}


def measure_rates(
    model: Path, tokenizer: Path, flags: list[str], arguments: argparse.Namespace
) -> Iterator[tuple[str, dict[str, float]]]:
    """Each rate and its figures, of one server."""
    graphs = ["--no-enforce-eager"] if torch.cuda.is_available() else []
    with serving(model, arguments.log, *graphs, *flags) as url:
        for rate in (arguments.rates[0], *arguments.rates):  # the first once more: it finds the server cold
            yield rate, measure(url, tokenizer, rate, arguments.seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a real model rather than one of such sizes")
    parser.add_argument("--size", choices=SIZES, default="llama2-7b")
    parser.add_argument("--weights", nargs="+", choices=("squeeze10", "bf16", "gptq"), default=["squeeze10", "bf16"])
    parser.add_argument("--tokenizer", type=Path, help="a directory with tokenizer.json; of no use with --checkpoint")
    parser.add_argument("--flags", nargs="+", default=[], help="of vllm serve, without their dashes: name=value")
    parser.add_argument("--rates", nargs="+", default=["1", "4", "16", "64", "inf"])
    parser.add_argument("--seconds", type=float, default=20, help="for which requests of a rate arrive")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--log", type=Path, default=Path("bench_requests.log"), help="of the server")
    parser.add_argument("--commit", default="unknown")
    arguments = parser.parse_args()
    flags = [f"--{flag}" for flag in arguments.flags]
    with arguments.out.open("w", newline="") as file, tempfile.TemporaryDirectory() as folder:
        writer = csv.writer(file)
        where = machine(arguments.commit)
        writer.writerow((*COLUMNS[: len(where)], "model", "flags", "rate", *MEASURED))
        for name in [arguments.checkpoint.name] if arguments.checkpoint else arguments.weights:
            model, tokenizer, loading = arguments.checkpoint, arguments.checkpoint, []
            if not arguments.checkpoint:
                model, tokenizer = Path(folder, name), arguments.tokenizer
                model.mkdir()
                loading = write_sizes(model, arguments.size, name, tokenizer)
            for rate, figures in measure_rates(model, tokenizer, [*loading, *flags], arguments):
                writer.writerow((*where, name, " ".join(flags), rate, *figures.values()))
                file.flush()
                print(name, rate, figures, flush=True)


if __name__ == "__main__":
    main()
