"""Squeeze10LinearMethod: the life of one quantized linear layer inside vLLM, from empty parameters to `apply`.

On this rank the layer is `[N, K]`: N rows of all the linears it stacks, K of the input channels.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import torch
from vllm.config import get_current_vllm_config_or_none
from vllm.model_executor.layers.linear import (
    LinearBase,
    LinearMethodBase,
    register_weight_loader_v2_supported_method,
)

from squeeze10_kernels import BadInput, WeightFormat
from squeeze10_kernels.format import TensorSpec
from squeeze10_kernels.launching import only_compiling
from squeeze10_kernels.layouts import ADVICE, Layout
from squeeze10_kernels.spot_check import spot_check
from squeeze10_kernels.tiles import gpu_of, warm_up_tokens
from squeeze10_vllm.loading import check_filled, check_values, fill_dummy
from squeeze10_vllm.op import linear, packed_linear
from squeeze10_vllm.parameters import InputsParameter, RowsParameter, Squeeze10Parameter, StreamParameter
from squeeze10_vllm.repack import repack

if TYPE_CHECKING:
    from squeeze10_vllm.config import Squeeze10Config

Launch = tuple[torch.Tensor, torch.Tensor | None]
"""Activations and bias."""
SUFFIXES: Final = ("qweight", "qweight_salient", "scales", "channel_scales", "salient_mask")


@register_weight_loader_v2_supported_method
class Squeeze10LinearMethod(LinearMethodBase):
    """Creates, loads, repacks and multiplies the weights of one layer.

    Attributes:
        config: Of the checkpoint.
        names: The linears of the checkpoint that the layer stacks.
        dummy: Whether vLLM leaves the parameters unfilled (`--load-format dummy`).
        dtype: Of the activations.
        rank_format: The checkpoint's, with the chunks of this rank.
        rows: Of each linear, on this rank.
        width: Input channels on this rank.
        salient_channels: 4-bit channels of this rank's input under mask `columns`.
        layout: Of the parameters once they are loaded.
    """

    def __init__(self, config: "Squeeze10Config", names: tuple[str, ...]) -> None:
        self.config = config
        self.names = names
        vllm_config = get_current_vllm_config_or_none()
        self.dummy = vllm_config is not None and vllm_config.load_config.load_format == "dummy"
        self.dtype = torch.get_default_dtype()
        self.rank_format = config.weight_format
        self.rows: list[int] = []
        self.width = 0
        self.salient_channels = 0
        self.layout: Layout = "columns"

    def create_weights(
        self,
        layer: torch.nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Register this rank's empty parameters; `BadInput` for a tensor parallel size that splits a chunk."""
        assert isinstance(layer, LinearBase)
        weight_format = self.config.weight_format
        input_parts = input_size // input_size_per_partition
        check_tensor_parallel(weight_format, self.names, layer.tp_size, input_parts)
        self.dtype = params_dtype
        self.rank_format = replace(weight_format, chunks=weight_format.chunks // input_parts)
        self.rows, self.width = output_partition_sizes, input_size_per_partition
        self.salient_channels = self.rank_format.salient_channels(input_size_per_partition)
        loader = extra_weight_attrs["weight_loader"]
        specs = [weight_format.tensor_specs(rows, input_size) for rows in output_partition_sizes]
        for suffix in SUFFIXES:
            tensor_names = tuple(f"{name}.{suffix}" for name in self.names)
            common = {"weight_loader": loader, "tensor_names": tensor_names}
            shard_specs = [spec[suffix] for spec in specs]
            layer.register_parameter(suffix, create_parameter(suffix, shard_specs, input_parts, common))
        self.config.layers += 1

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Check what was loaded and bring it into the form that the op reads; once per load.

        Raises `BadInput`, naming the tensor, if one was not in the checkpoint or its values are invalid.
        """
        if not isinstance(layer.channel_scales, Squeeze10Parameter):
            return
        self.check_loaded(layer)
        self.repack(layer)
        num_bytes = sum(parameter.nbytes for parameter in layer.parameters(recurse=False))
        self.config.layer_loaded(num_bytes, ADVICE[self.layout])

    def check_loaded(self, layer: torch.nn.Module) -> None:
        """Raise `BadInput` unless every parameter was filled with valid values; fill them if vLLM never does."""
        parameters: dict[str, Squeeze10Parameter] = {suffix: getattr(layer, suffix) for suffix in SUFFIXES}
        if self.dummy and not any(parameter.filled for parameter in parameters.values()):
            fill_dummy(parameters, self.rank_format, self.rows, self.width)
        else:
            check_filled(parameters)
            check_values(parameters, self.names, self.rank_format, self.rows, self.width)

    def repack(self, layer: torch.nn.Module) -> None:
        """Bring the parameters into the form that the op reads, and compile what reads them."""
        self.layout = repack(layer, self.rank_format.mask, self.dtype)
        if self.layout == "columns_triton":
            self.compile_kernels(layer)

    @torch.no_grad()
    def compile_kernels(self, layer: torch.nn.Module) -> None:
        """Run every kernel that the layer will run, so that none is compiled while serving.

        A layer of a size that was there before has the same kernels, and runs the first of them, for its own weights.

        Raises:
            BadInput: What one gives is wrong in the first or the last rows.
        """
        device = layer.get_parameter("qweight").device
        bias = getattr(layer, "bias", None)
        read = layer.get_parameter
        packed = packed_linear(
            read("qweight"), read("scales"), read("channels"), read("channel_scales"), self.salient_channels
        )
        size = sum(self.rows), self.width, self.salient_channels, bias is not None
        counts = warm_up_tokens(*size[:2], gpu_of(device))
        generator = torch.Generator(device).manual_seed(0)
        inputs = [
            torch.randn(tokens, self.width, dtype=self.dtype, device=device, generator=generator)
            for tokens in (counts[:1] if size in self.config.compiled else counts)
        ]
        # ranks above the first of a row-parallel layer leave the bias out
        launches = [(x, own) for x in inputs for own in ([None] if bias is None else [None, bias])]
        if len(launches) > 1:
            compile_side_by_side(lambda launch: self.multiply(layer, *launch), launches, device)
        for x, own in launches:
            spot_check(self.multiply(layer, x, own), x, packed, own)
        self.config.compiled.add(size)

    def apply(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """`[..., K]` to `[..., N]`, bias added where given."""
        return self.multiply(layer, x, bias)

    def multiply(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The same for the layer as it is stored."""
        y: torch.Tensor = linear(
            x,
            layer.qweight,
            getattr(layer, "qweight_salient", None),
            layer.scales,
            layer.channel_scales,
            getattr(layer, "channels", None),
            getattr(layer, "salient_mask", None),
            bias,
            self.layout,
            self.salient_channels,
        )
        return y


def compile_side_by_side(run: Callable[[Launch], object], launches: list[Launch], device: torch.device) -> None:
    """Compile each in a thread of its own: Triton does so outside of Python's lock for most of its time."""

    def compile_one(launch: Launch) -> None:
        on_device = torch.cuda.device(device if device.type == "cuda" else -1)
        with torch.no_grad(), on_device, only_compiling():  # all are a thread's own
            run(launch)

    with ThreadPoolExecutor(len(launches)) as pool:
        for _ in pool.map(compile_one, launches):
            pass


def create_parameter(
    suffix: str, specs: list[TensorSpec], input_parts: int, common: dict[str, Any]
) -> Squeeze10Parameter:
    """One empty parameter for the tensors `suffix` of a stack.

    Args:
        suffix: `qweight`, ...
        specs: Shape and dtype of each linear's tensor, whole inputs and this rank's rows.
        input_parts: Ranks over which the input is split.
        common: Arguments of every parameter.
    """
    (first_shape, dtype), shapes = specs[0], [shape for shape, _ in specs]
    if suffix == "channel_scales" or (suffix == "salient_mask" and len(first_shape) == 1):
        return InputsParameter(torch.empty(len(specs), first_shape[0] // input_parts, dtype=dtype), **common)
    if len(first_shape) == 1:
        sizes = tuple(shape[0] for shape in shapes)
        return StreamParameter(torch.empty(sum(sizes), dtype=dtype), sizes=sizes, **common)
    rows, splits_input = sum(shape[0] for shape in shapes), suffix != "scales"
    width = first_shape[1] // input_parts if splits_input else first_shape[1]
    return RowsParameter(torch.empty(rows, width, dtype=dtype), splits_input=splits_input, **common)


def check_tensor_parallel(weight_format: WeightFormat, names: tuple[str, ...], tp_size: int, input_parts: int) -> None:
    """Raise `BadInput` unless the ranks can share a layer: whole chunks each; one rank for mask `elements`."""
    if weight_format.mask == "elements" and tp_size > 1:
        raise BadInput(
            f"{names[0]}: mask elements is served with --tensor-parallel-size 1 only; got {tp_size}. "
            "Quantize with mask columns to use more GPUs."
        )
    chunks = weight_format.chunks
    if chunks % input_parts:
        sizes = [str(size) for size in range(1, chunks + 1) if chunks % size == 0]
        raise BadInput(
            f"{names[0]}: --tensor-parallel-size {input_parts} would split its {chunks} chunks of input channels; "
            f"this checkpoint serves with {', '.join(sizes)}."
        )
