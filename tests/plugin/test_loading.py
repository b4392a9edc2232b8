"""What vLLM's loaders do to a layer: fused stacks, tensor parallelism, and what must not pass unnoticed."""

from collections.abc import Callable
from typing import Any

import pytest
import tiny_checkpoint as tiny
import torch
from assertions import assert_close

from squeeze10_kernels import BadInput, QuantizedLinear, WeightFormat, mixed_linear_reference, pack_linear
from squeeze10_kernels.packing import pack_bits, unpack_bits
from squeeze10_vllm.config import Squeeze10Config

EXACT = 1e-5
"""fp32 throughout; only the order of sums differs."""
HEADS, KV_HEADS, HEAD_DIM, HIDDEN, INTERMEDIATE = 8, 2, 16, 2048, 256
COLUMNS, ELEMENTS = WeightFormat(chunks=4), WeightFormat(mask="elements")
PACKED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
STACKS = {
    "self_attn.qkv_proj": {"q": HEADS * HEAD_DIM, "k": KV_HEADS * HEAD_DIM, "v": KV_HEADS * HEAD_DIM},
    "mlp.gate_up_proj": {0: INTERMEDIATE, 1: INTERMEDIATE},
    "mlp.down_proj": {None: 96},
}
"""Layer to shard id to rows; all read HIDDEN channels."""


@pytest.fixture
def build(vllm_config: Any, set_rank: Callable[[int, int], None]) -> Callable[..., torch.nn.Module]:
    """Builds one of vLLM's layers around our method, in fp32."""
    from vllm.model_executor.layers.linear import (
        MergedColumnParallelLinear,
        QKVParallelLinear,
        RowParallelLinear,
    )

    def build_layer(name: str, weight_format: WeightFormat, rank: int = 0, size: int = 1) -> torch.nn.Module:
        set_rank(rank, size)
        config = Squeeze10Config(weight_format)
        config.packed_modules_mapping = PACKED
        common = {"bias": False, "quant_config": config, "prefix": f"model.layers.0.{name}"}
        layer: torch.nn.Module
        if name.endswith("qkv_proj"):
            layer = QKVParallelLinear(HIDDEN, HEAD_DIM, HEADS, KV_HEADS, **common)
        elif name.endswith("gate_up_proj"):
            layer = MergedColumnParallelLinear(HIDDEN, [INTERMEDIATE] * 2, **common)
        else:
            layer = RowParallelLinear(HIDDEN, 96, **common)
        return layer

    return build_layer


def random_stack(name: str, weight_format: WeightFormat, generator: torch.Generator) -> dict[Any, QuantizedLinear]:
    """Shard id to a random linear; all of them share their channels."""
    columns = tiny.random_columns(weight_format, HIDDEN, generator)
    channel_scales = tiny.random_scales(HIDDEN, generator)
    return {
        shard: tiny.random_layer(weight_format, rows, HIDDEN, generator, columns=columns, channel_scales=channel_scales)
        for shard, rows in STACKS[name].items()
    }


def load(layer: torch.nn.Module, shard: Any, tensors: dict[str, torch.Tensor]) -> None:
    """What AutoWeightsLoader does with the tensors of one linear."""
    for suffix, tensor in tensors.items():
        parameter = getattr(layer, suffix)
        extra = () if shard is None else (shard,)
        parameter.weight_loader(parameter, tensor, *extra)


def load_stack(
    layer: torch.nn.Module, stack: dict[Any, QuantizedLinear], weight_format: WeightFormat
) -> torch.nn.Module:
    """Load and process a whole layer."""
    for shard, linear in stack.items():
        load(layer, shard, pack_linear(linear, weight_format))
    layer.quant_method.process_weights_after_loading(layer)
    return layer


