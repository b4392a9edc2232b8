"""Write the golden checkpoints of format version 1: `python tests/data/make_golden.py`.

They were made once and are never made again: tests pin their values, and every later release must read them.
"""

import json
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file

from squeeze10_kernels import QuantizedLinear, WeightFormat, pack_linear
from squeeze10_kernels.llama import INPUT_GROUPS, LlamaShape, layer_prefix, shape_from_config

FOLDER: Final = Path(__file__).resolve().parent / "golden_v1"
SEED: Final = 1
MODEL: Final = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 1,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 32,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "dtype": "bfloat16",
}
GOLDEN: Final[dict[str, tuple[WeightFormat, dict[str, Any]]]] = {
    "golden_v1_columns": (WeightFormat("columns", 0.2, 2), {"attention_bias": True}),
    "golden_v1_elements": (WeightFormat("elements", 0.2), {"tie_word_embeddings": True}),
}


def random_salient(weight_format: WeightFormat, N: int, K: int, rng: torch.Generator) -> torch.Tensor:
    """A mask with the format's counts."""
    if weight_format.mask == "elements":
        order = torch.randperm(N * K, generator=rng)
        return (order < weight_format.salient_weights(N, K)).view(N, K)
    width, count = K // weight_format.chunks, weight_format.salient_channels(K) // weight_format.chunks
    chunks = [torch.randperm(width, generator=rng) < count for _ in range(weight_format.chunks)]
    return torch.cat(chunks)


def random_linear(salient: torch.Tensor, channel_scales: torch.Tensor, N: int, rng: torch.Generator) -> QuantizedLinear:
    """Codes, and scales of both signs, for a given mask."""
    K = channel_scales.numel()
    codes = torch.randint(0, 16, (N, K), generator=rng, dtype=torch.uint8)
    codes = torch.where(salient.expand(N, K), codes, codes & 1)
    scales = (torch.randn(N, 3, generator=rng) * torch.tensor([0.05, 0.02, 0.01])).half()
    return QuantizedLinear(codes, salient, scales, channel_scales)


def decoder_layer(weight_format: WeightFormat, shape: LlamaShape, rng: torch.Generator) -> dict[str, torch.Tensor]:
    """The packed linears of decoder layer 0, equal copies within every input group."""
    tensors = {}
    for group in INPUT_GROUPS:
        K = shape.linears()[group[0]][1]
        channel_scales = (torch.randn(K, generator=rng) * 0.3).exp().clamp(max=4).half()
        shared = random_salient(weight_format, 1, K, rng) if weight_format.mask == "columns" else None
        for name in group:
            N = shape.linears()[name][0]
            salient = random_salient(weight_format, N, K, rng) if shared is None else shared
            packed = pack_linear(random_linear(salient, channel_scales, N, rng), weight_format)
            tensors |= {f"{layer_prefix(0)}.{name}.{suffix}": tensor for suffix, tensor in packed.items()}
    return tensors


def write_golden(directory: Path, weight_format: WeightFormat, extra: dict[str, Any]) -> None:
    """Write one golden checkpoint."""
    config = MODEL | extra
    shape, rng = shape_from_config(config), torch.Generator().manual_seed(SEED)
    sizes = shape.dense_tensors()
    tensors = {name: (torch.randn(size, generator=rng) * 0.05).bfloat16() for name, size in sizes.items()}
    for name, tensor in decoder_layer(weight_format, shape, rng).items():
        tensors[name] = tensor.clone()  # safetensors refuses the shared copies of channel_scales
    directory.mkdir(parents=True)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "model.safetensors").chmod(0o644)
    text = json.dumps(config | {"quantization_config": weight_format.to_config()}, indent=2)
    (directory / "config.json").write_text(text + "\n")


if __name__ == "__main__":
    for name, (weight_format, extra) in GOLDEN.items():
        write_golden(FOLDER / name, weight_format, extra)
