"""Squeeze10TableMethod: 4-bit embeddings and lm_head inside vLLM, as a linear layer whose channels are all 4-bit.

On this rank a table is `[V, hidden]`: its rows of the vocabulary, padded by vLLM. Embeddings stay as they lie on disk,
since single rows are read; an lm_head is repacked like every linear, and a tied one from a copy.
"""

from typing import TYPE_CHECKING, Any, Final

import torch
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.utils import replace_parameter

from squeeze10_kernels import BadInput, check_linear
from squeeze10_kernels.embedding import look_up
from squeeze10_kernels.format import TABLE_FORMAT
from squeeze10_kernels.linear import check_tensor
from squeeze10_vllm.linear import SUFFIXES, Squeeze10LinearMethod
from squeeze10_vllm.loading import check_filled
from squeeze10_vllm.parameters import Squeeze10Parameter
from squeeze10_vllm.repack import repack

if TYPE_CHECKING:
    from squeeze10_vllm.config import Squeeze10Config

DUMMY_VALUES: Final = {"qweight": 0, "qweight_salient": 0, "scales": 1e-3, "channel_scales": 1, "salient_mask": 255}
"""Of a table that vLLM leaves unfilled."""


class TableParameter(Squeeze10Parameter):
    """One tensor of a table: this rank's rows `[V, width]`, or `[1, width]` of what describes the channels.

    Attributes:
        table: The layer that it belongs to; vLLM ties an lm_head to the embeddings by handing it their `weight`.
        by_row: Which of the two.
    """

    def __init__(self, data: torch.Tensor, *, table: VocabParallelEmbedding, by_row: bool, name: str) -> None:
        super().__init__(data, weight_loader=load_table, tensor_names=(name,))
        self.table = (table,)  # a bare module would be entered into vLLM's tree
        self.by_row = by_row

    def fill_rows(self, loaded: torch.Tensor) -> None:
        """Copy this rank's rows; `BadInput` if shape or dtype is not as config.json says. Padding is zero."""
        (table,) = self.table
        shape = (table.org_vocab_size, self.shape[1]) if self.by_row else (self.shape[1],)
        check_tensor(self.tensor_names[0], tuple(loaded.shape), loaded.dtype, shape, self.dtype)
        shard = table.shard_indices
        rows = loaded[shard.org_vocab_start_index : shard.org_vocab_end_index] if self.by_row else loaded[None]
        self.data.zero_()[: len(rows)].copy_(rows)
        self.filled = frozenset((0,))


def load_table(parameter: TableParameter, loaded: torch.Tensor) -> None:
    """What vLLM calls with a tensor of the checkpoint."""
    parameter.fill_rows(loaded)


class Squeeze10TableMethod(Squeeze10LinearMethod):
    """Creates, loads and reads one table."""

    def __init__(self, config: "Squeeze10Config", name: str) -> None:
        super().__init__(config, (name,))
        self.rank_format = TABLE_FORMAT

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
        """Register this rank's empty parameters, and `weight`, by which vLLM ties."""
        assert isinstance(layer, VocabParallelEmbedding)
        self.dtype, self.rows, self.width = params_dtype, output_partition_sizes, input_size
        self.salient_channels = input_size
        (name,) = self.names
        for suffix, (shape, dtype) in TABLE_FORMAT.tensor_specs(self.rows[0], input_size).items():
            by_row = len(shape) == 2
            data = torch.empty(shape if by_row else (1, *shape), dtype=dtype)
            parameter = TableParameter(data, table=layer, by_row=by_row, name=f"{name}.{suffix}")
            layer.register_parameter(suffix, parameter)
        layer.register_parameter("weight", layer.get_parameter("qweight_salient"))

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Check what was loaded; bring an lm_head into the form that the op reads. Once per load."""
        tied = getattr(layer, "weight", None)
        if not isinstance(tied, TableParameter):
            return
        (source,) = tied.table
        if source is layer:
            self.check(layer)
        del layer.weight
        for suffix in SUFFIXES:
            replace_parameter(layer, suffix, getattr(source, suffix).data)
        if isinstance(layer, ParallelLMHead):
            self.layout = repack(layer, "columns", self.dtype)
            if self.layout == "columns_triton":
                self.compile_kernels(layer)

    def check(self, table: VocabParallelEmbedding) -> None:
        """Raise `BadInput`, naming the tensor, unless every tensor was loaded and is valid."""
        parameters: dict[str, Squeeze10Parameter] = {suffix: getattr(table, suffix) for suffix in SUFFIXES}
        if self.dummy and not any(parameter.filled for parameter in parameters.values()):
            for suffix, parameter in parameters.items():
                parameter.data.fill_(DUMMY_VALUES[suffix])
            return
        check_filled(parameters)
        tensors = {suffix: parameter.data for suffix, parameter in parameters.items()}
        for suffix in ("channel_scales", "salient_mask"):
            tensors[suffix] = tensors[suffix][0]
        try:
            check_linear(tensors, TABLE_FORMAT, self.rows[0], self.width)
        except BadInput as error:
            raise BadInput(
                f"{self.names[0]}.{error} Fetch the checkpoint again or quantize the model again."
            ) from error

    def embedding(self, layer: torch.nn.Module, input_: torch.Tensor) -> torch.Tensor:
        """Token ids `[...]` to `[..., hidden]` in the dtype of the activations."""
        qweight, scales, channel_scales = map(layer.get_parameter, ("qweight_salient", "scales", "channel_scales"))
        return look_up(input_, qweight, scales, channel_scales[0], self.dtype)
