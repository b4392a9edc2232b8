"""Weights that are trained in full precision and used as their codes mean (straight-through gradients)."""

from typing import Final

import torch
from torch import nn

from squeeze10_kernels import QuantizedLinear
from squeeze10_kernels.format import MAX_CHANNEL_SCALE, SALIENT_BITS, SALIENT_OFFSET
from squeeze10_quantizer.scales import MIN_CHANNEL_SCALE

BINARY_REACH: Final = 1.5
"""A 1-bit latent starts at most this many s1 from 0, so that it can change its sign."""
MARGIN: Final = 0.05
"""How far inside its code's interval a latent starts at least, in s1 or s4."""
LOWEST: Final = -SALIENT_OFFSET


class TrainedLinear(nn.Module):
    """A linear layer under training whose scales move; `LatentLinear`'s codes do too.

    Scales are factors on those that the layer started with, z4 an offset in steps of the first s4: so one learning
    rate fits every model.

    Attributes:
        row_factors: `[N, 3]` fp32 on s1 and s4, and the change of z4.
        channel_factors: `[K]` fp32; one parameter for all linears of an input.
    """

    def __init__(self, start: QuantizedLinear, bias: torch.Tensor | None, channel_factors: nn.Parameter) -> None:
        super().__init__()
        self.salient: torch.Tensor
        self.scales: torch.Tensor
        self.channel_scales: torch.Tensor
        self.register_buffer("salient", start.salient)
        self.register_buffer("scales", start.scales.float())
        self.register_buffer("channel_scales", start.channel_scales.float())
        self.bias = bias
        self.row_factors = nn.Parameter(
            torch.tensor([1.0, 1.0, 0.0], device=start.scales.device).repeat(len(start.scales), 1)
        )
        self.channel_factors = channel_factors

    def steps(self) -> torch.Tensor:
        """Weights in steps of their row: ±1, or -8 to 7, `[N, K]` fp32."""
        raise NotImplementedError

    def stored_codes(self) -> torch.Tensor:
        """`[N, K]` uint8."""
        raise NotImplementedError

    def weight(self) -> torch.Tensor:
        """What the codes mean, `[N, K]` fp32."""
        steps = self.steps()
        s1, s4, z4 = self.row_scales()
        value = torch.where(self.salient, steps * s4 + z4, steps * s1)
        return value * self.channel()

    def row_scales(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """s1, s4, z4, `[N, 1]` each."""
        s1, s4, z4 = self.scales.split(1, dim=1)
        f1, f4, shift = self.row_factors.split(1, dim=1)
        return s1 * f1, s4 * f4, z4 + s4 * shift

    def channel(self) -> torch.Tensor:
        """c, `[K]`."""
        return (self.channel_scales * self.channel_factors).clamp(MIN_CHANNEL_SCALE, MAX_CHANNEL_SCALE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight().to(x.dtype), self.bias)

    @torch.no_grad()
    def quantized(self) -> QuantizedLinear:
        """The layer as it would be stored."""
        scales = torch.cat(self.row_scales(), dim=1).half()
        return QuantizedLinear(self.stored_codes(), self.salient, scales, self.channel().half())


class LatentLinear(TrainedLinear):
    """Codes come from latents, which count in steps of their row: s1 for 1-bit weights, s4 for 4-bit ones.

    Attributes:
        latent: `[N, K]` fp32; a 1-bit weight's code is its sign, a salient weight's the nearest integer, plus 8.
        highest: Of these integers: 7 for 4 bits, other widths only in ablations.
    """

    def __init__(
        self,
        start: QuantizedLinear,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        channel_factors: nn.Parameter,
        salient_bits: int = SALIENT_BITS,
    ) -> None:
        super().__init__(start, bias, channel_factors)
        self.latent = nn.Parameter(start_latent(start, weight))
        self.highest: torch.Tensor  # a tensor, so that another width compiles nothing again
        self.register_buffer("highest", torch.full_like(self.scales[0, 0], (1 << salient_bits) - 1 - SALIENT_OFFSET))

    def steps(self) -> torch.Tensor:
        """Of the codes; gradients pass the rounding as if it were not there."""
        sign = torch.where(self.latent >= 0, 1.0, -1.0)
        return self.latent + (torch.where(self.salient, self.levels(), sign) - self.latent).detach()

    def levels(self) -> torch.Tensor:
        """The nearest integers that a salient weight's code can mean."""
        return self.latent.round().clamp(min=LOWEST).minimum(self.highest)

    def stored_codes(self) -> torch.Tensor:
        return torch.where(self.salient, self.levels() + SALIENT_OFFSET, (self.latent >= 0).float()).to(torch.uint8)


class CodedLinear(TrainedLinear):
    """Codes stay as they are: a byte for a weight where latents and their optimizer take sixteen.

    Attributes:
        codes: `[N, K]` uint8.
    """

    def __init__(self, start: QuantizedLinear, bias: torch.Tensor | None, channel_factors: nn.Parameter) -> None:
        super().__init__(start, bias, channel_factors)
        self.codes: torch.Tensor
        self.register_buffer("codes", start.codes)

    def steps(self) -> torch.Tensor:
        codes = self.codes.float()
        return torch.where(self.salient, codes - SALIENT_OFFSET, 2 * codes - 1)

    def stored_codes(self) -> torch.Tensor:
        return self.codes


def start_latent(start: QuantizedLinear, weight: torch.Tensor) -> torch.Tensor:
    """The weights themselves in steps of their row, moved where their code is another: into its interval, `[N, K]`."""
    s1, s4, z4 = start.scales.float().split(1, dim=1)
    codes, value = start.codes.float(), weight / start.channel_scales.float()
    sign = 2 * codes - 1
    binary = sign * (sign * value / nonzero(s1)).clamp(MARGIN, BINARY_REACH)
    level = codes - SALIENT_OFFSET
    four_bit = ((value - z4) / nonzero(s4)).clamp(level - 0.5 + MARGIN, level + 0.5 - MARGIN)
    return torch.where(start.salient, four_bit, binary)


def nonzero(scale: torch.Tensor) -> torch.Tensor:
    """A scale to divide by: rows without weights of a class have 0."""
    return torch.where(scale == 0, 1.0, scale)
