"""Weights under training: they start as the codes they come from, and their gradients pass the rounding."""

import pytest
import torch
from random_layers import random_layer
from torch import nn

from squeeze10_kernels import QuantizedLinear, dequantize
from squeeze10_quantizer.latent import CodedLinear, LatentLinear


def elements_layer() -> QuantizedLinear:
    """A layer under mask `elements`, one row without 4-bit weights and so with s4 = z4 = 0."""
    layer = random_layer(24, 64, 16)
    salient = torch.rand(24, 64) < 0.2
    salient[3] = False
    codes = torch.where(salient, torch.randint(0, 16, (24, 64)), torch.randint(0, 2, (24, 64))).to(torch.uint8)
    scales = layer.scales.clone()
    scales[3, 1:] = 0
    return QuantizedLinear(codes, salient, scales, layer.channel_scales)


def latent(start: QuantizedLinear, weight: torch.Tensor) -> LatentLinear:
    return LatentLinear(start, weight, None, nn.Parameter(torch.ones(weight.shape[1])))


@pytest.mark.parametrize("layer", [random_layer(24, 64, 16), elements_layer()], ids=["columns", "elements"])
def test_training_starts_from_the_codes_whatever_the_weights(layer: QuantizedLinear) -> None:
    """Compensation gives many weights another code than their own, which tuning must not undo at once."""
    linear = latent(layer, torch.randn(24, 64))

    after = linear.quantized()

    assert torch.equal(after.codes, layer.codes)
    assert torch.equal(after.scales, layer.scales)
    assert torch.equal(after.channel_scales, layer.channel_scales)
    torch.testing.assert_close(linear.weight(), dequantize(layer))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_use_all_levels_of_their_width_and_no_more(bits: int) -> None:
    """Only 4 bits are stored; other widths are ablations, which must not borrow levels."""
    layer = random_layer(24, 64, 16)
    linear = LatentLinear(layer, dequantize(layer), None, nn.Parameter(torch.ones(64)), bits)
    with torch.no_grad():
        linear.latent += 300 * torch.randn_like(linear.latent)

    codes = linear.stored_codes()

    assert codes[:, layer.salient].aminmax() == (0, 2**bits - 1)
    assert codes[:, ~layer.salient].aminmax() == (0, 1)


def test_what_is_trained_is_what_is_stored() -> None:
    """After steps far enough to change codes and scales: the forward pass and the stored layer agree."""
    layer = random_layer(24, 64, 16)
    linear = latent(layer, dequantize(layer))
    with torch.no_grad():
        linear.latent += 3 * torch.randn_like(linear.latent)
        linear.row_factors += 0.3 * torch.rand(24, 3)
        linear.channel_factors *= 1 + 0.3 * torch.rand(64)

    stored = dequantize(linear.quantized())

    s1, s4, _ = (layer.scales.float() * linear.row_factors.detach()).T
    z4 = layer.scales[:, 2].float() + layer.scales[:, 1].float() * linear.row_factors.detach()[:, 2]
    torch.testing.assert_close(linear.quantized().scales, torch.stack((s1, s4, z4), dim=1).half())
    assert not torch.equal(linear.quantized().codes, layer.codes)
    torch.testing.assert_close(linear.weight(), stored, rtol=3e-3, atol=1e-4)


def test_gradients_are_those_of_the_weights_the_codes_mean() -> None:
    """Straight through: dL/du = dL/dw s c; scales: those of autograd through the dequantized weight."""
    layer = random_layer(24, 64, 16)
    linear = latent(layer, dequantize(layer))
    target = torch.randn(24, 64)
    (linear.weight() * target).sum().backward()

    s1, s4, _ = layer.scales.float().split(1, dim=1)
    step = torch.where(layer.salient, s4, s1)
    torch.testing.assert_close(linear.latent.grad, target * step * layer.channel_scales.float())
    code = torch.where(layer.salient, layer.codes.float() - 8, 2 * layer.codes.float() - 1)
    per_row = target * layer.channel_scales.float() * code
    expected = (per_row * ~layer.salient).sum(1) * s1[:, 0]
    torch.testing.assert_close(linear.row_factors.grad[:, 0], expected, rtol=1e-4, atol=1e-5)
    levels = (per_row * layer.salient).sum(1) * s4[:, 0]
    torch.testing.assert_close(linear.row_factors.grad[:, 1], levels, rtol=1e-4, atol=1e-5)
    offsets = (target * layer.channel_scales.float() * layer.salient).sum(1) * s4[:, 0]
    torch.testing.assert_close(linear.row_factors.grad[:, 2], offsets, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(linear.channel_factors.grad, (target * dequantize(layer)).sum(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [random_layer(24, 64, 16), elements_layer()], ids=["columns", "elements"])
def test_scales_train_alone_as_they_do_beside_latents(layer: QuantizedLinear) -> None:
    coded = CodedLinear(layer, None, nn.Parameter(torch.ones(64)))
    both = latent(layer, dequantize(layer))
    target = torch.randn(24, 64)

    for linear in (coded, both):
        (linear.weight() * target).sum().backward()

    torch.testing.assert_close(coded.weight(), dequantize(layer))
    torch.testing.assert_close(coded.row_factors.grad, both.row_factors.grad)
    torch.testing.assert_close(coded.channel_factors.grad, both.channel_factors.grad)
    assert torch.equal(coded.quantized().codes, layer.codes)
    assert sum(parameter.numel() for parameter in coded.parameters()) == 3 * 24 + 64
