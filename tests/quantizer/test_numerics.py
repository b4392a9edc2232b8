"""Inputs that break quantizers: every one gives finite scales and no more error than plain rounding, or a sentence."""

from collections.abc import Callable

import pytest
import torch
from assertions import assert_close

from squeeze10_kernels import BadInput, QuantizedLinear, WeightFormat, dequantize, mixed_linear_reference, pack_linear
from squeeze10_kernels.dense_linear import channel_order, columns_linear, elements_linear
from squeeze10_quantizer.group import InputGroup, Quantized, quantize_group
from squeeze10_quantizer.hessian import HessianSum, compensation_factor, damped_inverse
from squeeze10_quantizer.recipe import Recipe

N, K, TOKENS = 24, 128, 200
FP16_ROUNDING = 2.0**-18
"""Share of an output's power that rounding the row scales to fp16 may cost, where large terms cancel too."""

Fault = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Weights `[N, K]` and inputs `[TOKENS, K]` to the same with a fault."""

FAULTS: dict[str, Fault] = {
    "none": lambda w, x: (w, x),
    "dead_channel": lambda w, x: (w, columns(x, slice(5, 6), 0)),
    "half_of_the_channels_dead": lambda w, x: (w, columns(x, slice(0, None, 2), 0)),
    "channel_without_weights": lambda w, x: (columns(w, slice(5, 6), 0), x),
    "channels_almost_without_weights": lambda w, x: (columns(w, slice(0, None, 3), 1e-6), x),
    "duplicate_channels": lambda w, x: (w[:, torch.arange(K) // 2], x[:, torch.arange(K) // 2]),
    "one_token": lambda w, x: (w, x[:1].repeat(TOKENS, 1)),
    "fewer_tokens_than_channels": lambda w, x: (w, x[:5].repeat(TOKENS // 5, 1)),
    "inputs_of_zeros": lambda w, x: (w, 0 * x),
    "outlier_channel": lambda w, x: (w, columns(x, slice(3, 4), 1e4)),
    "outlier_token": lambda w, x: (w, columns(x.T, slice(17, 18), 1e4).T),
    "outlier_weights_of_a_channel": lambda w, x: (columns(w, slice(3, 4), 1e4), x),
    "outlier_weights_of_a_row": lambda w, x: (columns(w.T, slice(2, 3), 1e4).T, x),
    "one_outlier_weight": lambda w, x: (w.index_put((torch.tensor(2), torch.tensor(3)), torch.tensor(1e4)), x),
    "row_of_zeros": lambda w, x: (columns(w.T, slice(3, 4), 0).T, x),
    "constant_row": lambda w, x: (w.index_put((torch.tensor(3),), torch.tensor(0.25)), x),
    "constant_weights": lambda w, x: (torch.full_like(w, 0.25), x),
    "equal_magnitudes": lambda w, x: (w.sign() / 4, x),
    "equal_magnitudes_one_token": lambda w, x: (w.sign() / 4, x[:1].repeat(TOKENS, 1)),
    "weights_of_zeros": lambda w, x: (0 * w, x),
    "large_inputs": lambda w, x: (w, 1e10 * x),
    "small_inputs": lambda w, x: (w, 1e-15 * x),
}


def columns(matrix: torch.Tensor, chosen: slice, factor: float) -> torch.Tensor:
    """The matrix with some columns multiplied."""
    factors = torch.ones(matrix.shape[1])
    factors[chosen] = factor
    return matrix * factors


def problem(fault: str = "none") -> tuple[torch.Tensor, torch.Tensor]:
    """Random weights, correlated inputs, and a fault."""
    mixing = torch.eye(K) + 0.3 * torch.randn(K, K)
    return FAULTS[fault](torch.randn(N, K) * K**-0.5, torch.randn(TOKENS, K) @ mixing)


def quantized(weight: torch.Tensor, x: torch.Tensor, mask: str, **changes: object) -> Quantized:
    """The layer of one group whose inputs are `x`."""
    recipe = Recipe(mask=mask, **changes)  # type: ignore[arg-type]
    group = InputGroup({"layer": weight}, x.T @ x / 2, x[:64])
    return quantize_group(group, recipe, WeightFormat(mask, 0.2, 1, 16))["layer"]  # type: ignore[arg-type]


def plainly_rounded(weight: torch.Tensor, layer: QuantizedLinear) -> torch.Tensor:
    """Round-to-nearest with the layer's mask and channel scales: the mean magnitude, and 15 steps from min to max."""
    channel = layer.channel_scales.double()
    rows, salient = weight.double() / channel, layer.salient.expand_as(weight)
    result = torch.empty_like(rows)
    for row, chosen, out in zip(rows, salient, result, strict=True):
        kept, other = row[chosen], row[~chosen]
        if len(kept):
            step = float(kept.max() - kept.min()) / 15 or 1.0
            out[chosen] = ((kept - kept.min()) / step).round() * step + kept.min()
        out[~chosen] = torch.where(other >= 0, 1.0, -1.0).double() * other.abs().sum() / max(1, len(other))
    return result * channel


def output_error(weight: torch.Tensor, found: torch.Tensor, x: torch.Tensor) -> float:
    """`|ΔW X|² / |W X|²` from the outputs themselves, fp64; 0 without outputs."""
    outputs = x.double() @ weight.double().T
    power = float(outputs.square().sum())
    return float((x.double() @ found.double().T - outputs).square().sum()) / power if power else 0.0


