"""A 4-bit GPTQ checkpoint of a LLaMA's sizes with random codes, in real files.

vLLM looks into the files to see which layers are quantized: with `--load-format dummy` the model would be unquantized.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from squeeze10_kernels.llama import layer_prefix, shape_from_config

GROUP = 128
QUANTIZATION = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}
SYMMETRIC_ZERO = 0x77777777
"""Eight zero points of 8, which GPTQ stores less one."""


def random_linear(N: int, K: int) -> dict[str, torch.Tensor]:
    """Tensors as GPTQ stores them, by suffix."""
    groups = K // GROUP
    return {
        "qweight": torch.randint(-(1 << 31), (1 << 31) - 1, (K // 8, N), dtype=torch.int32, device="cuda"),
        "qzeros": torch.full((groups, N // 8), SYMMETRIC_ZERO, dtype=torch.int32, device="cuda"),
        "scales": ((torch.rand(groups, N, device="cuda") + 0.5) * 0.01).bfloat16(),
        "g_idx": torch.arange(K, dtype=torch.int32, device="cuda") // GROUP,
    }


def random_dense(shape: tuple[int, ...]) -> torch.Tensor:
    """A table, or a norm's ones."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return 0.02 * torch.randn(shape, device="cuda").bfloat16()


def write_file(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    """Write tensors; their names to the file's."""
    save_file(tensors, path)
    return dict.fromkeys(tensors, path.name)


def write_gptq_checkpoint(directory: Path, config: dict[str, Any]) -> None:
    """config.json, a file for every decoder layer, one for the rest, and their index; on the GPU that is at hand."""
    shape = shape_from_config(config)
    where = write_file(
        directory / "rest.safetensors", {name: random_dense(size) for name, size in shape.dense_tensors().items()}
    )
    for layer in range(shape.num_layers):
        tensors = {
            f"{layer_prefix(layer)}.{linear}.{suffix}": tensor
            for linear, size in shape.linears().items()
            for suffix, tensor in random_linear(*size).items()
        }
        where |= write_file(directory / f"layer-{layer}.safetensors", tensors)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (directory / "config.json").write_text(json.dumps(config | {"quantization_config": QUANTIZATION}))
