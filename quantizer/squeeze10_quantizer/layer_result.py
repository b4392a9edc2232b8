"""What quantizing or tuning a decoder layer gives."""

from dataclasses import dataclass, field

import torch

from squeeze10_quantizer.block_tuning import BlockLoss
from squeeze10_quantizer.group import Quantized


@dataclass(frozen=True, slots=True)
class LayerResult:
    """A decoder layer.

    Attributes:
        linears: By their full names.
        loss: What tuning gained; None if it was not tuned block by block.
        latents: From which distillation goes on, `[N, K]` fp32 by full name; empty if nothing will.
        dropped: Calibration samples, from 0, that were left out: they turn into NaN or infinity here or before.
    """

    linears: dict[str, Quantized]
    loss: BlockLoss | None = None
    latents: dict[str, torch.Tensor] = field(default_factory=dict)
    dropped: list[int] = field(default_factory=list)
