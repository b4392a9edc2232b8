"""A checkpoint that is not whole, not itself or not safe is refused before any tensor is used."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from shards import sharded, write_index

from squeeze10_kernels import BadInput, open_checkpoint
from squeeze10_kernels.checkpoint import INDEX_NAME, SINGLE_NAME, open_directory

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden_v1"
Q_PROJ = "model.layers.0.self_attn.q_proj"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(params=["golden_v1_columns", "golden_v1_elements"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(GOLDEN / request.param, tmp_path / "checkpoint"))


def edit_tensors(checkpoint: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(checkpoint / SINGLE_NAME)
    change(tensors)
    save_file(tensors, checkpoint / SINGLE_NAME)


def edit_config(checkpoint: Path, **changes: Any) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def assert_refused(checkpoint: Path, sentence: str) -> None:
    with pytest.raises(BadInput, match=re.escape(sentence)) as refusal:
        open_checkpoint(checkpoint)
    assert "\n" not in str(refusal.value), "one sentence for the user"
    assert str(checkpoint) in str(refusal.value), "the user must learn which directory is meant"


def test_whole_checkpoint_opens(checkpoint: Path) -> None:
    opened = open_checkpoint(checkpoint)

    assert opened.linears[Q_PROJ] == (64, 64)
    assert opened.layer(Q_PROJ).codes.shape == (64, 64)


def test_shards_read_like_one_file(checkpoint: Path) -> None:
    whole = open_checkpoint(checkpoint).layer(Q_PROJ)
    sharded(checkpoint)

    assert torch.equal(open_checkpoint(checkpoint).layer(Q_PROJ).codes, whole.codes)


@pytest.mark.parametrize("suffix", ["qweight", "qweight_salient", "scales", "channel_scales", "salient_mask"])
def test_missing_tensor(checkpoint: Path, suffix: str) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors.pop(f"{Q_PROJ}.{suffix}"))

    assert_refused(checkpoint, f"the tensor {Q_PROJ}.{suffix} is missing")


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.input_layernorm.weight"])
def test_missing_dense_tensor(checkpoint: Path, name: str) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors.pop(name))

    assert_refused(checkpoint, f"the tensor {name} is missing")


def test_missing_bias(tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(GOLDEN / "golden_v1_columns", tmp_path / "checkpoint"))
    edit_tensors(checkpoint, lambda tensors: tensors.pop(f"{Q_PROJ}.bias"))

    assert_refused(checkpoint, f"the tensor {Q_PROJ}.bias is missing")


def test_surplus_tensor(checkpoint: Path) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors.update({f"{Q_PROJ}.weight": torch.zeros(1)}))

    assert_refused(checkpoint, f"the tensor {Q_PROJ}.weight does not belong to the model")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_hidden_layers": 2}, "the tensor model.layers.1.self_attn.q_proj.qweight is missing"),
        ({"hidden_size": 128}, "by config.json; the file has"),
        ({"num_key_value_heads": 4}, "model.layers.0.self_attn.k_proj.qweight must be"),
        ({"mlp_bias": True}, "mlp.gate_proj.bias is missing"),
        ({"vocab_size": 64}, "model.embed_tokens.weight must be [64, 64]"),
        ({"hidden_size": "64"}, "config.json: hidden_size must be a positive integer; got '64'"),
        ({"num_attention_heads": 0}, "config.json: num_attention_heads must be a positive integer; got 0"),
        ({"intermediate_size": None}, "config.json: intermediate_size must be a positive integer; got None"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be at most 10000"),
        ({"architectures": ["MixtralForCausalLM"]}, "architectures must be one of LlamaForCausalLM"),
        ({"architectures": None}, "architectures must be one of LlamaForCausalLM"),
        ({"quantization_config": None}, "is not quantized"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_config_of_another_model(checkpoint: Path, changes: dict[str, Any], sentence: str) -> None:
    edit_config(checkpoint, **changes)

    assert_refused(checkpoint, sentence)


def test_other_ratio_than_the_files(checkpoint: Path) -> None:
    quantization = json.loads((checkpoint / "config.json").read_text())["quantization_config"]
    edit_config(checkpoint, quantization_config=quantization | {"salient_ratio": 0.6})

    assert_refused(checkpoint, f"{Q_PROJ}.qweight must be")


def test_config_that_is_no_json(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text("{")

    assert_refused(checkpoint, "must hold JSON")


def test_config_that_is_no_object(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text("[]")

    assert_refused(checkpoint, "must hold a JSON object; got list")


def test_missing_config(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()

    assert_refused(checkpoint, "has no config.json")


def test_missing_directory(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nowhere", "is not a directory")


@pytest.mark.parametrize("kept", [0, 4, 200, -1], ids=["empty", "in_length", "in_header", "last_byte"])
def test_truncated_file(checkpoint: Path, kept: int) -> None:
    content = (checkpoint / SINGLE_NAME).read_bytes()
    (checkpoint / SINGLE_NAME).write_bytes(content[:kept])

    assert_refused(checkpoint, f"{SINGLE_NAME} is damaged or cut short")


def test_tensor_in_two_shards(checkpoint: Path) -> None:
    shards = sorted(set(sharded(checkpoint).values()))
    first, second = (load_file(checkpoint / shard) for shard in shards)
    name = next(iter(first))
    save_file(second | {name: first[name]}, checkpoint / shards[1])

    assert_refused(checkpoint, f"both hold {name}; remove the stale file")


def test_missing_shard(checkpoint: Path) -> None:
    shard = max(sharded(checkpoint).values())
    (checkpoint / shard).unlink()

    assert_refused(checkpoint, f"names '{shard}', which is no file of")


@pytest.mark.parametrize("escape", ["../other.safetensors", "sub/other.safetensors", "..", "absolute"])
def test_index_that_leaves_the_directory(checkpoint: Path, escape: str) -> None:
    for place in (checkpoint.parent, checkpoint / "sub"):
        place.mkdir(exist_ok=True)
        shutil.copy(checkpoint / SINGLE_NAME, place / "other.safetensors")
    name = str(checkpoint.parent / "other.safetensors") if escape == "absolute" else escape
    write_index(checkpoint, {f"{Q_PROJ}.qweight": name})

    assert_refused(checkpoint, f"names {name!r}, which is no file of")


@pytest.mark.parametrize("weight_map", [None, [], {"a": 1}], ids=["none", "list", "number"])
def test_index_without_file_names(checkpoint: Path, weight_map: object) -> None:
    write_index(checkpoint, weight_map)

    assert_refused(checkpoint, "must map tensor names to file names under weight_map")


def test_pickled_weights_are_not_read(checkpoint: Path) -> None:
    (checkpoint / SINGLE_NAME).rename(checkpoint / "pytorch_model.bin")

    assert_refused(checkpoint, "(pytorch_model.bin), which are not read because they can run code")


def test_no_weights_at_all(checkpoint: Path) -> None:
    (checkpoint / SINGLE_NAME).unlink()

    assert_refused(checkpoint, f"has neither {INDEX_NAME} nor {SINGLE_NAME}")


@pytest.mark.parametrize("linear", ["self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj"])
def test_unequal_channel_scales_of_one_input(checkpoint: Path, linear: str) -> None:
    name = f"model.layers.0.{linear}.channel_scales"
    edit_tensors(checkpoint, lambda tensors: tensors[name][5].mul_(1.01))

    with pytest.raises(BadInput, match=f"{re.escape(name)} must equal that of"):
        open_checkpoint(checkpoint)


def test_unequal_masks_of_one_input(tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(GOLDEN / "golden_v1_columns", tmp_path / "checkpoint"))
    name = "model.layers.0.mlp.up_proj.salient_mask"
    edit_tensors(checkpoint, lambda tensors: tensors.update({name: tensors[name].flip(0)}))

    with pytest.raises(BadInput, match=f"{re.escape(name)} must equal that of"):
        open_checkpoint(checkpoint)


def test_damaged_scales_are_named_when_the_layer_is_read(checkpoint: Path) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors[f"{Q_PROJ}.scales"][0, 0].fill_(float("nan")))

    with pytest.raises(BadInput, match=rf"{re.escape(f'{checkpoint}: {Q_PROJ}.scales')} must be finite"):
        open_checkpoint(checkpoint).layer(Q_PROJ)


def test_tensor_of_an_unknown_name(checkpoint: Path) -> None:
    with pytest.raises(BadInput, match="lacks the tensor nothing"):
        open_directory(checkpoint).tensor("nothing")
