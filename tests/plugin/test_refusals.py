"""A checkpoint that cannot be served is refused while vLLM builds its config, with one sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoint as tiny
import torch
from safetensors.torch import load_file, save_file

from squeeze10_kernels import WeightFormat


@pytest.fixture
def checkpoint(tmp_path: Path) -> Any:
    return tiny.build_checkpoint(tmp_path / "model", WeightFormat())


@pytest.fixture
def refusal() -> Callable[..., str]:
    """The message with which vLLM refuses a model."""
    from vllm.engine.arg_utils import EngineArgs

    def message(path: Path, **arguments: Any) -> str:
        with pytest.raises(ValueError) as caught:  # noqa: PT011  # vLLM may wrap BadInput
            EngineArgs(model=str(path), **arguments).create_engine_config()
        return str(caught.value)

    return message


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


@pytest.mark.parametrize("arguments", [{}, {"quantization": "squeeze10"}], ids=["by_config", "by_flag"])
def test_sound_checkpoint_is_accepted(checkpoint: Any, arguments: dict[str, Any]) -> None:
    from vllm.engine.arg_utils import EngineArgs

    config = EngineArgs(model=str(checkpoint.path), **arguments).create_engine_config()
    assert config.quant_config.weight_format == WeightFormat()


def test_missing_tensor(checkpoint: Any, refusal: Callable[..., str]) -> None:
    name = "model.layers.1.mlp.up_proj.scales"
    rewrite(checkpoint.path, lambda tensors: tensors.pop(name))
    message = refusal(checkpoint.path)
    assert f"the tensor {name} is missing" in message
    assert str(checkpoint.path) in message


def test_truncated_file(checkpoint: Any, refusal: Callable[..., str]) -> None:
    file = checkpoint.path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    message = refusal(checkpoint.path)
    assert f"{file} is damaged or cut short" in message


def test_config_of_another_model(checkpoint: Any, refusal: Callable[..., str]) -> None:
    path = checkpoint.path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "intermediate_size": 512}))
    message = refusal(checkpoint.path)
    assert "model.layers.0.mlp.gate_proj.qweight must be [512, " in message


def test_pickled_weights(checkpoint: Any, refusal: Callable[..., str]) -> None:
    (checkpoint.path / "model.safetensors").rename(checkpoint.path / "pytorch_model.bin")
    assert "holds its weights as pickles (pytorch_model.bin)" in refusal(checkpoint.path)


def test_unquantized_model(checkpoint: Any, refusal: Callable[..., str]) -> None:
    message = refusal(checkpoint.twin, quantization="squeeze10")
    assert "squeeze10 quantize MODEL OUT" in message
    assert "no quantization_config" in message


def test_other_format_version(checkpoint: Any, refusal: Callable[..., str]) -> None:
    path = checkpoint.path / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["format_version"] = 2
    path.write_text(json.dumps(config))
    assert "format_version 1" in refusal(checkpoint.path)


def test_other_architecture(checkpoint: Any, refusal: Callable[..., str]) -> None:
    path = checkpoint.path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": ["MistralForCausalLM"]}))
    message = refusal(checkpoint.path)
    assert "squeeze10 serves LlamaForCausalLM" in message
    assert "MistralForCausalLM" in message
