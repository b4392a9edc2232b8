"""Other ways to quantize the decoder linears, each with the very tensors that a file of it would hold.

Nearest and PB-LLM are written here after their publications, PTQ1.61's mask is a switch of our own loop, GPTQ is
llmcompressor's. What a layer computes with is decoded from what is stored, so the bytes are enough for the weights.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch

from squeeze10_kernels import WeightFormat, dequantize, pack_linear
from squeeze10_kernels.format import SALIENT_BITS
from squeeze10_kernels.llama import layer_prefix
from squeeze10_kernels.packing import pack_bits
from squeeze10_quantizer.activations import collect_inputs
from squeeze10_quantizer.decoder import Decoder
from squeeze10_quantizer.demo_model import weight_names
from squeeze10_quantizer.directory import LazyTensor, copy_companions, published, write_json, write_shards
from squeeze10_quantizer.gptq import compensate
from squeeze10_quantizer.hessian import compensation_factor, inverse
from squeeze10_quantizer.hidden_states import advance, spilled_embeddings
from squeeze10_quantizer.rounding import round_rows
from squeeze10_quantizer.salience import choose_channels, choose_elements
from squeeze10_quantizer.scales import fit_channel_scales

GROUP_SIZE: Final = 64
"""Input channels that share a scale in the uniform formats; the usual 128 does not divide SmolLM2's 576."""
DAMP_RATIO: Final = 0.01
SALIENT_RATIO: Final = 0.2

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Stored:
    """One linear: the tensors in its file by suffix, and the weights `[N, K]` fp32 that they mean."""

    tensors: Weights
    weight: torch.Tensor


RoundInput = Callable[[int, Weights, torch.Tensor], dict[str, Stored]]
"""Layer index, weights `[N, K]` of the linears with one input, its Hessian `[K, K]`; name to result, or nothing."""


def walk(decoder: Decoder, tokens: torch.Tensor, round_input: RoundInput, *, own: bool) -> dict[str, Stored]:
    """Show every input of every decoder layer to `round_input`; full name of a linear to what came back.

    Args:
        tokens: Calibration `[samples, context]`.
        own: Calibrate a layer on the activations of the rounded layers before it, else on the original model's.
    """
    results: dict[str, Stored] = {}
    with tempfile.TemporaryDirectory() as folder:
        hidden = spilled_embeddings(decoder, tokens, Path(folder, "hidden.bin"))
        for index in range(decoder.shape.num_layers):
            layer = decoder.layer(index)
            run = partial(advance, decoder, layer, hidden, store=not own)
            for group, seen in collect_inputs(layer, run, 0, decoder.device).items():
                weights = {name: layer.get_parameter(f"{name}.weight").detach() for name in group}
                rounded = round_input(index, weights, seen.hessian.value())
                results |= {f"{layer_prefix(index)}.{name}": stored for name, stored in rounded.items()}
            if own:
                for name in decoder.shape.linears():
                    layer.get_parameter(f"{name}.weight").copy_(results[f"{layer_prefix(index)}.{name}"].weight)
                advance(decoder, layer, hidden)
            decoder.drop(index)
    return results


def write_plain(decoder: Decoder, weights: Mapping[str, torch.Tensor], out: Path) -> None:
    """Write a model directory with these weights (name without `.weight` to fp32), all else as in the model."""
    tensors = {}
    for name in weight_names(decoder.shape):
        replaced = weights.get(name.removesuffix(".weight"))
        assert replaced is not None or "_proj." not in name or name.endswith(".bias"), f"{name} is not quantized"
        tensors[name] = held(decoder.source.tensor(name) if replaced is None else replaced)
    with published(out) as folder:
        write_shards(folder, tensors)
        write_json(folder / "config.json", decoder.source.config)
        copy_companions(decoder.source.path, folder)


def held(tensor: torch.Tensor) -> LazyTensor:
    """A tensor that is in memory already."""
    return LazyTensor(tuple(tensor.shape), tensor.dtype, lambda: tensor)


