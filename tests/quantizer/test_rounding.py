"""Compensated rounding against the textbook recursion, and the refit against a least-squares solver."""

from itertools import pairwise

import pytest
import torch
from assertions import assert_close

from squeeze10_kernels import QuantizedLinear, dequantize
from squeeze10_quantizer.gptq import BLOCK, compensate
from squeeze10_quantizer.group import relative_error
from squeeze10_quantizer.hessian import compensation_factor, inverse
from squeeze10_quantizer.rounding import round_rows, rounding_order
from squeeze10_quantizer.scales import fit_channel_scales, refit_row_scales


def optimal_brain_recursion(weight, inverse_hessian, round_channel):
    """Optimal Brain Quantization, the law behind GPTQ: round one channel, move all others by its row of the
    inverse Hessian, remove the channel from the inverse. No blocks, no Cholesky factor."""
    weight, inverse_hessian = weight.double().clone(), inverse_hessian.clone()
    rounded = torch.empty_like(weight)
    for j in range(weight.shape[1]):
        rounded[:, j] = round_channel(weight[:, j])
        error = (weight[:, j] - rounded[:, j]) / inverse_hessian[j, j]
        weight -= error[:, None] * inverse_hessian[j]
        inverse_hessian -= inverse_hessian[:, j : j + 1] @ inverse_hessian[j : j + 1] / inverse_hessian[j, j]
    return rounded


@pytest.mark.parametrize("K", [5, BLOCK, BLOCK + 1, 3 * BLOCK - 7])
def test_compensation_equals_the_recursion(K):
    """Blocks, lazy updates and the factor must not change the result."""
    x = torch.randn(4 * K, K) @ torch.randn(K, K)
    weight = torch.randn(6, K)
    inverse_hessian = inverse(x.T @ x, 0.01)
    rounded = torch.empty(K, 6)

    def to_grid(weights, place):
        rounded[place] = (weights * 4).round() / 4
        return rounded[place]

    compensate(weight.T.clone(), compensation_factor(inverse_hessian, torch.arange(K)), range(K), to_grid)

    expected = optimal_brain_recursion(weight, inverse_hessian, lambda column: (column * 4).round() / 4)
    # a rounding that falls the other way moves one weight by a whole step
    assert ((rounded.T - expected.float()).abs() > 1e-3).float().mean() < 0.02


def test_salient_channels_are_rounded_last():
    """The largest gain found: errors of 1-bit channels go where they can still be represented."""
    salient = torch.tensor([True, False, False, True, False])

    assert rounding_order(salient).tolist() == [1, 2, 4, 0, 3]


@pytest.mark.parametrize("elements", [False, True], ids=["columns", "elements"])
def test_refit_is_the_least_squares_solution(elements):
    """For given codes no other row scales leave a smaller output error."""
    N, K = 5, 32
    x = torch.randn(200, K).double()
    weight = torch.randn(N, K)
    salient = torch.rand(N, K) < 0.3 if elements else torch.rand(K) < 0.3
    codes = torch.where(salient, torch.randint(0, 16, (N, K)), torch.randint(0, 2, (N, K))).to(torch.uint8)

    scales = refit_row_scales(weight, codes, salient, (x.T @ x).float())

    for row in range(N):
        mask = salient.expand(N, K)[row].double()
        values = codes[row].double()
        basis = torch.stack(((1 - mask) * (2 * values - 1), mask * (values - 8), mask))
        solution = torch.linalg.lstsq(x @ basis.T, x @ weight[row, :, None].double()).solution
        assert_close(scales[row], solution[:, 0], rms=2e-3)  # fp16


