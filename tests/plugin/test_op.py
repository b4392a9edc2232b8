"""squeeze10::linear against the fp32 oracle, in every layout; those of GPUs need one."""

from typing import Any

import pytest
import tiny_checkpoint as tiny
import torch
from assertions import assert_close

from squeeze10_kernels import QuantizedLinear, WeightFormat, mixed_linear_reference, pack_linear
from squeeze10_kernels.layouts import Layout, choose_layout
from squeeze10_vllm.op import linear
from squeeze10_vllm.repack import repack

ROUNDING = {torch.float32: 1e-5, torch.float16: 1.5e-3, torch.bfloat16: 5e-3}
"""RMS error allowed: bf16 rounds the two parts, the sum and the reference."""


def op_arguments(
    layer: QuantizedLinear, weight_format: WeightFormat, dtype: torch.dtype, device: str = "cpu"
) -> tuple[Layout, dict[str, Any]]:
    """The op's arguments for `layer` on a device, through `repack`."""
    K = layer.codes.shape[1]
    module = torch.nn.Module()
    for suffix, tensor in pack_linear(layer, weight_format).items():
        per_linear = suffix == "channel_scales" or (suffix == "salient_mask" and tensor.ndim == 1)
        data = tensor[None] if per_linear else tensor
        module.register_parameter(suffix, torch.nn.Parameter(data.to(device, copy=True), requires_grad=False))
    layout = repack(module, weight_format.mask, dtype)
    optional = ("qweight_salient", "channels", "salient_mask")
    arguments = {**dict.fromkeys(optional), **dict(module.named_parameters())}
    salient = weight_format.salient_channels(K) if weight_format.mask == "columns" else 0
    return layout, {**arguments, "layout": layout, "salient_channels": salient}


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("tokens", [1, 7, 129])
@pytest.mark.parametrize(
    ("N", "K", "weight_format"),
    [
        pytest.param(96, 128, WeightFormat(), id="one_chunk"),
        pytest.param(33, 2048, WeightFormat(chunks=8), id="eight_chunks_ragged_N"),
        pytest.param(48, 64, WeightFormat(salient_ratio=0), id="all_binary"),
        pytest.param(48, 64, WeightFormat(salient_ratio=1), id="all_salient"),
        pytest.param(40, 128, WeightFormat(mask="elements"), id="elements"),
        pytest.param(40, 128, WeightFormat(mask="elements", salient_ratio=0), id="elements_all_binary"),
    ],
)
def test_op_matches_reference(
    N: int,
    K: int,
    weight_format: WeightFormat,
    tokens: int,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> None:
    layer = tiny.random_layer(weight_format, N, K, generator)
    x = torch.randn(tokens, K, generator=generator).to(dtype)
    bias = torch.randn(N, generator=generator).to(dtype)
    layout, arguments = op_arguments(layer, weight_format, dtype)

    y = linear(x, bias=bias, **arguments)

    expected = {"columns": "columns_int4" if dtype == torch.bfloat16 else "columns", "elements": "dense"}
    assert layout == expected[weight_format.mask]
    assert y.dtype == dtype
    assert_close(y, mixed_linear_reference(x, layer, bias), ROUNDING[dtype])


@pytest.mark.parametrize("mask", ["columns", "elements"])
def test_fp16_outliers_stay_finite(mask: Any, generator: torch.Generator) -> None:
    """Sixteen activations of 1e4: sums of codes times them exceed fp16's 65504, the outputs do not."""
    weight_format = WeightFormat(mask=mask)
    layer = tiny.random_layer(weight_format, 64, 512, generator)
    x = torch.randn(3, 512, generator=generator)
    x[:, ::32] = 1e4
    _, arguments = op_arguments(layer, weight_format, torch.float16)

    y = linear(x.half(), bias=None, **arguments)

    assert_close(y, mixed_linear_reference(x.half(), layer), ROUNDING[torch.float16])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("mask", ["columns", "elements"])
def test_opcheck(mask: Any, dtype: torch.dtype, generator: torch.Generator) -> None:
    """Schema, fake implementation and tracing agree with what the op does."""
    weight_format = WeightFormat(mask=mask)
    layer = tiny.random_layer(weight_format, 64, 128, generator)
    x = torch.randn(2, 3, 128, generator=generator).to(dtype)
    _, arguments = op_arguments(layer, weight_format, dtype)
    torch.library.opcheck(linear, (x,), {"bias": None, **arguments})


def test_no_tokens(generator: torch.Generator) -> None:
    layer = tiny.random_layer(WeightFormat(), 64, 128, generator)
    _, arguments = op_arguments(layer, WeightFormat(), torch.bfloat16)
    assert linear(torch.empty(0, 128, dtype=torch.bfloat16), bias=None, **arguments).shape == (0, 64)


@pytest.mark.parametrize(
    ("mask", "device", "dtype", "capability", "layout"),
    [
        ("columns", "cuda", torch.bfloat16, (8, 0), "columns_triton"),
        ("columns", "cuda", torch.float16, (8, 6), "columns_triton"),
        ("columns", "cuda", torch.bfloat16, (9, 0), "columns_triton"),
        ("columns", "cuda", torch.bfloat16, (12, 0), "columns_triton"),
        ("columns", "cuda", torch.float32, (9, 0), "columns"),
        ("columns", "cuda", torch.float16, (7, 5), "columns"),
        ("columns", "cuda", torch.bfloat16, (0, 0), "columns"),
        ("columns", "cpu", torch.bfloat16, (0, 0), "columns_int4"),
        ("columns", "cpu", torch.float16, (0, 0), "columns"),
        ("elements", "cuda", torch.bfloat16, (9, 0), "elements"),
        ("elements", "cpu", torch.bfloat16, (0, 0), "dense"),
    ],
)
def test_choose_layout(mask: Any, device: str, dtype: torch.dtype, capability: tuple[int, int], layout: Layout) -> None:
    assert choose_layout(mask, torch.device(device), dtype, capability) == layout


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 16, 17, 300, 600])
@pytest.mark.parametrize(
    ("N", "K", "weight_format"),
    [
        pytest.param(33, 2048, WeightFormat(chunks=8), id="eight_chunks_ragged_N"),
        pytest.param(1100, 4096, WeightFormat(), id="many_rows"),
        pytest.param(48, 64, WeightFormat(salient_ratio=0), id="all_binary"),
        pytest.param(48, 64, WeightFormat(salient_ratio=1), id="all_salient"),
    ],
)
def test_fused_kernels_match_reference(
    N: int,
    K: int,
    weight_format: WeightFormat,
    tokens: int,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> None:
    layer = tiny.random_layer(weight_format, N, K, generator)
    x = torch.randn(tokens, K, generator=generator).to(dtype)
    bias = torch.randn(N, generator=generator).to(dtype)
    layout, arguments = op_arguments(layer, weight_format, dtype, "cuda")

    y = linear(x.cuda(), bias=bias.cuda(), **arguments)

    assert layout == "columns_triton"
    assert y.dtype == dtype
    assert y.shape == (tokens, N)
    if tokens:
        assert_close(y.cpu(), mixed_linear_reference(x, layer, bias), ROUNDING[dtype])


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [5, 16, 100, 600])
def test_fused_kernels_replay_in_a_cuda_graph(tokens: int, generator: torch.Generator) -> None:
    """One graph, replayed with other activations, in which launches overlap (programmatic dependent launch)."""
    layer = tiny.random_layer(WeightFormat(), 1100, 4096, generator)
    _, arguments = op_arguments(layer, WeightFormat(), torch.bfloat16, "cuda")
    x = torch.zeros(tokens, 4096, dtype=torch.bfloat16, device="cuda")
    linear(x, bias=None, **arguments)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = linear(x, bias=None, **arguments)

    for _ in range(3):
        new = torch.randn(tokens, 4096, generator=generator).bfloat16()
        x.copy_(new)
        graph.replay()
        assert_close(y.cpu(), mixed_linear_reference(new, layer), ROUNDING[torch.bfloat16])
