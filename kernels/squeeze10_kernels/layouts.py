"""In which form a layer is kept for serving, by mask, device and dtype; the table stands in the plugin's repack.py."""

from typing import Final, Literal

import torch

from squeeze10_kernels.format import Mask

Layout = Literal["columns", "columns_int4", "columns_triton", "elements", "dense"]

FUSED: Final = (8, 0)
"""Least compute capability that the fused kernels run on: bf16 in tensor cores begins with it."""
ADVICE: Final[dict[Layout, str]] = {
    "columns": "their weights are decoded in every step; "
    "fused kernels serve bfloat16 and float16 on NVIDIA GPUs from compute capability 8.0 on.",
    "columns_int4": "both parts are served as 4-bit weights by torch's int4 matmul.",
    "columns_triton": "fused kernels read them.",
    "elements": "their weights are decoded in every step, for which no fused kernel exists yet.",
    "dense": "mask elements is served decoded on CPUs, which saves no memory.",
}


def choose_layout(mask: Mask, device: torch.device, dtype: torch.dtype, capability: tuple[int, int]) -> Layout:
    """The layout for a device, the dtype of the activations, and the device's CUDA compute capability."""
    if mask == "elements":
        return "dense" if device.type == "cpu" else "elements"
    if device.type == "cpu":
        return "columns_int4" if dtype == torch.bfloat16 else "columns"
    fused = capability >= FUSED and dtype in (torch.bfloat16, torch.float16)
    return "columns_triton" if fused else "columns"


def cuda_capability(device: torch.device) -> tuple[int, int]:
    """Compute capability; (0, 0) for what is no NVIDIA GPU."""
    if device.type != "cuda" or torch.version.cuda is None:
        return (0, 0)
    return torch.cuda.get_device_capability(device)
