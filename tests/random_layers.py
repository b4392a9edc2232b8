"""Random layers for the kernel tests."""

import torch

from squeeze10_kernels import QuantizedLinear
from squeeze10_kernels.kernel_layout import PackedLinear, to_kernel_layout

LLAMA2_7B = [(12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008)]
"""Output and input features of a decoder layer's linears as vLLM fuses them."""
OF_OTHERS = [(10240, 8192), (8192, 8192), (8192, 28672), (6144, 4096), (4096, 14336)]
"""Layers of LLaMA2-70B and LLaMA3-8B with tiles of their own."""


def random_layer(N: int, K: int, salient_channels: int, device: str = "cpu") -> QuantizedLinear:
    """A layer under mask `columns`; row 0 has s1 = 0, row 1 has s4 = 0, scales have both signs."""
    salient = torch.zeros(K, dtype=torch.bool)
    salient[torch.randperm(K)[:salient_channels]] = True
    codes = torch.where(salient.expand(N, K), torch.randint(0, 16, (N, K)), torch.randint(0, 2, (N, K)))
    scales = torch.randn(N, 3) * torch.tensor([0.05, 0.01, 0.02])
    scales[0, 0] = 0
    scales[1:2, 1] = 0
    channel_scales = (torch.randn(K) * 0.3).exp().clamp(max=4)
    parts = (codes.to(torch.uint8), salient, scales.half(), channel_scales.half())
    return QuantizedLinear(*(part.to(device) for part in parts))


def random_problem(
    M: int, N: int, K: int, ratio: float, dtype: torch.dtype, device: str = "cpu"
) -> tuple[QuantizedLinear, PackedLinear, torch.Tensor]:
    """A layer, the same as the kernels read it, and activations `[M, K]`."""
    layer = random_layer(N, K, int(ratio * K), device)
    x = torch.randn(M, K).to(dtype).to(device)
    return layer, to_kernel_layout(layer), x
