"""A whole model in transformers, from a plain directory or from what a checkpoint's codes mean."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedModel

from squeeze10_kernels import BadInput, Checkpoint, dequantize, open_checkpoint
from squeeze10_kernels.checkpoint import read_json
from squeeze10_kernels.format import QUANT_METHOD
from squeeze10_kernels.reference import sum_parts
from squeeze10_quantizer.decoder import Decoder, empty_model


def is_quantized(path: Path) -> bool:
    """Whether a model directory is a squeeze10 checkpoint."""
    config = path / "config.json"
    if not config.is_file():
        raise BadInput(f"{path} has no config.json; give a model directory.")
    quantization = read_json(config).get("quantization_config")
    return isinstance(quantization, dict) and quantization.get("quant_method") == QUANT_METHOD


def load_model(path: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The model for evaluation; a checkpoint's linears are dequantized one by one."""
    read = weight_reader(path)
    model = empty_model(path, read_json(path / "config.json"), dtype)
    weights = {name: read(name).to(dtype) for name, _ in model.named_parameters()}
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    model.to(device)  # type: ignore[arg-type]  # transformers wraps nn.Module.to without its types
    model.eval()
    return model


def weight_reader(path: Path) -> Callable[[str], torch.Tensor]:
    """Parameter name to its weight, for either kind of directory, after checking it."""
    if is_quantized(path):
        checkpoint = open_checkpoint(path)
        return lambda name: checkpoint_weight(checkpoint, name)
    return Decoder(path, torch.device("cpu")).source.tensor


def checkpoint_weight(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """A parameter of the model that a checkpoint stands for; what is quantized in fp32."""
    if name in checkpoint.dense_tensors:
        return checkpoint.directory.tensor(name)
    name = name.removesuffix(".weight")
    weight = dequantize(checkpoint.layer(name))
    return sum_parts(weight, checkpoint.shape.hidden) if name in checkpoint.tables else weight
