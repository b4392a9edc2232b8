"""A 4-bit GPTQ checkpoint of a LLaMA's sizes with random codes, in real files.

vLLM looks into the files to see which layers are quantized: with `--load-format dummy` the model would be unquantized.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

GROUP = 128
QUANTIZATION = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}
SYMMETRIC_ZERO = 0x77777777
"""Eight zero points of 8, which GPTQ stores less one."""


def linear_shapes(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """`[N, K]` of every linear of a decoder layer by name."""
    hidden, mlp = config["hidden_size"], config["intermediate_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    return {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (mlp, hidden),
        "mlp.up_proj": (mlp, hidden),
        "mlp.down_proj": (hidden, mlp),
    }


def random_linear(N: int, K: int) -> dict[str, torch.Tensor]:
    """Tensors as GPTQ stores them, by suffix."""
    groups = K // GROUP
    return {
        "qweight": torch.randint(-(1 << 31), (1 << 31) - 1, (K // 8, N), dtype=torch.int32, device="cuda"),
        "qzeros": torch.full((groups, N // 8), SYMMETRIC_ZERO, dtype=torch.int32, device="cuda"),
        "scales": ((torch.rand(groups, N, device="cuda") + 0.5) * 0.01).bfloat16(),
        "g_idx": torch.arange(K, dtype=torch.int32, device="cuda") // GROUP,
    }


def write_gptq_checkpoint(directory: Path, config: dict[str, Any]) -> None:
    """config.json, a file for every decoder layer, one for the rest, and their index; on the GPU that is at hand."""
    vocabulary, hidden = config["vocab_size"], config["hidden_size"]
    norm, table = torch.ones(hidden).bfloat16(), 0.02 * torch.randn(vocabulary, hidden, device="cuda").bfloat16()
    files = {"rest": {"model.embed_tokens.weight": table, "lm_head.weight": table.clone(), "model.norm.weight": norm}}
    where = dict.fromkeys(files["rest"], "rest.safetensors")
    save_file(files["rest"], directory / "rest.safetensors")
    for layer in range(config["num_hidden_layers"]):
        prefix, name = f"model.layers.{layer}", f"layer-{layer}.safetensors"
        tensors = {
            f"{prefix}.{norm_name}.weight": norm for norm_name in ("input_layernorm", "post_attention_layernorm")
        }
        for linear, shape in linear_shapes(config).items():
            tensors |= {f"{prefix}.{linear}.{suffix}": value for suffix, value in random_linear(*shape).items()}
        save_file({key: value.clone() for key, value in tensors.items()}, directory / name)
        where |= dict.fromkeys(tensors, name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (directory / "config.json").write_text(json.dumps(config | {"quantization_config": QUANTIZATION}))