def apply(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(layer.quant_method.apply(layer, x))


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("weight_format", [COLUMNS, ELEMENTS], ids=["columns", "elements"])
def test_stack_equals_its_linears(
    name: str,
    weight_format: WeightFormat,
    build: Callable[..., torch.nn.Module],
    generator: torch.Generator,
) -> None:
    stack = random_stack(name, weight_format, generator)
    x = torch.randn(5, HIDDEN, generator=generator)

    layer = load_stack(build(name, weight_format), stack, weight_format)

    expected = torch.cat([mixed_linear_reference(x, linear) for linear in stack.values()], dim=1)
    assert_close(apply(layer, x), expected, EXACT)


@pytest.mark.parametrize("size", [2, 4])
def test_row_parallel_ranks_sum_to_the_layer(
    size: int,
    build: Callable[..., torch.nn.Module],
    generator: torch.Generator,
) -> None:
    """A slice of whole chunks is a layer; at size 4 of 4 chunks its counts follow the whole format, not C = 1."""
    stack = random_stack("mlp.down_proj", COLUMNS, generator)
    x = torch.randn(5, HIDDEN, generator=generator)

    parts = [
        apply(load_stack(build("mlp.down_proj", COLUMNS, rank, size), stack, COLUMNS), part)
        for rank, part in enumerate(x.chunk(size, dim=1))
    ]

    assert_close(torch.stack(parts).sum(0), mixed_linear_reference(x, stack[None]), EXACT)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", ["self_attn.qkv_proj", "mlp.gate_up_proj"])
def test_column_parallel_ranks_hold_their_rows(
    name: str,
    size: int,
    build: Callable[..., torch.nn.Module],
    generator: torch.Generator,
) -> None:
    """Rank r holds part r of each linear; with 2 k and v heads on 4 ranks, pairs of ranks hold the same head."""
    stack = random_stack(name, COLUMNS, generator)
    x = torch.randn(5, HIDDEN, generator=generator)
    whole = {shard: mixed_linear_reference(x, linear) for shard, linear in stack.items()}

    for rank in range(size):
        layer = load_stack(build(name, COLUMNS, rank, size), stack, COLUMNS)
        rows = []
        for shard, y in whole.items():
            parts = min(size, KV_HEADS) if shard in ("k", "v") else size
            rows.append(y.chunk(parts, dim=1)[rank * parts // size])
        assert_close(apply(layer, x), torch.cat(rows, dim=1), EXACT)


def test_tensor_parallel_size_that_splits_a_chunk_is_refused(build: Callable[..., torch.nn.Module]) -> None:
    with pytest.raises(BadInput, match=r"layers\.0\.mlp\.down_proj.*size 8.*4 chunks.*serves with 1, 2, 4\."):
        build("mlp.down_proj", COLUMNS, 0, 8)


def test_tensor_parallel_elements_is_refused(build: Callable[..., torch.nn.Module]) -> None:
    with pytest.raises(BadInput, match=r"mask elements.*size 1 only; got 2"):
        build("self_attn.qkv_proj", ELEMENTS, 0, 2)


@pytest.mark.parametrize("suffix", ["qweight", "qweight_salient", "scales", "channel_scales", "salient_mask"])
@pytest.mark.parametrize("weight_format", [COLUMNS, ELEMENTS], ids=["columns", "elements"])
def test_missing_tensor_is_refused(
    suffix: str,
    weight_format: WeightFormat,
    build: Callable[..., torch.nn.Module],
    generator: torch.Generator,
) -> None:
    """vLLM itself would serve whatever bytes the parameter holds."""
    stack = random_stack("self_attn.qkv_proj", weight_format, generator)
    layer = build("self_attn.qkv_proj", weight_format)
    for shard, linear in stack.items():
        tensors = pack_linear(linear, weight_format)
        if shard == "k":
            del tensors[suffix]
        load(layer, shard, tensors)

    with pytest.raises(BadInput, match=rf"lacks the tensor model\.layers\.0\.self_attn\.k_proj\.{suffix},"):
        layer.quant_method.process_weights_after_loading(layer)


@pytest.mark.parametrize("suffix", ["channel_scales", "salient_mask"])
def test_unequal_copies_are_refused(
    suffix: str, build: Callable[..., torch.nn.Module], generator: torch.Generator
) -> None:
    stack = random_stack("mlp.gate_up_proj", COLUMNS, generator)
    other = random_stack("mlp.gate_up_proj", COLUMNS, generator)
    layer = build("mlp.gate_up_proj", COLUMNS)
    load(layer, 0, pack_linear(stack[0], COLUMNS))
    up = pack_linear(stack[1], COLUMNS)
    load(layer, 1, {**up, suffix: pack_linear(other[1], COLUMNS)[suffix]})

    with pytest.raises(BadInput, match=rf"up_proj\.{suffix} must equal model\.layers\.0\.mlp\.gate_proj"):
        layer.quant_method.process_weights_after_loading(layer)


@pytest.mark.parametrize(
    ("suffix", "spoil"),
    [
        pytest.param("scales", lambda t: t.fill_(float("nan")), id="nan_scale"),
        pytest.param("channel_scales", lambda t: t.fill_(0), id="zero_channel_scale"),
        pytest.param("channel_scales", lambda t: t.fill_(5), id="large_channel_scale"),
        pytest.param("salient_mask", lambda t: t.fill_(255), id="full_mask"),
    ],
)
@pytest.mark.parametrize("weight_format", [COLUMNS, ELEMENTS], ids=["columns", "elements"])
def test_invalid_values_are_refused(
    suffix: str,
    spoil: Callable[[torch.Tensor], torch.Tensor],
    weight_format: WeightFormat,
    build: Callable[..., torch.nn.Module],
    generator: torch.Generator,
) -> None:
    stack = random_stack("mlp.down_proj", weight_format, generator)
    tensors = pack_linear(stack[None], weight_format)
    spoil(tensors[suffix])
    layer = build("mlp.down_proj", weight_format)
    load(layer, None, tensors)

    with pytest.raises(BadInput, match=rf"model\.layers\.0\.mlp\.down_proj\.{suffix} must"):
        layer.quant_method.process_weights_after_loading(layer)


@pytest.mark.parametrize("size", [1, 2])
def test_unbalanced_chunks_are_refused(
    size: int, build: Callable[..., torch.nn.Module], generator: torch.Generator
) -> None:
    """As many salient channels as there should be, but one chunk has another's: a slice would misread the codes."""
    stack = random_stack("mlp.down_proj", COLUMNS, generator)
    tensors = pack_linear(stack[None], COLUMNS)
    salient = unpack_bits(tensors["salient_mask"]).view(4, -1)
    first, second = salient[0].nonzero()[0], (1 - salient[1]).nonzero()[0]
    salient[0, first], salient[1, second] = 0, 1
    layer = build("mlp.down_proj", COLUMNS, 0, size)
    load(layer, None, {**tensors, "salient_mask": pack_bits(salient.flatten())})

    with pytest.raises(BadInput, match=r"down_proj\.salient_mask must select 104 channels in each chunk.*\[103, 105"):
        layer.quant_method.process_weights_after_loading(layer)


@pytest.mark.parametrize("size", [1, 2])
def test_wrong_shape_names_the_tensor(
    size: int, build: Callable[..., torch.nn.Module], generator: torch.Generator
) -> None:
    """Twice the rows would load as a slice if only the slice were looked at."""
    linear = tiny.random_layer(COLUMNS, 2 * INTERMEDIATE, HIDDEN, generator)
    layer = build("mlp.gate_up_proj", COLUMNS, 0, size)
    with pytest.raises(BadInput, match=r"mlp\.up_proj\.qweight must be \[256, .*the file has \[512,"):
        load(layer, 1, pack_linear(linear, COLUMNS))


def test_wrong_dtype_names_the_tensor(build: Callable[..., torch.nn.Module]) -> None:
    layer = build("mlp.down_proj", COLUMNS)
    with pytest.raises(BadInput, match=r"down_proj\.scales must be \[96, 3\] float16 .* float32"):
        layer.scales.weight_loader(layer.scales, torch.zeros(96, 3))


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("weight_format", [COLUMNS, ELEMENTS], ids=["columns", "elements"])
def test_dummy_load_gives_a_valid_layer(
    name: str, weight_format: WeightFormat, vllm_config: Any, build: Callable[..., torch.nn.Module]
) -> None:
    """`--load-format dummy` never calls a loader and leaves integers as they lie in memory."""
    vllm_config.load_config.load_format = "dummy"
    layer = build(name, weight_format)
    for parameter in layer.parameters():
        parameter.data.view(torch.uint8).fill_(255)

    layer.quant_method.process_weights_after_loading(layer)

    assert apply(layer, torch.ones(2, HIDDEN)).isfinite().all()


def test_processing_twice_changes_nothing(build: Callable[..., torch.nn.Module], generator: torch.Generator) -> None:
    stack = random_stack("mlp.down_proj", COLUMNS, generator)
    layer = load_stack(build("mlp.down_proj", COLUMNS), stack, COLUMNS)
    before = {name: parameter.clone() for name, parameter in layer.named_parameters()}

    layer.quant_method.process_weights_after_loading(layer)

    assert before.keys() == dict(layer.named_parameters()).keys()
    assert all(torch.equal(before[name], parameter) for name, parameter in layer.named_parameters())


def test_everything_the_op_reads_is_a_plain_parameter(
    build: Callable[..., torch.nn.Module], generator: torch.Generator
) -> None:
    """vLLM's sleep mode, offloading and reloading see parameters only; LoRA asks for `qweight`."""
    stack = random_stack("mlp.down_proj", COLUMNS, generator)
    layer = load_stack(build("mlp.down_proj", COLUMNS), stack, COLUMNS)
    names = {"qweight", "qweight_salient", "scales", "channel_scales", "channels"}
    assert {name for name, _ in layer.named_parameters()} == names
    assert all(type(parameter) is torch.nn.Parameter for parameter in layer.parameters())
    assert layer.channel_scales.shape == (HIDDEN,)
