"""A quantized table inside vLLM, by itself; engines with such tables are in test_engine.py and test_features.py."""

from collections.abc import Callable
from typing import Any

import pytest
import tiny_checkpoint as tiny
import torch

from squeeze10_kernels import WeightFormat, dequantize, pack_linear
from squeeze10_kernels.format import TABLE_FORMAT
from squeeze10_vllm.config import Squeeze10Config

ROWS, HIDDEN = 64, 128


@pytest.fixture(params=[8, 4])
def table(
    vllm_config: Any,
    set_rank: Callable[[int, int], None],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> torch.nn.Module:
    """Empty embeddings of the only rank, 8- and 4-bit."""
    set_rank(0, 1)
    from vllm.model_executor.layers import vocab_parallel_embedding as vllm_module

    monkeypatch.setattr(vllm_module, "get_tensor_model_parallel_rank", lambda: 0)
    monkeypatch.setattr(vllm_module, "get_tensor_model_parallel_world_size", lambda: 1)
    config = Squeeze10Config(WeightFormat(head_bits=request.param))
    return vllm_module.VocabParallelEmbedding(ROWS, HIDDEN, params_dtype=torch.float32, quant_config=config)


def load(table: torch.nn.Module, generator: torch.Generator) -> torch.Tensor:
    """Give it random contents, as vLLM does; what they mean."""
    layer = tiny.random_layer(TABLE_FORMAT, ROWS, table.quant_method.parts * HIDDEN, generator)
    for suffix, tensor in pack_linear(layer, TABLE_FORMAT).items():
        parameter = table.get_parameter(suffix)
        parameter.weight_loader(parameter, tensor)
    table.quant_method.process_weights_after_loading(table)
    return dequantize(layer).view(ROWS, -1, HIDDEN).sum(1)


def fresh(parameter: torch.nn.Parameter) -> torch.nn.Parameter:
    """Another of the same class and attributes, as vLLM makes it."""
    other = parameter.data.clone()
    other.__class__, other.__dict__ = parameter.__class__, parameter.__dict__.copy()
    return other  # type: ignore[return-value]


def test_a_table_is_loaded_again_by_every_vllm(table: torch.nn.Module, generator: torch.Generator) -> None:
    """0.26 takes parameters and buffers away before it registers those that it saw when the model was built.

    Any other attribute of such a name ends its engine: KeyError, attribute 'weight' already exists.
    """
    created = {name: fresh(parameter) for name, parameter in table.named_parameters(remove_duplicate=False)}
    load(table, generator)

    for name in [*dict(table.named_parameters()), *dict(table.named_buffers())]:
        delattr(table, name)
    for name, parameter in created.items():
        table.register_parameter(name, parameter)
    expected = load(table, generator)

    ids = torch.tensor([[0, 5], [63, 1]])
    torch.testing.assert_close(table.quant_method.embedding(table, ids), expected[ids])


def test_a_loaded_table_has_no_weight_to_read(table: torch.nn.Module, generator: torch.Generator) -> None:
    """LoRA asks it for a dtype and a device; whoever reads values is to see that they are none, or compares them."""
    load(table, generator)

    assert table.weight.shape == (1, HIDDEN)
    assert table.weight.isnan().all()
    assert table.weight.dtype == torch.float32
