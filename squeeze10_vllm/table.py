"""Squeeze10TableMethod: 8- and 4-bit embeddings and lm_head inside vLLM, as a linear layer of 4-bit channels only.

On this rank a table is `[V, parts * hidden]`: its rows of the vocabulary, padded by vLLM. Embeddings stay as they lie
on disk, since single rows are read; an lm_head is repacked like every linear, and a tied one from a copy.
"""

from typing import TYPE_CHECKING, Any

import torch
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.utils import replace_parameter

from squeeze10_kernels.embedding import look_up
from squeeze10_kernels.format import TABLE_FORMAT
from squeeze10_vllm.linear import SUFFIXES, Squeeze10LinearMethod
from squeeze10_vllm.parameters import InputsParameter, Place, Slot, Squeeze10Parameter
from squeeze10_vllm.repack import repack

if TYPE_CHECKING:
    from squeeze10_vllm.config import Squeeze10Config


class RowsOfTable(Squeeze10Parameter):
    """`[V, width]`: this rank's rows of the vocabulary, and vLLM's padding.

    Attributes:
        table: The layer that it belongs to; vLLM ties an lm_head to the embeddings by handing it their `weight`.
    """

    def __init__(self, data: torch.Tensor, *, table: VocabParallelEmbedding, name: str) -> None:
        super().__init__(data, weight_loader=load_rows, tensor_names=(name,))
        self.table = (table,)  # a bare module would be entered into vLLM's tree

    def place(self, slot: Slot) -> Place:
        (table,) = self.table
        first, width = table.shard_indices.org_vocab_start_index, self.shape[1]
        part = (slice(first, first + slot.rows), slice(None))
        return self.data[: slot.rows], (table.org_vocab_size, width), part


def load_rows(param: RowsOfTable, loaded: torch.Tensor) -> None:
    """What vLLM calls with a tensor of the checkpoint, `param` by this name. Padding is zero."""
    (table,) = param.table
    param.data.zero_()
    param.fill(Slot(0, 0, table.num_org_embeddings_per_partition), loaded)


def load_channels(param: InputsParameter, loaded: torch.Tensor) -> None:
    """The same for what describes the channels, which every rank has whole."""
    param.fill(Slot(0, 0, 0), loaded)


class Squeeze10TableMethod(Squeeze10LinearMethod):
    """Creates, loads and reads one table.

    Attributes:
        hidden: Of the model.
        parts: Of which a weight is the sum.
        tied: Of embeddings: what the lm_head that is tied to them reads, by name.
    """

    def __init__(self, config: "Squeeze10Config", name: str) -> None:
        super().__init__(config, (name,))
        self.rank_format = TABLE_FORMAT
        self.hidden, self.parts = 0, config.weight_format.table_parts
        self.tied: dict[str, torch.Tensor] = {}

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
        self.dtype, self.rows, self.hidden = params_dtype, output_partition_sizes, input_size
        self.width = self.salient_channels = self.parts * input_size
        for suffix, (shape, dtype) in TABLE_FORMAT.tensor_specs(self.rows[0], self.width).items():
            layer.register_parameter(suffix, self.create_parameter(layer, suffix, torch.empty(shape, dtype=dtype)))
        layer.register_parameter("weight", layer.get_parameter("qweight_salient"))

    def create_parameter(
        self, layer: VocabParallelEmbedding, suffix: str, data: torch.Tensor
    ) -> RowsOfTable | InputsParameter:
        """One empty parameter."""
        name = f"{self.names[0]}.{suffix}"
        if data.ndim == 2:
            return RowsOfTable(data, table=layer, name=name)
        return InputsParameter(data[None], weight_loader=load_channels, tensor_names=(name,))

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Check what was loaded; bring an lm_head into the form that the op reads. Once per load."""
        loaded = getattr(layer, "weight", None)
        if not isinstance(loaded, RowsOfTable):
            return
        (source,) = loaded.table
        if source is layer:
            self.check_loaded(layer)
        del layer.weight
        for suffix in SUFFIXES:
            replace_parameter(layer, suffix, getattr(source, suffix).data)
        # for whoever asks for its dtype or device, as LoRA; its values would spoil all and equal none. A parameter,
        # since vLLM 0.26 takes nothing else away before it loads again
        nothing = torch.full((1, self.hidden), torch.nan, device=loaded.device, dtype=self.dtype)
        layer.register_parameter("weight", torch.nn.Parameter(nothing, requires_grad=False))
        if isinstance(layer, ParallelLMHead):
            self.repack(layer)
            if source is not layer:
                assert isinstance(source.quant_method, Squeeze10TableMethod)
                source.quant_method.tied = dict(layer.named_parameters(recurse=False))
        else:
            self.reload_tied(layer)

    def reload_tied(self, layer: torch.nn.Module) -> None:
        """Bring embeddings that are loaded again into the lm_head that is tied to them, which vLLM passes over."""
        if not self.tied:
            return
        head = torch.nn.Module()
        for suffix in SUFFIXES:
            head.register_parameter(suffix, torch.nn.Parameter(getattr(layer, suffix).data, requires_grad=False))
        repack(head, self.rank_format.mask, self.dtype)
        for name, parameter in head.named_parameters():
            self.tied[name].data.copy_(parameter.data)

    def embedding(self, layer: torch.nn.Module, input_: torch.Tensor) -> torch.Tensor:
        """Token ids `[...]` to `[..., hidden]` in the dtype of the activations."""
        qweight, scales, channel_scales = map(layer.get_parameter, ("qweight_salient", "scales", "channel_scales"))
        return look_up(input_, qweight, scales, channel_scales[0], self.hidden, self.dtype)

    def apply(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Logits; each part reads all activations."""
        return self.multiply(layer, x if self.parts == 1 else torch.cat([x] * self.parts, dim=-1), bias)
