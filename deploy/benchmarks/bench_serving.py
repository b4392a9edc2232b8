"""Time per output token of vLLM with a LLaMA's sizes and meaningless weights, offline, as CUDA graphs.

    python deploy/benchmarks/bench_serving.py [--size llama2-7b] [--weights squeeze10 | bf16] [--head-bits 16 | 4]
        [--batch 1 8 16 32 64 256] [--out results.csv] [--commit ID]

One line for a batch of prompts of 128 tokens: the time of 129 output tokens less that of one, over 128; before it the
memory of the model and the time of a start, in which vLLM compiles what its cache lacks.
"""

import argparse
import csv
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import vllm
from vllm import LLM, SamplingParams

PROMPT_TOKENS = 128
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
SIZES = {
    "llama2-7b": (4096, 11008, 32, 32, 32, 32000),
    "llama2-70b": (8192, 28672, 80, 64, 8, 32000),
    "llama3-8b": (4096, 14336, 32, 32, 8, 128256),
}


def config(size: str, weights: str, head_bits: int) -> dict[str, Any]:
    """What config.json says."""
    plain = LLAMA | dict(zip(FIELDS, SIZES[size], strict=True))
    if weights == "bf16":
        return plain
    quantization = {"quant_method": "squeeze10", "format_version": 1, "mask": "columns", "salient_ratio": 0.2}
    return plain | {"quantization_config": quantization | {"chunks": 8, "head_bits": head_bits}}


def seconds(model: LLM, batch: int, tokens: int) -> float:
    """The faster of two generations."""
    vocabulary = range(5, 31000)
    prompts = [{"prompt_token_ids": [vocabulary[7 * i + j] for j in range(PROMPT_TOKENS)]} for i in range(batch)]
    sampling = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, detokenize=False)
    times = []
    for _ in range(2):
        start = time.perf_counter()
        model.generate(prompts, sampling, use_tqdm=False)
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="llama2-7b")
    parser.add_argument("--weights", choices=("squeeze10", "bf16"), default="squeeze10")
    parser.add_argument("--head-bits", type=int, choices=(16, 4), default=16)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 16, 32, 64, 256])
    parser.add_argument("--out", type=Path, help="a CSV to which lines are added")
    parser.add_argument("--commit", default="unknown")
    arguments = parser.parse_args()
    where = (torch.cuda.get_device_name(), f"vLLM {vllm.__version__}", f"torch {torch.__version__}", arguments.commit)
    what = (arguments.size, arguments.weights, arguments.head_bits)
    print(*where, *what, sep=", ", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config(*what)))
        start = time.perf_counter()
        model = LLM(
            folder, load_format="dummy", skip_tokenizer_init=True, max_model_len=512, gpu_memory_utilization=0.9
        )
        seconds(model, 1, 1)
        print(f"first token after {time.perf_counter() - start:.0f} s", flush=True)
        for batch in arguments.batch:
            seconds(model, batch, 4)
            each = (seconds(model, batch, OUTPUT_TOKENS + 1) - seconds(model, batch, 1)) / OUTPUT_TOKENS
            print(f"batch {batch}: {each * 1e3:.3f} ms per output token", flush=True)
            if arguments.out:
                with arguments.out.open("a", newline="") as file:
                    csv.writer(file).writerow((*where, *what, batch, f"{each * 1e3:.4f}"))


if __name__ == "__main__":
    main()
