"""The decode path: canonical tensors in, the oracle's result out, on any device."""

import pytest
import torch

from squeeze10_kernels import QuantizedLinear, WeightFormat, mixed_linear_reference, pack_linear
from squeeze10_kernels.dense_linear import channel_order, columns_linear, elements_linear

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
ROUNDING = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 5e-3}


def random_layer(salient: torch.Tensor, N: int) -> QuantizedLinear:
    """A layer with N rows, whose channels or weights `salient` are 4-bit."""
    K = salient.shape[-1]
    generator = torch.Generator().manual_seed(1)
    nibbles = torch.randint(0, 16, (N, K), generator=generator)
    bits = torch.randint(0, 2, (N, K), generator=generator)
    codes = torch.where(salient, nibbles, bits).to(torch.uint8)
    scales = 0.01 + 0.05 * torch.rand(N, 3, generator=generator)
    return QuantizedLinear(codes, salient, scales.half(), (0.5 + torch.rand(K, generator=generator)).half())


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative RMS error."""
    difference = actual.cpu().double() - expected.double()
    return float(difference.square().mean().sqrt() / expected.double().square().mean().sqrt())


def test_channel_order_is_that_of_the_codes() -> None:
    salient = torch.tensor([0, 1, 0, 0, 1, 0, 0, 0], dtype=torch.bool)
    assert channel_order(salient).tolist() == [0, 2, 3, 5, 6, 7, 1, 4]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize(
    ("chunks", "ratio"), [(1, 0.2), (8, 0.2), (1, 0), (1, 1)], ids=["C1", "C8", "all_binary", "all_salient"]
)
def test_columns_match_the_reference(chunks: int, ratio: float, dtype: torch.dtype, device: str) -> None:
    N, K, weight_format = 33, 2048, WeightFormat(chunks=chunks, salient_ratio=ratio)
    salient = torch.zeros(chunks, K // chunks, dtype=torch.bool)
    salient[:, : weight_format.salient_channels(K) // chunks] = True
    layer = random_layer(salient.roll(5, 1).flatten(), N)
    tensors = {name: t.to(device) for name, t in pack_linear(layer, weight_format).items()}
    del tensors["salient_mask"]
    generator = torch.Generator().manual_seed(2)
    x, bias = torch.randn(9, K, generator=generator).to(dtype), torch.randn(N, generator=generator).to(dtype)

    y = columns_linear(x.to(device), **tensors, channels=channel_order(layer.salient).to(device), bias=bias.to(device))

    assert y.dtype == dtype
    assert relative_error(y, mixed_linear_reference(x, layer, bias)) < ROUNDING[dtype]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_elements_match_the_reference(dtype: torch.dtype, device: str) -> None:
    N, K, weight_format = 24, 256, WeightFormat(mask="elements")
    generator = torch.Generator().manual_seed(2)
    salient = torch.zeros(N * K, dtype=torch.bool)
    salient[torch.randperm(N * K, generator=generator)[: weight_format.salient_weights(N, K)]] = True
    layer = random_layer(salient.view(N, K), N)
    tensors = {name: t.to(device) for name, t in pack_linear(layer, weight_format).items()}
    x = torch.randn(9, K, generator=generator).to(dtype)

    y = elements_linear(x.to(device), **tensors)

    assert relative_error(y, mixed_linear_reference(x, layer)) < ROUNDING[dtype]


@pytest.mark.parametrize("device", DEVICES)
def test_fp16_sums_may_exceed_its_range(device: str) -> None:
    """`Σ ± x̃` is 1.6e5 before its row scale; fp16 ends at 65504."""
    N, K = 16, 64
    layer = random_layer(torch.zeros(K, dtype=torch.bool), N)
    layer = QuantizedLinear(
        torch.ones_like(layer.codes), layer.salient, layer.scales, torch.ones(K, dtype=torch.float16)
    )
    tensors = {name: t.to(device) for name, t in pack_linear(layer, WeightFormat(salient_ratio=0)).items()}
    del tensors["salient_mask"]
    x = torch.full((2, K), 2500.0, dtype=torch.float16)

    y = columns_linear(x.to(device), **tensors, channels=channel_order(layer.salient).to(device))

    assert relative_error(y, mixed_linear_reference(x, layer)) < ROUNDING[torch.float16]


@pytest.mark.gpu
def test_decode_path_runs_inside_a_cuda_graph() -> None:
    """Nothing in it may synchronise."""
    N, K, weight_format = 64, 256, WeightFormat()
    salient = torch.zeros(K, dtype=torch.bool)
    salient[: weight_format.salient_channels(K)] = True
    layer = random_layer(salient, N)
    tensors = {name: t.cuda() for name, t in pack_linear(layer, weight_format).items()}
    del tensors["salient_mask"]
    channels = channel_order(salient).cuda()
    x = torch.zeros(4, K, dtype=torch.bfloat16, device="cuda")
    columns_linear(x, **tensors, channels=channels)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = columns_linear(x, **tensors, channels=channels)
    fresh = torch.randn(4, K, generator=torch.Generator().manual_seed(3)).bfloat16()

    x.copy_(fresh)
    graph.replay()

    assert relative_error(y, mixed_linear_reference(fresh, layer)) < ROUNDING[torch.bfloat16]
