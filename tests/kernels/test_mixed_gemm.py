"""The kernels compute `mixed_linear_reference`: in the interpreter on the CPU, with assembly on the GPU."""

import pytest
import torch
from assertions import assert_close
from random_layers import random_layer

from squeeze10_kernels import mixed_linear_reference
from squeeze10_kernels.activations import gather_activations, gather_activations_reference
from squeeze10_kernels.decode_weights import decoded_gemm
from squeeze10_kernels.mixed_gemm import mixed_gemm
from squeeze10_kernels.repack import repack
from squeeze10_kernels.tiles import BUCKETS, Tile, select_tile

CUDA = torch.cuda.is_available()
SMALL = Tile(rows=32, tokens=16, step=256, split=1, cost=2, warps=4, stages=2)
SIZES = [
    pytest.param(16, 256, 0.2, id="one_tile"),
    pytest.param(33, 520, 0.2, id="ragged_rows_and_channels"),
    pytest.param(1, 8, 0.2, id="one_row"),
    pytest.param(48, 1024, 0.2, id="several_units"),
    pytest.param(32, 320, 0.0, id="all_binary"),
    pytest.param(32, 320, 1.0, id="all_salient"),
]
pytestmark = [pytest.mark.usefixtures("nan_poison")]
interpreted = pytest.mark.skipif(CUDA, reason="runs in Triton's interpreter; there is a GPU")


def problem(M: int, N: int, K: int, ratio: float, dtype: torch.dtype, device: str = "cpu"):  # type: ignore[no-untyped-def]
    layer = random_layer(N, K, int(ratio * K), device)
    x = torch.randn(M, K).to(dtype).to(device)
    return layer, repack(layer), x


@interpreted
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("M", [1, 17])
def test_gathered_activations(M: int, dtype: torch.dtype) -> None:
    _, packed, x = problem(M, 16, 1800, 0.2, dtype)

    out, sums = gather_activations(x, packed)

    expected, expected_sums = gather_activations_reference(x, packed)
    assert torch.equal(out, expected)
    assert_close(sums.sum(1), expected_sums.sum(1), rms=1e-6)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("N", "K", "ratio"), SIZES)
@pytest.mark.parametrize("step", [64, 128, 256])
def test_kernel_matches_reference(N: int, K: int, ratio: float, step: int, dtype: torch.dtype) -> None:
    layer, packed, x = problem(3, N, K, ratio, dtype)
    tile = Tile(rows=32, tokens=16, step=step, split=1, cost=2, warps=4, stages=2)

    y = mixed_gemm(*gather_activations(x, packed), packed, None, tile=tile, assembly=False)

    assert_close(y, mixed_linear_reference(x, layer), rms=1e-5 if dtype == torch.float32 else 1e-3)


@interpreted
@pytest.mark.parametrize("M", range(1, 18))
def test_every_number_of_tokens(M: int) -> None:
    layer, packed, x = problem(M, 32, 256, 0.2, torch.float32)

    y = mixed_gemm(*gather_activations(x, packed), packed, None, tile=SMALL, assembly=False)

    assert_close(y, mixed_linear_reference(x, layer), rms=1e-5)


@interpreted
@pytest.mark.parametrize("split", [2, 3, 8])
@pytest.mark.parametrize("cost", [1, 2, 4])
def test_split_sums_all_parts_once_and_clears_its_counters(split: int, cost: int) -> None:
    layer, packed, x = problem(5, 40, 1300, 0.2, torch.float32)
    tile = Tile(rows=32, tokens=16, step=128, split=split, cost=cost, warps=4, stages=2)
    bias = torch.randn(40)

    for _ in range(2):
        y = mixed_gemm(*gather_activations(x, packed), packed, bias, tile=tile, assembly=False)
        assert_close(y, mixed_linear_reference(x, layer, bias), rms=1e-5)
    assert not packed.counters.any()


@interpreted
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("N", "K", "ratio"), [*SIZES, pytest.param(300, 520, 0.2, id="several_chunks")])
def test_decoded_gemm_matches_reference(N: int, K: int, ratio: float, dtype: torch.dtype) -> None:
    layer, packed, x = problem(3, N, K, ratio, dtype)
    bias = torch.randn(N).to(dtype)

    x_gathered, _ = gather_activations(x, packed)
    y = decoded_gemm(x_gathered, packed, bias, scratch_bytes=2 * 128 * len(packed.channels), assembly=False)

    assert_close(y, mixed_linear_reference(x, layer, bias), rms=1e-5 if dtype == torch.float32 else 2e-3)


def test_tiles_fit_the_kernel_for_all_sizes() -> None:
    for M in (1, 2, 16, 17, 100, 256):
        for N, K in ((4096, 4096), (12288, 4096), (22016, 4096), (4096, 11008), (576, 576), (192, 576)):
            tile = select_tile(M, N, K, (9, 0))
            assert tile is not None
            assert tile.rows % 64 == tile.warps % 4 == 0
            assert tile.step in (64, 128, 256)
            assert -(-N // tile.rows) * -(-M // tile.tokens) <= max(1, -(-N // 16)), "one counter for a tile"
    assert select_tile(BUCKETS[-1] + 1, 4096, 4096, (9, 0)) is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("N", "K", "ratio"), [*SIZES, pytest.param(4096, 4096, 0.2031, id="llama_o_proj")])
@pytest.mark.parametrize("M", [1, 7, 16, 17, 64, 100, 256])
def test_assembly_on_the_gpu(M: int, N: int, K: int, ratio: float, dtype: torch.dtype) -> None:
    layer, packed, x = problem(M, N, K, ratio, dtype, "cuda")
    tile = select_tile(M, N, K, torch.cuda.get_device_capability())
    assert tile is not None
    gathered = gather_activations(x, packed)

    y = mixed_gemm(*gathered, packed, None, tile=tile)
    again = mixed_gemm(*gathered, packed, None, tile=tile)

    assert_close(y.float(), mixed_linear_reference(x, layer).float(), rms=5e-3)
    assert torch.equal(y, again), "the sum has one order"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("M", [257, 512, 2048])
def test_decoded_gemm_on_the_gpu(M: int, dtype: torch.dtype) -> None:
    layer, packed, x = problem(M, 4100, 4096, 0.2031, dtype, "cuda")

    x_gathered, _ = gather_activations(x, packed)
    y = decoded_gemm(x_gathered, packed, None, scratch_bytes=16 << 20)

    assert_close(y.float(), mixed_linear_reference(x, layer).float(), rms=5e-3)
