"""A GPU or a Triton under which a kernel goes wrong is found when a layer is loaded."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from random_layers import random_problem

from squeeze10_kernels import BadInput, mixed_linear_reference
from squeeze10_kernels.activations import gather_groups
from squeeze10_kernels.mixed_gemm import mixed_gemm
from squeeze10_kernels.spot_check import spot_check
from squeeze10_kernels.tiles import Tile

interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="runs in Triton's interpreter; there is a GPU")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("M", "N"), [(1, 48), (200, 33), (8, 16), (3, 1), (70, 5)])
def test_right_results_pass(M: int, N: int, dtype: torch.dtype) -> None:
    layer, packed, x = random_problem(M, N, 520, 0.2, dtype)

    spot_check(mixed_linear_reference(x, layer), x, packed)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_layer_of_zeros_passes(dtype: torch.dtype) -> None:
    """The kernels give 1e-15 there, which is no relative error."""
    _, packed, x = random_problem(3, 32, 320, 0.2, dtype)
    packed = replace(packed, scales=torch.zeros_like(packed.scales))
    tile = Tile(rows=16, groups=2, slices=2, tokens=16, paired=True, unroll=1)

    spot_check(mixed_gemm(*gather_groups(x, packed), packed, None, tile=tile, assembly=False), x, packed)


def test_the_bias_is_compared_too() -> None:
    layer, packed, x = random_problem(70, 50, 520, 0.2, torch.bfloat16)
    bias = 100 * torch.randn(50).bfloat16()

    spot_check(mixed_linear_reference(x, layer, bias), x, packed, bias)
    with pytest.raises(BadInput):
        spot_check(mixed_linear_reference(x, layer), x, packed, bias)


def swapped_rows(y: torch.Tensor) -> torch.Tensor:
    return y[:, torch.arange(y.shape[1]) ^ 1]


def one_row_late(y: torch.Tensor) -> torch.Tensor:
    return y.roll(1, dims=1)


def one_token_late(y: torch.Tensor) -> torch.Tensor:
    return y.roll(1, dims=0)


def last_row_unwritten(y: torch.Tensor) -> torch.Tensor:
    return torch.cat((y[:, :-1], torch.full_like(y[:, -1:], torch.nan)), dim=1)


def last_token_zero(y: torch.Tensor) -> torch.Tensor:
    return torch.cat((y[:-1], torch.zeros_like(y[-1:])))


@pytest.mark.parametrize("fault", [swapped_rows, one_row_late, one_token_late, last_row_unwritten, last_token_zero])
def test_wrong_results_are_refused(fault: Callable[[torch.Tensor], torch.Tensor]) -> None:
    layer, packed, x = random_problem(70, 50, 520, 0.2, torch.bfloat16)

    with pytest.raises(BadInput, match=r"70 tokens through a layer \[50, 520\] have the relative error"):
        spot_check(fault(mixed_linear_reference(x, layer)), x, packed)


def test_channels_in_another_order_are_refused() -> None:
    """Eight of 520, as another Triton would hand them to the lanes."""
    layer, packed, x = random_problem(16, 32, 520, 0.2, torch.bfloat16)
    wrong = mixed_linear_reference(x[:, torch.cat((torch.arange(8).flip(0), torch.arange(8, 520)))], layer)

    with pytest.raises(BadInput, match="wrong on this GPU"):
        spot_check(wrong, x, packed)
