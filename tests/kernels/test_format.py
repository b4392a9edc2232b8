"""Format version 1: counts, shapes, bits and refusals, and FORMAT.md says the same as the code."""

import json
import re
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

from squeeze10_kernels import BadInput, WeightFormat, format_from_config
from squeeze10_kernels.format import CONFIG_KEYS
from squeeze10_kernels.llama import LlamaShape, shape_from_config

FORMAT_MD = Path(__file__).resolve().parents[2] / "kernels" / "FORMAT.md"

# hidden, intermediate, heads, kv_heads, head_dim of real models
MODELS = {
    "smollm2-135m": (576, 1536, 9, 3, 64),
    "llama-160m": (768, 3072, 12, 12, 64),
    "smollm2-360m": (960, 2560, 15, 5, 64),
    "smollm2-1.7b": (2048, 8192, 32, 32, 64),
    "tinyllama-1.1b": (2048, 5632, 32, 4, 64),
    "llama3.2-1b": (2048, 8192, 32, 8, 64),
    "llama3.2-3b": (3072, 8192, 24, 8, 128),
    "llama2-7b": (4096, 11008, 32, 32, 128),
    "llama2-13b": (5120, 13824, 40, 40, 128),
    "llama-30b": (6656, 17920, 52, 52, 128),
    "llama2-70b": (8192, 28672, 64, 8, 128),
    "llama3-8b": (4096, 14336, 32, 8, 128),
    "llama3.1-405b": (16384, 53248, 128, 8, 128),
    "mistral-nemo-12b": (5120, 14336, 32, 8, 128),
    "open-llama-3b": (3200, 8640, 32, 32, 100),
}
MIN_CHUNK = 512
"""Channels of the smallest chunk that a writer makes; FORMAT.md section 6."""
CONFIG = {
    **{"quant_method": "squeeze10", "format_version": 1},
    **{"mask": "columns", "salient_ratio": 0.2, "chunks": 8},
}