@dataclass(frozen=True, slots=True)
class UniformCodes:
    """Weights `(code - zero) * scale`, a scale and a zero for every group of input channels.

    Attributes:
        codes: `[N, K]` uint8 below `2^bits`.
        zeros: `[N, G]` uint8 below `2^bits`.
        scales: `[N, G]` fp16.
    """

    bits: int
    codes: torch.Tensor
    zeros: torch.Tensor
    scales: torch.Tensor

    def stored(self) -> Stored:
        """Codes and zeros at `bits` bits, scales at 16; the weights are decoded from these."""
        step, zero = spread(self.scales, self.codes), spread(self.zeros, self.codes)
        tensors = {
            "codes": pack_codes(self.codes, self.bits),
            "zeros": pack_codes(self.zeros, self.bits),
            "scales": self.scales,
        }
        return Stored(tensors, (self.codes.float() - zero) * step)


def pack_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes of any shape below `2^bits` one after the other, least significant bit first, in the bytes they need."""
    flat = (codes.flatten()[:, None] >> torch.arange(bits, dtype=torch.uint8) & 1).flatten()
    return pack_bits(torch.nn.functional.pad(flat, (0, -len(flat) % 8)))


def spread(per_group: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`[N, G]` to `[N, K]` fp32."""
    return per_group.float().repeat_interleave(like.shape[1] // per_group.shape[1], dim=1)


def uniform_grid(weight: torch.Tensor, bits: int, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales `[N, G]` fp16 and zeros `[N, G]` uint8 whose codes span every group of `[N, K]`, and 0."""
    groups = weight.unflatten(1, (-1, group_size))
    low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
    top = (1 << bits) - 1
    scales = ((high - low) / top).clamp(min=torch.finfo(torch.float16).tiny).half()
    return scales, (-low / scales.float()).round().clamp(0, top).to(torch.uint8)


def nearest(weight: torch.Tensor, bits: int) -> UniformCodes:
    """Round `[N, K]` to nearest, asymmetric, by groups of `GROUP_SIZE`."""
    scales, zeros = uniform_grid(weight, bits, GROUP_SIZE)
    codes = (weight / spread(scales, weight)).round() + spread(zeros, weight)
    return UniformCodes(bits, codes.clamp(0, (1 << bits) - 1).to(torch.uint8), zeros, scales)


def round_by_input(chunks: int, index: int, weights: Weights, hessian: torch.Tensor) -> dict[str, Stored]:
    """Our format and rounding with the channels of largest H_jj, PTQ1.61's kind of choice (arXiv 2502.13179)."""
    weight_format = WeightFormat("columns", SALIENT_RATIO, chunks)
    salient = choose_channels(hessian.diagonal(), weight_format.salient_channels(len(hessian)), chunks)
    scales = fit_channel_scales(torch.cat(list(weights.values())))
    inverse_hessian = inverse(hessian, DAMP_RATIO)
    layers = {
        name: round_rows(weight, weight, salient, scales, hessian, inverse_hessian) for name, weight in weights.items()
    }
    return {name: Stored(pack_linear(layer, weight_format), dequantize(layer)) for name, layer in layers.items()}


def round_partly_binary(index: int, weights: Weights, hessian: torch.Tensor) -> dict[str, Stored]:
    """PB-LLM (arXiv 2310.00034) with the salient share and width of Squeeze10-LLM."""
    factor = compensation_factor(inverse(hessian, DAMP_RATIO), torch.arange(len(hessian)))
    return {name: PartlyBinary(weight, factor).stored() for name, weight in weights.items()}


class PartlyBinary:
    """One linear by PB-LLM's rules, as its code has them.

    The weights of largest `w² / U_jj²` of the whole matrix are salient, U the upper factor of the inverse Hessian in
    the channels' own order. Their grid spans all weights of a row; the others become `mean ± scale`, both over a whole
    row in which salient weights count as 0.

    Attributes:
        scales: Mean and scale of the 1-bit weights, step of the salient ones, `[N, 3]` fp16.
        zeros: Code of 0 in the salient grid, `[N]` uint8.
    """

    def __init__(self, weight: torch.Tensor, factor: torch.Tensor) -> None:
        count = WeightFormat("elements", SALIENT_RATIO).salient_weights(*weight.shape)
        self.salient = choose_elements((weight / factor.diagonal()).square(), count)  # [N, K]
        binary = weight.where(~self.salient, 0.0)
        mean = binary.mean(1, keepdim=True)
        step, zeros = uniform_grid(weight, SALIENT_BITS, weight.shape[1])
        self.scales = torch.cat((mean, (binary - mean).abs().mean(1, keepdim=True), step), dim=1).half()
        self.zeros = zeros[:, 0]
        self.codes = torch.empty(weight.T.shape, dtype=torch.uint8)  # [K, N]
        compensate(weight.T.clone(memory_format=torch.contiguous_format), factor, range(len(factor)), self.to_code)

    def to_code(self, weights: torch.Tensor, place: int) -> torch.Tensor:
        """Round one channel `[N]`, each weight by its class."""
        mean, _, step = self.scales.float().unbind(1)
        salient = self.salient[:, place]
        level = ((weights / step).round() + self.zeros).clamp(0, (1 << SALIENT_BITS) - 1)
        self.codes[place] = torch.where(salient, level, weights >= mean).to(torch.uint8)
        return self.decoded(self.codes[place], salient)

    def decoded(self, codes: torch.Tensor, salient: torch.Tensor) -> torch.Tensor:
        """Values of codes `[..., N]`."""
        mean, scale, step = self.scales.float().unbind(1)
        return torch.where(salient, (codes.float() - self.zeros) * step, mean + (2 * codes.float() - 1) * scale)

    def stored(self) -> Stored:
        """A bit of mask for every weight, 1 or 4 bits of code, 52 bits for every row."""
        codes = self.codes.T
        tensors = {
            "qweight": pack_codes(codes[~self.salient], 1),
            "qweight_salient": pack_codes(codes[self.salient], SALIENT_BITS),
            "salient_mask": pack_codes(self.salient.to(torch.uint8), 1),
            "scales": self.scales,
            "zeros": pack_codes(self.zeros, SALIENT_BITS),
        }
        return Stored(tensors, self.decoded(self.codes, self.salient.T).T.contiguous())


def gptq_of_llmcompressor(model: Path, tokens: torch.Tensor, bits: int) -> dict[str, Stored]:
    """GPTQ of the library llmcompressor: asymmetric, groups of `GROUP_SIZE`, its own order and passes.

    Args:
        tokens: Calibration `[samples, context]`.
    """
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    grid = QuantizationArgs(num_bits=bits, symmetric=False, strategy="group", group_size=GROUP_SIZE)
    scheme = QuantizationScheme(targets=["Linear"], weights=grid)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    oneshot(
        model=loaded,
        processor=AutoTokenizer.from_pretrained(model),
        dataset=Dataset.from_dict({"input_ids": tokens.tolist(), "attention_mask": torch.ones_like(tokens).tolist()}),
        recipe=GPTQModifier(config_groups={"linears": scheme}, ignore=["lm_head"], dampening_frac=DAMP_RATIO),
        num_calibration_samples=len(tokens),
        max_seq_length=tokens.shape[1],
        shuffle_calibration_samples=False,
    )
    linears = {
        name: module for name, module in loaded.model.named_modules(prefix="model") if hasattr(module, "weight_scale")
    }
    return {name: from_grid(module, bits).stored() for name, module in linears.items()}


@torch.no_grad()
def from_grid(linear: torch.nn.Module, bits: int) -> UniformCodes:
    """Codes of a linear whose `weight` lies on the grid of `weight_scale` and the signed `weight_zero_point`."""
    scale, zero = linear.get_parameter("weight_scale"), linear.get_parameter("weight_zero_point")
    middle = 1 << (bits - 1)
    weight = linear.get_parameter("weight")
    codes = (weight / spread(scale, weight)).round() + spread(zero, weight) + middle
    assert codes.min() >= 0
    assert codes.max() < 2 * middle
    return UniformCodes(bits, codes.to(torch.uint8), (zero + middle).to(torch.uint8), scale.half())
