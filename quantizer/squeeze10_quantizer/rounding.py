"""From weights, a choice of salient weights and channel scales to codes and row scales, with compensation."""

import torch

from squeeze10_kernels import QuantizedLinear
from squeeze10_kernels.format import SALIENT_BITS, SALIENT_OFFSET
from squeeze10_quantizer.gptq import compensate
from squeeze10_quantizer.hessian import compensation_factor
from squeeze10_quantizer.scales import binary_scale, refit_row_scales, salient_scales


class Rows:
    """Row scales of the rows being rounded, and the codes as they come: one column per place in the order.

    Attributes:
        top: Largest code of a salient weight, 15 at 4 bits.
    """

    def __init__(self, weight: torch.Tensor, salient: torch.Tensor, top: int) -> None:
        self.top = top
        self.binary = binary_scale(weight, salient)  # [N]
        self.step, self.offset = salient_grid(weight, salient, top)
        self.codes = torch.empty(weight.T.shape, dtype=torch.uint8, device=weight.device)  # [K, N]

    def to_1_bit(self, weights: torch.Tensor, place: int) -> torch.Tensor:
        """`± s1`; the sign of 0 is +1."""
        codes = weights >= 0
        self.codes[place] = codes
        return torch.where(codes, self.binary, -self.binary)

    def to_salient(self, weights: torch.Tensor, place: int) -> torch.Tensor:
        """`s4 (code - 8) + z4` with the nearest code."""
        codes = ((weights - self.offset) / self.step).round().add(SALIENT_OFFSET).clamp(0, self.top)
        self.codes[place] = codes.to(torch.uint8)
        return (codes - SALIENT_OFFSET) * self.step + self.offset


def salient_grid(weight: torch.Tensor, salient: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`salient_scales` for codes 0..top: the same span, cut into `top` steps."""
    step, offset = salient_scales(weight, salient)  # of 15 steps
    steps = step * (15 / top)
    return steps, offset - SALIENT_OFFSET * (step - steps)


def round_rows(
    weight: torch.Tensor,
    start: torch.Tensor,
    salient: torch.Tensor,
    channel_scales: torch.Tensor,
    hessian: torch.Tensor,
    inverse_hessian: torch.Tensor | None,
    salient_bits: int = SALIENT_BITS,
) -> QuantizedLinear:
    """Round rows that read one input.

    Args:
        weight: The weights whose outputs are to be kept, `[N, K]` fp32.
        start: The weights that are rounded: the same, or their 4-bit stage.
        salient: `[K]` (columns) or `[N, K]` (elements) bool.
        channel_scales: `[K]` fp16.
        hessian: `[K, K]`.
        inverse_hessian: `[K, K]` fp64, or None to round without compensation.
        salient_bits: 1 to 8; a width other than 4 can be decoded, but not stored.
    """
    scale = channel_scales.float()
    order = rounding_order(salient)
    channels = (start / scale)[:, order].T.contiguous()  # [K, N]
    rows = Rows(channels.T, salient[..., order], (1 << salient_bits) - 1)
    factor = torch.eye(len(order), device=weight.device)
    if inverse_hessian is not None:
        # dividing the weights by c multiplies H by c cᵀ and divides its inverse
        factor = compensation_factor(inverse_hessian / scale.double().outer(scale.double()), order)
    if salient.ndim == 1:
        round_columns(channels, factor, rows, int((~salient).sum()))
    else:
        round_elements(channels, factor, rows, salient[:, order].T)
    codes = torch.empty_like(rows.codes)
    codes[order] = rows.codes
    codes = codes.T.contiguous()
    row_scales = refit_row_scales(weight / scale, codes, salient, hessian * scale.outer(scale))
    return QuantizedLinear(codes, salient, row_scales, channel_scales)


def rounding_order(salient: torch.Tensor) -> torch.Tensor:
    """Columns: 1-bit channels first, 4-bit channels last, where the errors can still be represented."""
    if salient.ndim == 1:
        return salient.to(torch.uint8).argsort(stable=True)
    return torch.arange(salient.shape[1], device=salient.device)


def round_columns(channels: torch.Tensor, factor: torch.Tensor, rows: Rows, num_binary: int) -> None:
    """Round 1-bit channels, then fit s4 and z4 to the salient channels as compensation left them, and round those."""
    K = len(channels)
    compensate(channels, factor, range(num_binary), rows.to_1_bit)
    left = channels[num_binary:].T
    rows.step, rows.offset = (
        salient_grid(left, torch.ones_like(left, dtype=torch.bool), rows.top)
        if left.numel()
        else (rows.step, rows.offset)
    )
    compensate(channels, factor, range(num_binary, K), rows.to_salient)


def round_elements(channels: torch.Tensor, factor: torch.Tensor, rows: Rows, salient: torch.Tensor) -> None:
    """Round every channel, each weight by its class; salient `[K, N]` bool."""

    def by_class(weights: torch.Tensor, place: int) -> torch.Tensor:
        binary = rows.to_1_bit(weights, place)
        binary_codes = rows.codes[place].clone()
        many_bit = rows.to_salient(weights, place)
        rows.codes[place] = torch.where(salient[place], rows.codes[place], binary_codes)
        return torch.where(salient[place], many_bit, binary)

    compensate(channels, factor, range(len(channels)), by_class)