@pytest.mark.parametrize("mask", ["columns", "elements"])
@pytest.mark.parametrize("fault", FAULTS)
def test_no_fault_costs_more_than_plain_rounding(fault: str, mask: str) -> None:
    """A bad pivot, a division by a tiny scale or a singular refit would show as NaN or as a large error."""
    weight, x = problem(fault)

    result = quantized(weight, x, mask)

    assert result.layer.scales.isfinite().all()
    found = output_error(weight, dequantize(result.layer), x)
    assert found <= output_error(weight, plainly_rounded(weight, result.layer), x) + FP16_ROUNDING
    assert result.error == pytest.approx(found, rel=1e-3, abs=FP16_ROUNDING)
    assert result.error is not None
    assert result.error >= 0


def test_nothing_is_pushed_onto_a_dead_channel() -> None:
    """Calibration says nothing about it: at 1 bit it keeps its own signs, whatever the errors of the others are."""
    weight, x = problem("dead_channel")
    weight[:, 5] *= 1e-3  # any push would turn them

    layer = quantized(weight, x, "columns").layer

    assert not layer.salient[5]
    assert torch.equal(layer.codes[:, 5], (weight[:, 5] >= 0).to(torch.uint8))


@pytest.mark.parametrize("mask", ["columns", "elements"])
def test_equal_rows_get_equal_codes(mask: str) -> None:
    """Whatever their place; under `elements` the budget of salient weights must not end between them."""
    weight, x = problem()
    weight[11] = weight[17] = weight[0]

    layer = quantized(weight, x, mask).layer

    decoded = dequantize(layer)
    assert torch.equal(decoded[11], decoded[0])
    assert torch.equal(decoded[17], decoded[0])


@pytest.mark.parametrize("mask", ["columns", "elements"])
def test_ties_go_to_the_first_channels(mask: str) -> None:
    """All scores equal: another order on another day would be another checkpoint."""
    weight = torch.randn(N, K).sign()
    group = InputGroup({"layer": weight}, torch.eye(K), torch.empty(0))
    weight_format = WeightFormat(mask, 0.25, 1, 16)  # type: ignore[arg-type]
    recipe = Recipe(mask=mask, pbar=False)  # type: ignore[arg-type]

    once, again = (quantize_group(group, recipe, weight_format)["layer"].layer for _ in range(2))

    chosen = once.salient.flatten()
    assert torch.equal(chosen, torch.arange(len(chosen)) < len(chosen) // 4)
    assert torch.equal(again.salient, once.salient)
    assert torch.equal(again.codes, once.codes)


@pytest.mark.parametrize(("lowest", "raised"), [(-0.005, None), (-0.05, 0.1), (-0.5, 1.0)])
def test_damping_is_raised_in_steps(lowest: float, raised: float | None) -> None:
    """As far as the lowest eigenvalue asks for, in units of the mean diagonal, and no further."""
    directions = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64)).Q
    hessian = directions @ torch.diag(torch.tensor([lowest, *[(16 - lowest) / 15] * 15])).double() @ directions.T

    inverse, damping = damped_inverse(hessian.float(), 0.01)

    assert damping == raised
    assert_close(inverse, torch.linalg.inv(hessian + (raised or 0.01) * torch.eye(16).double()), rms=1e-3)


def test_no_bare_cholesky_error() -> None:
    """It would name a leading minor where a user needs an option."""
    indefinite = torch.diag(torch.tensor([1.0, -1.0])).double()

    with pytest.raises(BadInput, match="raise --damp-ratio"):
        compensation_factor(indefinite, torch.tensor([1, 0]))
    with pytest.raises(BadInput, match="raise --damp-ratio"):
        damped_inverse(1e3 * indefinite - torch.eye(2), 0.01)


def test_squares_that_overflow_are_named() -> None:
    """Finite activations, infinite Hessian: `singular` would send the user after more text."""
    total = HessianSum(4, torch.device("cpu"))
    total.add(torch.full((1, 3, 4), 1e25))

    with pytest.raises(BadInput, match="squares of calibration activations"):
        total.value()


@pytest.mark.parametrize("mask", ["columns", "elements"])
def test_sums_of_the_widest_layer_stay_in_range(mask: str) -> None:
    """28,672 outlier activations in fp16: sums of 10^8 before the row scale, 5 * 10^4 after it."""
    wide = 28672
    salient = torch.arange(wide) % 8 == 0
    codes = torch.where(salient, 9, (torch.arange(wide) < 0.6 * wide).long()).to(torch.uint8)[None]
    scales = torch.tensor([[2.0**-13, 2.0**-13, 0.0]]).half()
    chosen = salient if mask == "columns" else salient[None]
    layer = QuantizedLinear(codes, chosen, scales, torch.full((wide,), 4.0).half())
    x = torch.full((1, wide), 1.2e4, dtype=torch.float16)
    expected = x.double() @ dequantize(layer).double().T
    tensors = pack_linear(layer, WeightFormat(mask, 0.125, 1, 16))  # type: ignore[arg-type]

    if mask == "columns":
        del tensors["salient_mask"]
        found = columns_linear(x, **tensors, channels=channel_order(salient))
    else:
        found = elements_linear(x, **tensors)

    assert_close(mixed_linear_reference(x, layer).double(), expected, rms=1e-3)
    assert_close(found.double(), expected, rms=1e-3)
