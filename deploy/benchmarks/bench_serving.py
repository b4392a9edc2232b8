"""Time per output token of vLLM with LLaMA2-7B's sizes and meaningless weights, offline, as CUDA graphs.

    python deploy/benchmarks/bench_serving.py [--batch 1 8 16 32 64]

One line for a batch of prompts of 128 tokens: the time of 129 output tokens less that of one, over 128.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
import vllm
from vllm import LLM, SamplingParams

PROMPT_TOKENS = 128
OUTPUT_TOKENS = 128
LLAMA2_7B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "quantization_config": {
        "quant_method": "squeeze10",
        "format_version": 1,
        "mask": "columns",
        "salient_ratio": 0.2,
        "chunks": 8,
    },
}


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
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 16, 32, 64])
    arguments = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, vLLM {vllm.__version__}, torch {torch.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(LLAMA2_7B))
        model = LLM(
            folder, load_format="dummy", skip_tokenizer_init=True, max_model_len=512, gpu_memory_utilization=0.4
        )
        for batch in arguments.batch:
            seconds(model, batch, 4)
            each = (seconds(model, batch, OUTPUT_TOKENS + 1) - seconds(model, batch, 1)) / OUTPUT_TOKENS
            print(f"batch {batch}: {each * 1e3:.3f} ms per output token", flush=True)


if __name__ == "__main__":
    main()
