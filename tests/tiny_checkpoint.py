"""A tiny random LLaMA as a squeeze10 checkpoint, and its dequantized twin as an ordinary one."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from squeeze10_kernels import QuantizedLinear, WeightFormat, dequantize, pack_linear
from squeeze10_kernels.format import TABLE_FORMAT
from squeeze10_kernels.llama import INPUT_GROUPS, LlamaShape, layer_prefix, shape_from_config
from squeeze10_kernels.reference import sum_parts

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 320,
    "max_position_embeddings": 256,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "torch_dtype": "bfloat16",
}
CHAT_TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant: "


@dataclass(frozen=True)
class TinyCheckpoint:
    """Both directories and what is in them.

    Attributes:
        path: The squeeze10 checkpoint.
        twin: The same weights, dequantized to fp32.
        tensors: Of `path`, by full name.
    """

    path: Path
    twin: Path
    tensors: dict[str, torch.Tensor]


def build_checkpoint(path: Path, weight_format: WeightFormat, seed: int = 0, **changes: Any) -> TinyCheckpoint:
    """Write a checkpoint to `path` and its twin to `path` + `-twin`; `changes` override entries of `CONFIG`."""
    config = {**CONFIG, **changes}
    shape = shape_from_config(config)
    generator = torch.Generator().manual_seed(seed)
    dense = {name: random_dense(name, size, generator) for name, size in shape.dense_tensors().items()}
    packed, decoded = {}, {}
    for name, size in shape.tables(weight_format.table_parts).items():
        table = random_layer(TABLE_FORMAT, *size, generator)
        del dense[f"{name}.weight"]
        decoded[f"{name}.weight"] = sum_parts(dequantize(table), shape.hidden)
        packed |= {f"{name}.{suffix}": tensor for suffix, tensor in pack_linear(table, TABLE_FORMAT).items()}
    for index in range(shape.num_layers):
        for name, layer in random_block(shape, weight_format, generator).items():
            full_name = f"{layer_prefix(index)}.{name}"
            decoded[f"{full_name}.weight"] = dequantize(layer)
            for suffix, tensor in pack_linear(layer, weight_format).items():
                packed[f"{full_name}.{suffix}"] = tensor
    twin = path.with_name(path.name + "-twin")
    quantized_config = {**config, "quantization_config": weight_format.to_config()}
    write_directory(path, quantized_config, {**dense, **packed})
    write_directory(twin, {**config, "torch_dtype": "float32"}, {**dense, **decoded}, torch.float32)
    return TinyCheckpoint(path, twin, {**dense, **packed})


def random_block(
    shape: LlamaShape, weight_format: WeightFormat, generator: torch.Generator
) -> dict[str, QuantizedLinear]:
    """The linears of one decoder layer; those that read one input share its channels, as on disk."""
    sizes = shape.linears()
    layers = {}
    for group in INPUT_GROUPS:
        K = sizes[group[0]][1]
        columns, channel_scales = random_columns(weight_format, K, generator), random_scales(K, generator)
        for name in group:
            layers[name] = random_layer(
                weight_format, sizes[name][0], K, generator, columns=columns, channel_scales=channel_scales
            )
    return layers


def random_layer(
    weight_format: WeightFormat,
    N: int,
    K: int,
    generator: torch.Generator,
    *,
    columns: torch.Tensor | None = None,
    channel_scales: torch.Tensor | None = None,
) -> QuantizedLinear:
    """A layer `[N, K]` with random codes, whose weights have about the variance of a trained one."""
    if columns is None:
        columns = random_columns(weight_format, K, generator)
    if channel_scales is None:
        channel_scales = random_scales(K, generator)
    salient = columns if weight_format.mask == "columns" else random_elements(weight_format, N, K, generator)
    nibbles = torch.randint(0, 16, (N, K), generator=generator)
    bits = torch.randint(0, 2, (N, K), generator=generator)
    codes = torch.where(salient, nibbles, bits).to(torch.uint8)
    spread = torch.tensor([1.0, 0.2, 0.1]) * K**-0.5
    scales = (0.5 + torch.rand(N, 3, generator=generator)) * spread
    return QuantizedLinear(codes, salient, scales.half(), channel_scales)


def random_columns(weight_format: WeightFormat, K: int, generator: torch.Generator) -> torch.Tensor:
    """`[K]` bool, as many salient channels in every chunk as the format says; all false for mask `elements`."""
    salient = torch.zeros(weight_format.chunks, K // weight_format.chunks, dtype=torch.bool)
    if weight_format.mask == "columns":
        for chunk in salient:
            count = weight_format.salient_channels(K) // weight_format.chunks
            chunk[torch.randperm(len(chunk), generator=generator)[:count]] = True
    return salient.flatten()


def random_elements(weight_format: WeightFormat, N: int, K: int, generator: torch.Generator) -> torch.Tensor:
    """`[N, K]` bool with as many salient weights as the format says."""
    salient = torch.zeros(N * K, dtype=torch.bool)
    salient[torch.randperm(N * K, generator=generator)[: weight_format.salient_weights(N, K)]] = True
    return salient.view(N, K)


def random_scales(K: int, generator: torch.Generator) -> torch.Tensor:
    """Channel scales, `[K]` fp16 around 1."""
    return (0.5 + 1.5 * torch.rand(K, generator=generator)).half()


def random_dense(name: str, size: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """An embedding, norm, bias or lm_head in bf16."""
    if "norm" in name:
        return torch.ones(size, dtype=torch.bfloat16)
    spread = 0.1 if name.endswith(".bias") else (0.02 if "embed" in name else size[-1] ** -0.5)
    return (spread * torch.randn(size, generator=generator)).to(torch.bfloat16)


def write_directory(
    path: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], dtype: torch.dtype | None = None
) -> None:
    """A Hugging Face model directory with a byte-level tokenizer."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config, indent=2))
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id")}
    (path / "generation_config.json").write_text(json.dumps(generation))
    # clones: linears that read one input share tensors in memory, not on disk
    stored = {name: tensor.to(dtype or tensor.dtype, copy=True) for name, tensor in tensors.items()}
    save_file(stored, path / "model.safetensors", metadata={"format": "pt"})
    byte_tokenizer().save_pretrained(path)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, no merges; two special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast
