"""A whole model in transformers, from a plain directory or from what a checkpoint's codes mean."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from squeeze10_kernels import BadInput, Checkpoint, dequantize, open_checkpoint
from squeeze10_kernels.checkpoint import read_json
from squeeze10_kernels.format import QUANT_METHOD
from squeeze10_quantizer.decoder import Decoder

CONFIG_KEYS: Final = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "tie_word_embeddings", "attention_bias", "mlp_bias", "hidden_act", "max_position_embeddings",
    "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
"""What decides a LLaMA's outputs; transformers acts on many more entries, of which some allocate or load code."""

REFUSALS: Final = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, StrictDataclassError, TypeError,
    ValueError,
)  # fmt: skip
"""How transformers fails on nonsense in a config: it checks some entries, and computes with the others."""


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
    model = empty_model(path, dtype)
    weights = {name: read(name).to(dtype) for name, _ in model.named_parameters()}
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    model.to(device)  # type: ignore[arg-type]  # transformers wraps nn.Module.to without its types
    model.eval()
    return model


def empty_model(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a directory's config.json on the meta device, its rotary embedding real.

    Raises:
        BadInput: transformers cannot build it: an unknown activation or rotary embedding, a value of a wrong type.
    """
    entries = read_json(path / "config.json")
    try:
        config = LlamaConfig.from_dict({key: entries[key] for key in CONFIG_KEYS if key in entries})
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
        rotary: Any = model.model.rotary_emb
        model.model.rotary_emb = type(rotary)(config=config)
    except REFUSALS as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{path / 'config.json'} is no LLaMA's: transformers says {reason!r}.") from error
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
    return dequantize(checkpoint.layer(name.removesuffix(".weight")))