def llama(name: str, num_layers: int = 2) -> LlamaShape:
    hidden, intermediate, heads, kv_heads, head_dim = MODELS[name]
    return shape_from_config(
        {
            "architectures": ["LlamaForCausalLM"],
            **{"num_hidden_layers": num_layers, "hidden_size": hidden, "intermediate_size": intermediate},
            **{"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim},
            "vocab_size": 32000,
        }
    )


@pytest.mark.parametrize(
    ("name", "chunks", "per_chunk"),
    [
        pytest.param("llama2-7b", 8, {4096: 104, 11008: 272}, id="llama2-7b"),
        pytest.param("smollm2-135m", 1, {576: 112, 1536: 304}, id="smollm2-135m"),
    ],
)
def test_counts_of_the_two_reference_models(name: str, chunks: int, per_chunk: dict[int, int]) -> None:
    weight_format = WeightFormat(chunks=chunks)

    assert llama(name).chunks() == chunks
    assert {K: weight_format.salient_channels(K) // chunks for K in per_chunk} == per_chunk


@pytest.mark.parametrize("name", MODELS)
def test_achieved_ratio_is_near_the_one_asked_for(name: str) -> None:
    shape = llama(name)
    weight_format = WeightFormat(chunks=shape.chunks())

    for K in shape.input_widths():
        low, high = (0.195, 0.205) if K >= 1024 else (0.19, 0.21)
        assert low <= weight_format.salient_channels(K) / K <= high, f"K = {K}, {weight_format.chunks} chunks"


@pytest.mark.parametrize("name", MODELS)
def test_chunks_are_the_largest_allowed(name: str) -> None:
    hidden, intermediate, heads, _, head_dim = MODELS[name]
    widths = (hidden, intermediate, heads * head_dim)

    allowed = [
        count
        for count in (1, 2, 4, 8)
        if count == 1 or (heads % count == 0 and all(K % (8 * count) == 0 and K / count >= MIN_CHUNK for K in widths))
    ]

    assert llama(name).chunks() == max(allowed)
    assert f"at least {MIN_CHUNK} channels" in " ".join(FORMAT_MD.read_text().split())


@pytest.mark.parametrize(
    ("weight_format", "K", "salient"),
    [
        pytest.param(WeightFormat("columns", 0, 8), 4096, 0, id="none"),
        pytest.param(WeightFormat("columns", 1, 8), 4096, 4096, id="all"),
        pytest.param(WeightFormat("columns", 1, 1), 1000, 1000, id="all_of_a_ragged_width"),
        pytest.param(WeightFormat("columns", 0.999, 1), 1000, 1000, id="nearly_all"),
        pytest.param(WeightFormat("columns", 0.5, 1), 40, 24, id="half_goes_up"),
        pytest.param(WeightFormat("columns", 0.58, 1), 200, 120, id="exact_half_of_a_decimal_goes_up"),
        pytest.param(WeightFormat("columns", 0.2, 2), 80, 16, id="eights_with_several_chunks"),
        pytest.param(WeightFormat("columns", 0.2, 1), 80, 16, id="eights_with_one_chunk"),
    ],
)
def test_salient_channels_round_as_format_md_says(weight_format: WeightFormat, K: int, salient: int) -> None:
    assert weight_format.salient_channels(K) == salient


def test_elements_count_is_the_nearest_multiple_of_eight() -> None:
    weight_format = WeightFormat("elements", 0.2)

    assert weight_format.salient_weights(3, 40) == 24
    assert weight_format.salient_weights(1, 8) == 0
    assert weight_format.salient_weights(5, 8) == 8
    assert WeightFormat("elements", 1).salient_weights(3, 40) == 120


def test_sizes_of_llama2_7b_stay_below_the_promised_bits() -> None:
    shape, weight_format = llama("llama2-7b", num_layers=32), WeightFormat(chunks=8)
    header, tensor_bytes, weights = {}, 0, 0
    for index in range(shape.num_layers):
        for linear, (N, K) in shape.linears().items():
            weights += N * K
            for suffix, (size, dtype) in weight_format.tensor_specs(N, K).items():
                begin, tensor_bytes = tensor_bytes, tensor_bytes + prod(size) * dtype.itemsize
                header[f"model.layers.{index}.{linear}.{suffix}"] = {
                    "dtype": "F16" if dtype == torch.float16 else "U8",
                    "shape": size,
                    "data_offsets": (begin, tensor_bytes),
                }

    bits = 8 * (tensor_bytes + len(json.dumps(header))) / weights

    assert weights == 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert 1.6 < bits <= 1.63


@pytest.mark.parametrize(
    ("N", "K", "chunks", "bits"),
    [
        pytest.param(4096, 4096, 8, 1.625244, id="llama2_7b_q_proj"),
        pytest.param(576, 576, 1, 1.696181, id="smollm2_q_proj"),
    ],
)
def test_worked_examples_of_format_md(N: int, K: int, chunks: int, bits: float) -> None:
    specs = WeightFormat(chunks=chunks).tensor_specs(N, K).values()

    assert 8 * sum(prod(shape) * dtype.itemsize for shape, dtype in specs) / (N * K) == pytest.approx(bits, abs=5e-7)
    assert f"= {bits} |" in FORMAT_MD.read_text()


def rows_of_format_md() -> list[list[str]]:
    """The tensor table of section 3: suffix, shape under columns, shape under elements, dtype."""
    lines = re.findall(r"^\| `\w+` \| `\[.*$", FORMAT_MD.read_text(), flags=re.MULTILINE)
    return [[cell.strip(" `") for cell in line.split("|")[1:5]] for line in lines]


def evaluate(shape: str, sizes: dict[str, int]) -> tuple[int, ...]:
    """`[N, (K - S) / 8]` with numbers in place of the letters; divisions must be exact."""
    dimensions = eval(shape, {"__builtins__": {}}, sizes)  # noqa: S307 (our own document)
    assert all(float(size).is_integer() for size in dimensions), f"{shape} does not divide for {sizes}"
    return tuple(int(size) for size in dimensions)


@pytest.mark.parametrize(
    ("weight_format", "N", "K"),
    [
        pytest.param(WeightFormat("columns", 0.2, 8), 4096, 11008, id="columns"),
        pytest.param(WeightFormat("columns", 0.2, 1), 192, 576, id="columns_one_chunk"),
        pytest.param(WeightFormat("columns", 1, 2), 24, 48, id="columns_all_salient"),
        pytest.param(WeightFormat("elements", 0.2), 192, 576, id="elements"),
        pytest.param(WeightFormat("elements", 0), 3, 40, id="elements_none_salient"),
    ],
)
def test_format_md_and_code_list_the_same_tensors(weight_format: WeightFormat, N: int, K: int) -> None:
    sizes = {"N": N, "K": K, "S": weight_format.salient_channels(K), "E": weight_format.salient_weights(N, K)}

    documented = {
        suffix: (evaluate(columns if weight_format.mask == "columns" else elements, sizes), dtype)
        for suffix, columns, elements, dtype in rows_of_format_md()
    }

    assert documented == {
        suffix: (shape, str(dtype).removeprefix("torch."))
        for suffix, (shape, dtype) in weight_format.tensor_specs(N, K).items()
    }


def test_format_md_and_code_list_the_same_config_keys() -> None:
    section = FORMAT_MD.read_text().split("## 2.")[1].split("## 3.")[0]

    assert tuple(re.findall(r"^\| `(\w+)`", section, flags=re.MULTILINE)) == CONFIG_KEYS


@pytest.mark.parametrize(
    "weight_format", [WeightFormat("columns", 0.25, 4, 8), WeightFormat("elements", 0.1, head_bits=4)]
)
def test_config_round_trip_through_json(weight_format: WeightFormat) -> None:
    assert format_from_config(json.loads(json.dumps(weight_format.to_config()))) == weight_format


def test_head_bits_of_16_may_be_written() -> None:
    assert format_from_config(CONFIG | {"head_bits": 16}) == WeightFormat(chunks=8)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"quant_method": "gptq"}, "quant_method must be 'squeeze10'; got 'gptq'"),
        ({"format_version": 2}, "reads format_version 1; the checkpoint has 2. Install"),
        ({"format_version": "1"}, "reads format_version 1; the checkpoint has '1'"),
        ({"format_version": True}, "reads format_version 1; the checkpoint has True"),
        ({"format_version": None}, "reads format_version 1; the checkpoint has None"),
        ({"group_size": 128}, "unknown key 'group_size'; known: quant_method"),
        ({"head_bits": 2}, "head_bits must be 16 (embeddings and lm_head as they are), 8 or 4; got 2"),
        ({"mask": "rows"}, "mask must be one of columns, elements; got 'rows'"),
        ({"mask": ["columns"]}, "mask must be one of columns, elements"),
        ({"salient_ratio": 1.5}, "salient_ratio must be a number from 0 to 1; got 1.5"),
        ({"salient_ratio": "0.2"}, "salient_ratio must be a number from 0 to 1; got '0.2'"),
        ({"salient_ratio": True}, "salient_ratio must be a number from 0 to 1; got True"),
        ({"salient_ratio": float("nan")}, "salient_ratio must be a number from 0 to 1; got nan"),
        ({"chunks": 3}, "chunks must be 1, 2, 4 or 8; got 3"),
        ({"chunks": 8.0}, "chunks must be 1, 2, 4 or 8; got 8.0"),
        ({"mask": "elements"}, "mask elements has no chunks, so chunks must be 1; got 8"),
    ],
    ids=lambda value: next(iter(value.items())).__repr__() if isinstance(value, dict) else "",
)
def test_config_is_refused_with_a_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=re.escape(sentence)):
        format_from_config(CONFIG | change)


@pytest.mark.parametrize("key", ["quant_method", "format_version", "mask", "salient_ratio", "chunks"])
def test_missing_key_is_refused(key: str) -> None:
    with pytest.raises(BadInput, match=key):
        format_from_config({name: value for name, value in CONFIG.items() if name != key})


@pytest.mark.parametrize(("N", "K"), [(64, 100), (64, 72), (64, 0), (0, 64), (-1, 64)])
def test_impossible_shape_is_refused(N: int, K: int) -> None:
    with pytest.raises(BadInput, match=re.escape(f"got [{N}, {K}]")):
        WeightFormat(chunks=8).tensor_specs(N, K)
