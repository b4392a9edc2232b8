"""Embeddings and lm_head in 8 or 4 bits, as `TABLE_FORMAT`: our own addition, the paper leaves them as they are.

The rounding errors of an lm_head are weighed by the Hessian of what it reads; an embedding row is added to the
hidden states as it is, so all its channels weigh the same. A tied table is both.
"""

from typing import Final

import torch

from squeeze10_kernels import QuantizedLinear
from squeeze10_quantizer.decoder import Decoder
from squeeze10_quantizer.group import Quantized, check_scales, relative_error
from squeeze10_quantizer.hessian import HessianSum, damped_inverse
from squeeze10_quantizer.hidden_states import batches, finite_samples
from squeeze10_quantizer.recipe import Recipe
from squeeze10_quantizer.rounding import round_rows
from squeeze10_quantizer.scales import bounded, fit_channel_scales

EMBEDDING_SHARE: Final = 0.1
"""Weight of every channel of a tied table as embeddings, in means of the lm_head's (LOG.md, 2026-11-24)."""
IMPORTANCE_POWER: Final = -0.125
"""Channels that weigh more get finer steps: c times their weight to this power (LOG.md, 2026-11-24)."""
ROWS: Final = 8192
"""Rows that are rounded at a time."""


@torch.no_grad()
def quantize_tables(decoder: Decoder, hidden: torch.Tensor, recipe: Recipe) -> dict[str, Quantized]:
    """Quantize the embeddings and an untied lm_head; name to result.

    Args:
        hidden: Calibration states after the last decoder layer, `[samples, context, hidden]` fp32.
    """
    seen = head_hessian(decoder, hidden)
    seen /= float(seen.diagonal().mean()) or 1.0  # an lm_head that reads zeros
    alike = torch.eye(len(seen), device=seen.device)
    tied = decoder.shape.tied
    hessians = {"model.embed_tokens": seen + EMBEDDING_SHARE * alike if tied else alike, "lm_head": seen}
    results = {}
    for name in decoder.shape.tables():
        weight = decoder.source.tensor(f"{name}.weight").float().to(decoder.device)
        results[name] = quantize_table(weight, hessians[name], recipe)
        check_scales(name, results[name].layer)
    return results


def head_hessian(decoder: Decoder, hidden: torch.Tensor) -> torch.Tensor:
    """Of what the lm_head reads in samples without NaN and infinity, `[hidden, hidden]`."""
    norm = decoder.final_norm()
    total = HessianSum(decoder.shape.hidden, decoder.device)
    for part in batches(hidden):
        states = norm(part.to(decoder.device))
        total.add(states[finite_samples(states)])
    return total.value()


def quantize_table(weight: torch.Tensor, hessian: torch.Tensor, recipe: Recipe) -> Quantized:
    """Round `[vocabulary, hidden]` fp32: 8 bits to the nearest, 4 bits the channels that weigh most first (GPTQ)."""
    weights = hessian.diagonal()
    scales = bounded(fit_channel_scales(weight).float() * weights.clamp(min=1e-6) ** IMPORTANCE_POWER)
    if recipe.head_bits == 8:
        table = in_two_parts(weight, scales)
        return Quantized(table, relative_error(weight, table, hessian))
    order = (weights * weight.square().mean(0)).argsort(descending=True, stable=True)
    sorted_hessian = hessian[order][:, order]
    inverse_hessian, raised_damping = None, None
    if recipe.compensate:
        inverse_hessian, raised_damping = damped_inverse(sorted_hessian, recipe.damp_ratio)
    salient = torch.ones(len(order), dtype=torch.bool, device=weight.device)
    parts = [
        round_rows(rows, rows, salient, scales[order], sorted_hessian, inverse_hessian)
        for rows in weight[:, order].split(ROWS)
    ]
    codes, row_scales = (torch.cat([getattr(part, field) for part in parts]) for field in ("codes", "scales"))
    table = QuantizedLinear(codes[:, order.argsort()].contiguous(), salient, row_scales, scales)
    return Quantized(table, relative_error(weight, table, hessian), raised_damping)


def in_two_parts(weight: torch.Tensor, channel_scales: torch.Tensor) -> QuantizedLinear:
    """The nearest of 256 steps over the span of each row: `[V, hidden]` to a layer `[V, 2 hidden]`.

    The high halves of the codes, then the low halves at a sixteenth of the scales: the sum is
    `(s4 (16 high + low - 136) / 16 + 17 / 16 z4) c`. Errors are a seventeenth of those of 4 bits without compensation.
    """
    parts = [codes_in_two_parts(rows / channel_scales.float()) for rows in weight.split(ROWS)]
    codes, row_scales = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    salient = torch.ones(codes.shape[1], dtype=torch.bool, device=weight.device)
    return QuantizedLinear(codes, salient, row_scales, torch.cat((channel_scales, channel_scales / 16)))


def codes_in_two_parts(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes `[V, 2 hidden]` and scales `[V, 3]` fp16 of weights that are divided by their channel scales."""
    low, high = values.aminmax(dim=1, keepdim=True)
    s4 = ((high - low) * (16 / 255)).half()
    z4 = ((high + low) * (8 / 17) + s4.float() / 2).half()  # the middle of the span is the code 127.5
    steps = (values - z4.float() * (17 / 16)) / torch.where(s4 == 0, 1.0, s4.float() / 16)
    codes = (steps.round() + 136).clamp(0, 255).to(torch.uint8)
    return torch.cat((codes >> 4, codes & 15), dim=1), torch.cat((torch.zeros_like(s4), s4, z4), dim=1)
