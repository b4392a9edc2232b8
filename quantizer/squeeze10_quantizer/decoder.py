"""The original model, one decoder layer at a time: weights from safetensors, mathematics from transformers."""

from pathlib import Path
from typing import Final

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from squeeze10_kernels import BadInput
from squeeze10_kernels.checkpoint import SafetensorsDirectory, open_directory
from squeeze10_kernels.linear import check_tensor
from squeeze10_kernels.llama import LlamaShape, layer_prefix, shape_from_config

Rotary = tuple[torch.Tensor, torch.Tensor]
FLOATS: Final = (torch.float32, torch.bfloat16, torch.float16)


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
            check_source(self.source, self.shape)
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from error
        self.device = device
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        with torch.device("meta"):
            self.skeleton = AutoModelForCausalLM.from_config(config, dtype=torch.float32).model
        rotary = self.skeleton.rotary_emb
        self.rotary = type(rotary)(config=config).to(device)

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


def layer_outputs(layer: nn.Module, hidden: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """What a decoder layer makes of `[batch, context, hidden]`, each token seeing those before it."""
    out = layer(hidden, position_embeddings=rotary)
    return out if isinstance(out, torch.Tensor) else out[0]


def check_source(source: SafetensorsDirectory, shape: LlamaShape) -> None:
    """Raise `BadInput` unless the directory is a complete unquantized floating-point model without own code."""
    if "quantization_config" in source.config:
        method = (source.config["quantization_config"] or {}).get("quant_method", "unknown")
        raise BadInput(f"the model is already quantized (quant_method {method}); give the original checkpoint.")
    if "auto_map" in source.config:
        raise BadInput("config.json has auto_map, code of its own, which is never run; give a plain LLaMA checkpoint.")
    expected: dict[str, tuple[int, ...]] = dict(shape.dense_tensors(16))
    for index in range(shape.num_layers):
        expected |= {f"{layer_prefix(index)}.{name}.weight": size for name, size in shape.linears().items()}
    for name, size in expected.items():
        if name not in source.entries:
            raise BadInput(f"the tensor {name} is missing; the checkpoint is incomplete, fetch it again.")
        entry = source.entries[name]
        if entry.dtype not in FLOATS:
            raise BadInput(f"{name} must be a float tensor to be quantized; got {entry.dtype}.")
        check_tensor(name, entry.shape, entry.dtype, size, entry.dtype)
