"""A tiny random LLaMA as an ordinary unquantized Hugging Face directory, and how tests quantize it."""

import hashlib
from pathlib import Path
from typing import Any, Final

import torch
from tiny_checkpoint import CONFIG, random_dense, write_directory

from squeeze10_kernels.llama import layer_prefix, shape_from_config

SMALL: Final = ["--samples", "4", "--context", "64", "--device", "cpu"]
"""Calibration for tests: a second on two cores."""


def write_tiny_model(path: Path, seed: int = 0, **changes: Any) -> Path:
    """Write the model in bf16 to `path`; `changes` override entries of the config."""
    config = {**CONFIG, **changes}
    shape = shape_from_config(config)
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: random_dense(name, size, generator) for name, size in shape.dense_tensors().items()}
    for index in range(shape.num_layers):
        for linear, (N, K) in shape.linears().items():
            weight = K**-0.5 * torch.randn(N, K, generator=generator)
            tensors[f"{layer_prefix(index)}.{linear}.weight"] = weight.bfloat16()
    write_directory(path, config, tensors)
    return path


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a directory."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}
