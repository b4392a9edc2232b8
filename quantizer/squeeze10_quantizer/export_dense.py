"""`squeeze10 dequantize`: a checkpoint as a plain bf16 Hugging Face directory."""

from functools import partial
from pathlib import Path

import torch

from squeeze10_kernels import Checkpoint, open_checkpoint
from squeeze10_quantizer.directory import (
    LazyTensor,
    copy_companions,
    published,
    write_json,
    write_shards,
    write_sums,
)
from squeeze10_quantizer.loading import checkpoint_weight


def dequantize_checkpoint(path: Path, out: Path) -> None:
    """Write what the codes of checkpoint `path` mean, rounded to bf16, as the model directory `out`."""
    checkpoint = open_checkpoint(path)
    shapes = checkpoint.shape.dense_tensors() | {f"{name}.weight": size for name, size in checkpoint.linears.items()}
    tensors = {
        name: LazyTensor(shape, torch.bfloat16, partial(read_bf16, checkpoint, name)) for name, shape in shapes.items()
    }
    config = dict(checkpoint.directory.config)
    del config["quantization_config"]
    dtype_key = "dtype" if "dtype" in config else "torch_dtype"
    with published(out) as folder:
        write_shards(folder, tensors)
        write_json(folder / "config.json", config | {dtype_key: "bfloat16"})
        copy_companions(path, folder)
        write_sums(folder)


def read_bf16(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """A parameter of the model that the checkpoint stands for, rounded to bf16."""
    return checkpoint_weight(checkpoint, name).bfloat16()
