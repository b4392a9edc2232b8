"""Time per output token of vLLM with a LLaMA's sizes and meaningless weights, offline, as CUDA graphs.

    python deploy/benchmarks/bench_serving.py [--size llama2-7b] [--weights squeeze10 | bf16 | gptq]
        [--head-bits 16 | 8 | 4] [--batch 1 8 16 32 64 256] [--out results.csv] [--commit ID] [--options JSON]
        [--prompt 128] [--profile DIR]

One line for a batch of prompts: the time of 129 output tokens less that of one, over 128; before it the
memory of the model and the time of a start, in which vLLM compiles what its cache lacks; vLLM's key holds the model's
path, which is the same in every run of a size. `--options` are further arguments of `vllm.LLM`. `--profile` writes the
kernels of one decode step for every batch and times nothing.
"""

import argparse
import csv
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import vllm
from decode_step import write_decode_step
from gptq_checkpoint import write_gptq_checkpoint
from vllm import LLM, SamplingParams

from squeeze10_kernels.format import HEAD_BITS

OUTPUT_TOKENS = 128
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "max_position_embeddings": 4096,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
COLUMNS = ("gpu", "vllm", "torch", "commit", "size", "weights", "head_bits", "options", "prompt", "batch", "ms")
SIZES = {
    "llama2-7b": (4096, 11008, 32, 32, 32, 32000),
    "llama2-70b": (8192, 28672, 80, 64, 8, 32000),
    "llama3-8b": (4096, 14336, 32, 32, 8, 128256),
}


def write_model(directory: Path, size: str, weights: str, head_bits: int, **changes: int) -> dict[str, Any]:
    """Fill a directory; how vLLM is to load it. `changes` are of config.json."""
    config = LLAMA | dict(zip(FIELDS, SIZES[size], strict=True)) | changes
    if weights == "gptq":
        write_gptq_checkpoint(directory, config)
        return {}
    if weights == "squeeze10":
        quantization = {"quant_method": "squeeze10", "format_version": 1, "mask": "columns", "salient_ratio": 0.2}
        config |= {"quantization_config": quantization | {"chunks": 8, "head_bits": head_bits}}
    (directory / "config.json").write_text(json.dumps(config))
    return {"load_format": "dummy"}


@contextmanager
def model_directory(size: str, weights: str, head_bits: int) -> Iterator[Path]:
    """An empty directory whose path every run of a size shares."""
    folder = Path(tempfile.gettempdir(), f"bench-serving-{size}-{weights}-{head_bits}")
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def generate(model: LLM, prompt: int, batch: int, tokens: int) -> None:
    """So many tokens for each of a batch of prompts of so many tokens."""
    prompts = [{"prompt_token_ids": list(range(5 + 7 * i, 5 + 7 * i + prompt))} for i in range(batch)]
    sampling = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, detokenize=False)
    model.generate(prompts, sampling, use_tqdm=False)


def seconds(run: Callable[[int], None], tokens: int) -> float:
    """The faster of two generations."""
    times = []
    for _ in range(2):
        start = time.perf_counter()
        run(tokens)
        times.append(time.perf_counter() - start)
    return min(times)


def time_batches(model: LLM, prompt: int, batches: list[int]) -> Iterator[tuple[int, float]]:
    """Each batch and its milliseconds per output token."""
    for batch in batches:
        run = partial(generate, model, prompt, batch)
        run(4)
        each = (seconds(run, OUTPUT_TOKENS + 1) - seconds(run, 1)) / OUTPUT_TOKENS * 1e3
        print(f"batch {batch}: {each:.3f} ms per output token", flush=True)
        yield batch, each


def machine(commit: str) -> tuple[str, str, str, str]:
    """What figures depend on besides their options: the first of `COLUMNS`."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return gpu, f"vLLM {vllm.__version__}", f"torch {torch.__version__}", commit


def append_row(path: Path, row: tuple[object, ...]) -> None:
    """Add a line to a CSV, which begins with its columns' names."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        csv.writer(file).writerows([COLUMNS, row] if new else [row])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="llama2-7b")
    parser.add_argument("--weights", choices=("squeeze10", "bf16", "gptq"), default="squeeze10")
    parser.add_argument("--head-bits", type=int, choices=HEAD_BITS, default=16)
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 16, 32, 64, 256])
    parser.add_argument("--out", type=Path, help="a CSV to which lines are added")
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--options", type=json.loads, default={}, help="further arguments of vllm.LLM, as JSON")
    parser.add_argument("--profile", type=Path, help="a directory for the kernels of a decode step")
    arguments = parser.parse_args()
    if arguments.profile:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the profiler sees this process only
    where = machine(arguments.commit)
    what = (arguments.size, arguments.weights, arguments.head_bits, json.dumps(arguments.options), arguments.prompt)
    print(*where, *what, sep=", ", flush=True)
    with model_directory(*what[:3]) as folder:
        loading = write_model(folder, *what[:3])
        start = time.perf_counter()
        settings = {"skip_tokenizer_init": True, "max_model_len": arguments.prompt + 384}
        model = LLM(str(folder), **(settings | loading | arguments.options))
        generate(model, arguments.prompt, 1, 1)
        print(f"first token after {time.perf_counter() - start:.0f} s", flush=True)
        if arguments.profile:
            for batch in arguments.batch:
                run = partial(generate, model, arguments.prompt, batch)
                write_decode_step(run, arguments.profile / f"batch-{batch}.csv")
            return
        for row in time_batches(model, arguments.prompt, arguments.batch):
            if arguments.out:
                append_row(arguments.out, (*where, *what, row[0], f"{row[1]:.4f}"))


if __name__ == "__main__":
    main()
