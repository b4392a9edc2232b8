"""From the parameters as vLLM loaded them to those that the op reads, by mask, device and dtype.

| layout         | where                      | parameters                                                |
|----------------|----------------------------|-----------------------------------------------------------|
| `columns`      | CUDA; CPU in fp16 and fp32 | codes as on disk, `channels`: their order                 |
| `columns_int4` | CPU in bf16                | codes as torch's packed int4, `channels`: what they read  |
| `elements`     | CUDA                       | codes and `salient_mask` as on disk                       |
| `dense`        | CPU                        | `qweight`: the decoded weight                             |

`scales` `[N, 3]` and `channel_scales` `[K]` are in all of them.
"""

from typing import Final, Literal

import torch
from vllm.model_executor.utils import replace_parameter

from squeeze10_kernels.cpu_linear import repack_columns
from squeeze10_kernels.dense_linear import channel_order, elements_weight
from squeeze10_kernels.format import Mask
from squeeze10_kernels.packing import unpack_bits

Layout = Literal["columns", "columns_int4", "elements", "dense"]

ADVICE: Final[dict[Layout, str]] = {
    "columns": "their weights are decoded in every step, for which no fused kernel exists yet.",
    "columns_int4": "both parts are served as 4-bit weights by torch's int4 matmul.",
    "elements": "their weights are decoded in every step, for which no fused kernel exists yet.",
    "dense": "mask elements is served decoded on CPUs, which saves no memory.",
}


def choose_layout(mask: Mask, device: torch.device, dtype: torch.dtype) -> Layout:
    """The layout for a device and the dtype of the activations."""
    if mask == "elements":
        return "dense" if device.type == "cpu" else "elements"
    return "columns_int4" if device.type == "cpu" and dtype == torch.bfloat16 else "columns"


def repack(layer: torch.nn.Module, mask: Mask, dtype: torch.dtype) -> Layout:
    """Replace the parameters of `layer` by those of its layout, which is returned.

    Every parameter becomes a plain one. What the layout does not need is freed; loading again restores it.
    """
    layout = choose_layout(mask, layer.get_parameter("qweight").device, dtype)
    tensors = {name: parameter.data for name, parameter in layer.named_parameters(recurse=False) if name != "bias"}
    tensors["channel_scales"] = tensors["channel_scales"][0].clone()
    if layout == "dense":
        tensors["qweight"] = elements_weight(**tensors, dtype=dtype)
        del tensors["qweight_salient"], tensors["salient_mask"]
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
