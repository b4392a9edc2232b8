"""From the parameters as vLLM loaded them to those that the op reads, by mask, device and dtype.

| layout           | where                           | parameters                                               |
|------------------|---------------------------------|----------------------------------------------------------|
| `columns_triton` | NVIDIA, 8.0 on, bf16 and fp16   | `qweight`, `channels`: see `kernel_layout`               |
| `columns_int4`   | CPU in bf16                     | codes as torch's packed int4, `channels`: what they read |
| `columns`        | elsewhere                       | codes as on disk, `channels`: their order                |
| `elements`       | CUDA                            | codes and `salient_mask` as on disk                      |
| `dense`          | CPU                             | `qweight`: the decoded weight                            |

`scales` `[N, 3]` and `channel_scales` `[K]` are in all of them.
"""

import torch
from vllm.model_executor.utils import replace_parameter

from squeeze10_kernels.cpu_linear import repack_columns
from squeeze10_kernels.dense_linear import channel_order, elements_weight
from squeeze10_kernels.format import Mask, WeightFormat
from squeeze10_kernels.kernel_layout import to_kernel_layout
from squeeze10_kernels.layouts import Layout, choose_layout, cuda_capability
from squeeze10_kernels.linear import unpack_linear
from squeeze10_kernels.packing import unpack_bits


def repack(layer: torch.nn.Module, mask: Mask, dtype: torch.dtype) -> Layout:
    """Replace the parameters of `layer` by those of its layout, which is returned.

    Every parameter becomes a plain one. What the layout does not need is freed; loading again restores it.
    """
    device = layer.get_parameter("qweight").device
    layout = choose_layout(mask, device, dtype, cuda_capability(device))
    tensors = {name: parameter.data for name, parameter in layer.named_parameters(recurse=False) if name != "bias"}
    tensors["channel_scales"] = tensors["channel_scales"][0].clone()
    if layout == "dense":
        tensors["qweight"] = elements_weight(**tensors, dtype=dtype)
        del tensors["qweight_salient"], tensors["salient_mask"]
    elif layout == "columns_triton":
        tensors = kernel_tensors(tensors)
    elif mask == "columns":
        tensors["channels"] = channel_order(unpack_bits(tensors.pop("salient_mask")[0]).bool())
    if layout == "columns_int4":
        tensors["qweight"], tensors["qweight_salient"], tensors["channels"] = repack_columns(
            tensors["qweight"], tensors["qweight_salient"], tensors["channels"]
        )
    for name in ("qweight_salient", "salient_mask"):
        if name not in tensors:
            delattr(layer, name)
    for name, tensor in tensors.items():
        replace_parameter(layer, name, tensor)
    return layout


def kernel_tensors(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The parameters of layout `columns_triton`, from those on disk."""
    on_disk = {**tensors, "salient_mask": tensors["salient_mask"][0]}
    N, K = tensors["scales"].shape[0], tensors["channel_scales"].shape[0]
    packed = to_kernel_layout(unpack_linear(on_disk, WeightFormat(), N, K))
    return {
        "qweight": packed.words,
        "scales": packed.scales,
        "channel_scales": packed.channel_scales,
        "channels": packed.channels,
    }
