"""Student and teacher of a distillation: from a model directory and the state of its quantization, and back."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from squeeze10_kernels import QuantizedLinear, dequantize
from squeeze10_kernels.llama import layer_prefix
from squeeze10_kernels.reference import sum_parts
from squeeze10_quantizer.block_tuning import make_coded, make_latent
from squeeze10_quantizer.decoder import Decoder
from squeeze10_quantizer.distillation import Lesson
from squeeze10_quantizer.group import Quantized
from squeeze10_quantizer.latent import TrainedLinear
from squeeze10_quantizer.layer_result import LayerResult
from squeeze10_quantizer.loading import load_model


class TunedLayers(Protocol):
    """Decoder layers as tuning left them."""

    def linear(self, index: int, name: str) -> QuantizedLinear:
        """One linear of a layer."""

    def latent(self, index: int, name: str) -> torch.Tensor:
        """Its latents, `[N, K]`."""

    def tables(self) -> dict[str, QuantizedLinear]:
        """The quantized embeddings and lm_head, which distillation leaves as they are."""


def make_lesson(decoder: Decoder, tuned: TunedLayers, windows: torch.Tensor, *, codes: bool = True) -> Lesson:
    """Both models on the device, in bf16 on a GPU.

    Args:
        windows: `[n, context]` token ids.
        codes: Whether the student learns codes too, which takes latents; else its scales only.
    """
    dtype = torch.bfloat16 if decoder.device.type == "cuda" else torch.float32
    student, teacher = (load_model(decoder.source.path, dtype, decoder.device).requires_grad_(False) for _ in range(2))
    for index, layer in enumerate(student.model.layers):
        start = {name: on_device(tuned.linear(index, name), decoder.device) for name in decoder.shape.linears()}
        if not codes:
            make_coded(layer, start)
            continue
        for name, linear in make_latent(layer, start).items():
            with torch.no_grad():
                linear.latent.copy_(tuned.latent(index, name))
    for name, table in tuned.tables().items():
        student.get_parameter(f"{name}.weight").data.copy_(sum_parts(dequantize(table), decoder.shape.hidden))
    return Lesson(student, teacher, windows.to(decoder.device))


def on_device(layer: QuantizedLinear, device: torch.device) -> QuantizedLinear:
    """A copy of the layer's tensors on a device."""
    tensors = (layer.codes, layer.salient, layer.scales, layer.channel_scales)
    return QuantizedLinear(*(tensor.to(device) for tensor in tensors))


def distilled_layers(student: PreTrainedModel) -> Iterator[LayerResult]:
    """What the student learned, layer by layer, without errors of single linears, which it was not to keep small."""
    layers: nn.ModuleList = student.model.layers
    for index, layer in enumerate(layers):
        linears = {
            f"{layer_prefix(index)}.{name}": Quantized(module.quantized(), None)
            for name, module in layer.named_modules()
            if isinstance(module, TrainedLinear)
        }
        yield LayerResult(linears)
