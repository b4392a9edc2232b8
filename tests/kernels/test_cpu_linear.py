"""Torch's packed int4 as the CPU form of a layer with mask `columns`."""

import pytest
import torch

from squeeze10_kernels import QuantizedLinear, WeightFormat, cpu_linear, mixed_linear_reference, pack_linear
from squeeze10_kernels.cpu_linear import block_rows, group_size, int4_columns_linear, repack_columns, unpack_int4
from squeeze10_kernels.dense_linear import channel_order

BF16 = 4e-3
"""RMS: each part and the sum are rounded to bf16, against 1.7e-3 for one rounding."""


def random_layer(N: int, K: int, weight_format: WeightFormat) -> QuantizedLinear:
    generator = torch.Generator().manual_seed(1)
    chunks = weight_format.chunks
    salient = torch.zeros(chunks, K // chunks, dtype=torch.bool)
    for chunk in salient:
        count = weight_format.salient_channels(K) // chunks
        chunk[torch.randperm(K // chunks, generator=generator)[:count]] = True
    salient = salient.flatten()
    nibbles = torch.randint(0, 16, (N, K), generator=generator)
    bits = torch.randint(0, 2, (N, K), generator=generator)
    codes = torch.where(salient, nibbles, bits).to(torch.uint8)
    scales = 0.01 + 0.05 * torch.rand(N, 3, generator=generator)
    return QuantizedLinear(codes, salient, scales.half(), (0.5 + torch.rand(K, generator=generator)).half())


@pytest.mark.parametrize(
    ("channels", "K", "size"),
    [
        pytest.param(3264, 4096, 256, id="llama2_binary"),
        pytest.param(832, 4096, 256, id="llama2_salient"),
        pytest.param(464, 576, 32, id="smollm2_binary"),
        pytest.param(112, 576, 128, id="smollm2_salient"),
        pytest.param(8, 64, 32, id="smallest"),
    ],
)
def test_group_size_bounds_padding(channels: int, K: int, size: int) -> None:
    """By hand: 3264 = 12 x 256 + 192, so 64 of 4096 are padding (1.6 %); 464 -> 512 would be 8.3 % of 576."""
    assert group_size(channels, K) == size


@pytest.mark.parametrize("tokens", [1, 5, 128, 129])
@pytest.mark.parametrize(
    ("N", "K", "weight_format"),
    [
        pytest.param(960, 576, WeightFormat(), id="smollm2_qkv"),
        pytest.param(50, 2048, WeightFormat(chunks=8), id="eight_chunks_ragged_N"),
        pytest.param(16, 64, WeightFormat(salient_ratio=0), id="all_binary"),
        pytest.param(16, 64, WeightFormat(salient_ratio=1), id="all_salient"),
    ],
)
def test_int4_matches_the_reference(N: int, K: int, weight_format: WeightFormat, tokens: int) -> None:
    layer = random_layer(N, K, weight_format)
    tensors = pack_linear(layer, weight_format)
    parts = repack_columns(tensors["qweight"], tensors["qweight_salient"], channel_order(layer.salient))
    generator = torch.Generator().manual_seed(2)
    x, bias = torch.randn(tokens, K, generator=generator).bfloat16(), torch.randn(N, generator=generator)

    y = int4_columns_linear(
        x,
        parts[0],
        parts[1],
        layer.scales,
        layer.channel_scales,
        parts[2],
        salient_channels=int(layer.salient.sum()),
        bias=bias,
    )

    expected = mixed_linear_reference(x, layer, bias)
    assert y.dtype == torch.bfloat16
    error = (y.double() - expected.double()).square().mean().sqrt()
    assert error < BF16 * expected.double().square().mean().sqrt()


def test_row_scales_are_not_rounded_to_bf16() -> None:
    """s1 = 1 + 2^-8 lies between two bf16; rounding it would shift the whole row by 0.4 %."""
    N, K = 16, 64
    ones = torch.ones(N, K, dtype=torch.uint8)
    scales = torch.full((N, 3), 1 + 2**-8, dtype=torch.float16)
    layer = QuantizedLinear(ones, torch.zeros(K, dtype=torch.bool), scales, torch.ones(K, dtype=torch.float16))
    tensors = pack_linear(layer, WeightFormat(salient_ratio=0))
    parts = repack_columns(tensors["qweight"], tensors["qweight_salient"], torch.arange(K))
    x = torch.zeros(1, K, dtype=torch.bfloat16)
    x[0, 0] = 255

    y = int4_columns_linear(x, parts[0], parts[1], scales, layer.channel_scales, parts[2], salient_channels=0)

    assert y.unique().tolist() == [256.0]  # 255.996; a rounded scale gives 255 or 257


def test_padding_weighs_nothing() -> None:
    """Padding reads channel 0, whatever is there."""
    layer = random_layer(16, 576, WeightFormat())
    tensors = pack_linear(layer, WeightFormat())
    packed, packed_salient, order = repack_columns(
        tensors["qweight"], tensors["qweight_salient"], channel_order(layer.salient)
    )
    assert order.shape == (480 + 128,)
    assert (order[464:480] == 0).all()
    assert (order[480 + 112 :] == 0).all()
    block = block_rows()
    assert block is not None
    for part, width in ((packed, 464), (packed_salient, 112)):
        levels = unpack_int4(part, block, torch.float32)
        assert (levels[width:] == 0).all()
        assert (levels[:width, :16] != 0).any()


def test_unknown_int4_layout_still_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch packs otherwise, many tokens go through its int4 matmul too."""
    layer = random_layer(64, 128, WeightFormat())
    tensors = pack_linear(layer, WeightFormat())
    parts = repack_columns(tensors["qweight"], tensors["qweight_salient"], channel_order(layer.salient))
    monkeypatch.setattr(cpu_linear, "block_rows", lambda: None)
    x = torch.randn(200, 128, generator=torch.Generator().manual_seed(2)).bfloat16()

    y = int4_columns_linear(x, parts[0], parts[1], layer.scales, layer.channel_scales, parts[2], salient_channels=24)

    expected = mixed_linear_reference(x, layer)
    assert (y - expected).float().square().mean().sqrt() < BF16 * expected.float().square().mean().sqrt()
