"""The original model, one decoder layer at a time: weights from safetensors, mathematics from transformers."""

from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from squeeze10_kernels import BadInput
from squeeze10_kernels.checkpoint import SafetensorsDirectory, check_finite, check_llama, open_directory
from squeeze10_kernels.linear import check_tensor
from squeeze10_kernels.llama import LlamaShape, layer_prefix, shape_from_config

Rotary = tuple[torch.Tensor, torch.Tensor]
FLOATS: Final = (torch.float32, torch.bfloat16, torch.float16)
CONFIG_KEYS: Final = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "tie_word_embeddings", "attention_bias", "mlp_bias", "hidden_act", "max_position_embeddings",
    "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters",
    "original_max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
"""What decides a LLaMA's outputs; transformers acts on many more entries, of which some allocate or load code."""

REFUSALS: Final = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, StrictDataclassError, TypeError,
    ValueError,
)  # fmt: skip
"""How transformers fails on nonsense in a config: it checks some entries, and computes with the others."""


class Decoder:
    """A LLaMA-family model directory whose decoder layers are loaded, run and dropped one by one.

    Attributes:
        source: The directory.
        shape: Its sizes.
        device: Where layers run, in fp32.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        """Open and check a model directory; `BadInput` if it cannot be quantized."""
        self.source = open_directory(path)
        try:
            self.shape = shape_from_config(self.source.config)
            check_llama(self.source.config, self.shape)
            check_source(self.source, self.shape)
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from error
        check_finite(self.source, self.shape.dense_tensors())  # or the export is refused, hours later
        self.device = device
        model = empty_model(path, self.source.config, torch.float32)
        self.skeleton = model.model
        self.rotary = self.skeleton.rotary_emb.to(device)

    def layer(self, index: int) -> nn.Module:
        """Decoder layer `index` in fp32 on the device."""
        return self.filled(self.skeleton.layers[index], layer_prefix(index))

    def final_norm(self) -> nn.Module:
        """The norm after the last layer, in fp32 on the device."""
        return self.filled(self.skeleton.norm, "model.norm")

    def filled(self, module: nn.Module, prefix: str) -> nn.Module:
        """A part of the skeleton with its weights."""
        module = module.to_empty(device=self.device)
        for name, parameter in module.named_parameters(prefix):
            with torch.no_grad():
                parameter.copy_(self.source.tensor(name))
            if not parameter.isfinite().all():
                raise BadInput(f"{self.source.path}: {name} holds NaN or infinity; fetch the model again.")
        return module.eval().requires_grad_(False)

    def drop(self, index: int) -> None:
        """Free the weights of layer `index`."""
        self.skeleton.layers[index].to("meta")

    @torch.no_grad()
    def run(self, layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """Causal forward of one layer: `[batch, context, hidden]` to the same."""
        return layer_outputs(layer, hidden.to(self.device), self.rotary_of(hidden.shape[1]))

    def rotary_of(self, context: int) -> Rotary:
        """Cosines and sines of the first positions, `[1, context, head_dim]` fp32."""
        positions = torch.arange(context, device=self.device)[None]
        cosines, sines = self.rotary(torch.empty(0, device=self.device), positions)
        return cosines, sines


def empty_model(path: Path, entries: dict[str, Any], dtype: torch.dtype) -> PreTrainedModel:
    """The model of a config.json on the meta device, its rotary embedding real.

    Raises:
        BadInput: transformers cannot build it: an unknown activation or rotary embedding, a value of a wrong type.
    """
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


def layer_outputs(layer: nn.Module, hidden: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """What a decoder layer makes of `[batch, context, hidden]`, each token seeing those before it."""
    return hidden_states_of(layer(hidden, position_embeddings=rotary))


def hidden_states_of(out: Any) -> torch.Tensor:
    """Those in what a decoder layer gives, which is they alone or a tuple that begins with them."""
    states: torch.Tensor = out if isinstance(out, torch.Tensor) else out[0]
    return states


def check_source(source: SafetensorsDirectory, shape: LlamaShape) -> None:
    """Raise `BadInput` unless the directory is a complete unquantized floating-point model without own code."""
    if source.config.get("quantization_config") is not None:
        method = source.config["quantization_config"].get("quant_method", "unknown")
        raise BadInput(f"the model is already quantized (quant_method {method}); give the original checkpoint.")
    expected: dict[str, tuple[int, ...]] = dict(shape.dense_tensors())
    for index in range(shape.num_layers):
        expected |= {f"{layer_prefix(index)}.{name}.weight": size for name, size in shape.linears().items()}
    for name, size in expected.items():
        if name not in source.entries:
            raise BadInput(f"the tensor {name} is missing; the checkpoint is incomplete, fetch it again.")
        entry = source.entries[name]
        if entry.dtype not in FLOATS:
            raise BadInput(f"{name} must be a float tensor to be quantized; got {entry.dtype}.")
        check_tensor(name, entry.shape, entry.dtype, size, entry.dtype)
