"""A quantized linear layer on the GPU, by whatever is fastest for this number of tokens."""

import torch

from squeeze10_kernels.activations import gather_activations
from squeeze10_kernels.decode_weights import decoded_gemm
from squeeze10_kernels.kernel_layout import PackedLinear
from squeeze10_kernels.mixed_gemm import mixed_gemm
from squeeze10_kernels.tiles import select_tile


def mixed_linear(x: torch.Tensor, packed: PackedLinear, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`mixed_linear_reference` on a CUDA device.

    Args:
        x: `[M, K]` fp16 or bf16, contiguous.
        bias: `[N]` or None.

    Returns:
        `[M, N]` in the dtype of x.
    """
    M = len(x)
    if M == 0:
        return x.new_empty(0, packed.out_features)
    tile = select_tile(M, packed.out_features)
    gathered, sums = gather_activations(x, packed, grouped=tile is not None)
    if tile is None:
        return decoded_gemm(gathered, packed, bias)
    return mixed_gemm(gathered, sums, packed, bias, tile=tile)
