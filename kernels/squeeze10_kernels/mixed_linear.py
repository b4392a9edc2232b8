"""A quantized linear layer on the GPU, by whatever is fastest for this number of tokens."""

import torch

from squeeze10_kernels.activations import gather_channels, gather_groups, gather_halves
from squeeze10_kernels.decode_weights import decoded_gemm
from squeeze10_kernels.kernel_layout import PackedLinear
from squeeze10_kernels.mixed_gemm import mixed_gemm
from squeeze10_kernels.tiles import Gpu, Tile, WgmmaTile, gpu_of, select_tile
from squeeze10_kernels.wgmma_gemm import wgmma_gemm


def mixed_linear(
    x: torch.Tensor, packed: PackedLinear, bias: torch.Tensor | None = None, *, gpu: Gpu | None = None
) -> torch.Tensor:
    """`mixed_linear_reference` on a CUDA device.

    Args:
        x: `[M, K]` fp16 or bf16, contiguous.
        bias: `[N]` or None.
        gpu: What the kernels are chosen for; None for the device of x.

    Returns:
        `[M, N]` in the dtype of x.
    """
    (M, K), N = x.shape, packed.out_features
    if M == 0:
        return x.new_empty(0, N)
    gpu = gpu or gpu_of(x.device)
    return launch(x, packed, bias, select_tile(M, N, K, gpu), pdl=gpu.pdl)


def launch(
    x: torch.Tensor, packed: PackedLinear, bias: torch.Tensor | None, tile: Tile | WgmmaTile | None, *, pdl: bool
) -> torch.Tensor:
    """`mixed_linear` with this tile, or with decoded weights where it is None; `pdl` as in `gather_groups`."""
    if tile is None:
        return decoded_gemm(gather_channels(x, packed, pdl=pdl), packed, bias)
    if isinstance(tile, Tile):
        return mixed_gemm(*gather_groups(x, packed, pdl=pdl), packed, bias, tile=tile, pdl=pdl)
    arrived = x.new_empty(tile.tiles(len(x), packed.out_features), dtype=torch.int32)
    return wgmma_gemm(*gather_halves(x, packed, arrived, pdl=pdl), arrived, packed, bias, tile=tile)
