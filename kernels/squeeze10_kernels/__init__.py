"""The squeeze10 format and its kernels: what the quantizer writes and the vLLM plugin reads."""

from squeeze10_kernels.checkpoint import Checkpoint, open_checkpoint
from squeeze10_kernels.errors import BadInput
from squeeze10_kernels.format import FORMAT_VERSION, WeightFormat, format_from_config
from squeeze10_kernels.linear import QuantizedLinear, check_linear, pack_linear, unpack_linear
from squeeze10_kernels.reference import dequantize, mixed_linear_reference

__all__ = [
    "FORMAT_VERSION",
    "BadInput",
    "Checkpoint",
    "QuantizedLinear",
    "WeightFormat",
    "check_linear",
    "dequantize",
    "format_from_config",
    "mixed_linear_reference",
    "open_checkpoint",
    "pack_linear",
    "unpack_linear",
]