@pytest.mark.parametrize("counts", [1, 40], ids=["one_salient_weight", "equal_codes"])
def test_rows_whose_salient_codes_agree_keep_sane_scales(counts):
    """s4 and z4 then mean one thing; what fp32 leaves of their difference must not be divided by.

    A row of SmolLM2 with one salient weight came out with 426050 and 2130200 that way, beyond fp16."""
    N, K = 300, 512
    x = (torch.randn(2000, K) @ torch.randn(K, K)).double()
    weight = torch.randn(N, K)
    salient = torch.rand(N, K).argsort(1) < counts
    codes = torch.where(salient, 3, torch.randint(0, 2, (N, K))).to(torch.uint8)

    scales = refit_row_scales(weight, codes, salient, (x.T @ x).float()).double()

    assert scales.abs().amax() < 10
    for row in range(0, N, 50):
        mask = salient[row].double()
        basis = torch.stack(((1 - mask) * (2 * codes[row].double() - 1), mask))
        solution = torch.linalg.lstsq(x @ basis.T, x @ weight[row, :, None].double()).solution[:, 0]
        found = torch.stack((scales[row, 0], scales[row, 1] * (3 - 8) + scales[row, 2]))
        assert_close(found, solution, rms=2e-3)  # fp16


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0], ids=["all_1_bit", "half", "all_4_bit"])
def test_rounding_finds_a_layer_that_is_on_the_grid(share):
    """Weights that the format can hold exactly come back exactly, up to fp16 scales."""
    N, K = 16, 64
    salient = torch.zeros(K, dtype=torch.bool)
    salient[: int(share * K)] = True
    codes = torch.where(salient, torch.randint(0, 16, (N, K)), torch.randint(0, 2, (N, K))).to(torch.uint8)
    codes[:, 0], codes[:, 1] = (0, 15) if share else (0, 1)  # min and max of the row are used
    scales = torch.tensor([[0.5, 0.125, 0.25]]).half().expand(N, 3).contiguous()
    layer = QuantizedLinear(codes, salient, scales, torch.ones(K).half())
    weight = dequantize(layer)
    x = torch.randn(300, K)

    found = round_rows(weight, weight, salient, layer.channel_scales, x.T @ x, inverse(x.T @ x, 0.01))

    assert_close(dequantize(found), weight, rms=1e-3)


def test_compensation_lowers_the_output_error():
    """If the sign of the update were wrong, every layer would get worse, and no shape would show it."""
    x = torch.randn(400, 64) @ torch.randn(64, 64)
    weight = torch.randn(32, 64)
    hessian = x.T @ x
    salient = torch.arange(64) % 5 == 0
    scales = fit_channel_scales(weight)

    plain = round_rows(weight, weight, salient, scales, hessian, None)
    compensated = round_rows(weight, weight, salient, scales, hessian, inverse(hessian, 0.01))

    assert relative_error(weight, compensated, hessian) < 0.7 * relative_error(weight, plain, hessian)


def test_relative_error_is_that_of_the_outputs():
    """The report's figure against the outputs themselves."""
    x = torch.randn(100, 24)
    weight = torch.randn(8, 24)
    salient = torch.zeros(24, dtype=torch.bool)
    layer = round_rows(weight, weight, salient, torch.ones(24).half(), x.T @ x, None)
    outputs, found = x @ weight.T, x @ dequantize(layer).T

    expected = float((outputs - found).square().sum() / outputs.square().sum())

    assert relative_error(weight, layer, x.T @ x) == pytest.approx(expected, rel=1e-4)


def test_channel_scales_are_normalised_and_bounded():
    """Geometric mean 1 (before the bound), at most 4, and a dead channel gets a finite one."""
    weight = torch.randn(40, 64) * torch.rand(64).add(0.5)
    weight[:, 5] = 0

    scales = fit_channel_scales(weight).float()

    assert scales.isfinite().all()
    assert scales.min() > 0
    assert scales.max() <= 4
    assert float(scales.log().mean().exp()) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_another_width_finds_a_layer_on_its_grid(bits):
    """Were the codes still cut at 15, or the span still of 15 steps, weights on the grid would not come back."""
    N, K, top = 16, 64, 2**bits - 1
    salient = torch.zeros(K, dtype=torch.bool)
    salient[: K // 2] = True
    codes = torch.where(salient, torch.randint(0, top + 1, (N, K)), torch.randint(0, 2, (N, K))).to(torch.uint8)
    codes[:, 0], codes[:, 1] = 0, top  # min and max of the row are used
    scales = torch.tensor([[0.5, 0.125, 0.25]]).half().expand(N, 3).contiguous()
    layer = QuantizedLinear(codes, salient, scales, torch.ones(K).half())
    weight = dequantize(layer)
    x = torch.randn(300, K)
    hessian = x.T @ x

    found = round_rows(weight, weight, salient, layer.channel_scales, hessian, inverse(hessian, 0.01), bits)

    assert_close(dequantize(found), weight, rms=2e-3)
    assert torch.equal(found.codes, codes)


def test_more_salient_bits_never_hurt_a_layer():
    """The paper's Table 3 says the opposite, which no rounding to the nearest level can do."""
    x = torch.randn(400, 64) @ torch.randn(64, 64)
    weight, hessian = torch.randn(32, 64), x.T @ x
    salient = torch.arange(64) % 2 == 0
    inverse_hessian = inverse(hessian, 0.01)

    def error(bits):
        layer = round_rows(weight, weight, salient, torch.ones(64).half(), hessian, inverse_hessian, bits)
        return relative_error(weight, layer, hessian)

    errors = [error(bits) for bits in range(2, 9)]
    # from 6 bits on nearly all that is left is of the 1-bit part
    assert all(more < 1.01 * fewer for fewer, more in pairwise(errors))
    assert errors[2] < 0.9 * errors[0]
