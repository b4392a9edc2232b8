"""Squeeze10Config: which layers are ours, and what is refused before any weight is read."""

import pickle  # noqa: TID251  # vLLM pickles its config into every worker
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from squeeze10_kernels import BadInput, WeightFormat
from squeeze10_vllm.config import Squeeze10Config

DEMO = Path(__file__).resolve().parents[2] / "deploy" / "models" / "smollm2-135m-sq10"
PACKED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


@pytest.fixture
def config() -> Squeeze10Config:
    config = Squeeze10Config.from_config(WeightFormat(chunks=4).to_config())
    config.packed_modules_mapping = PACKED
    return config


def test_config_survives_pickling(config: Squeeze10Config) -> None:
    copy = pickle.loads(pickle.dumps(config))  # noqa: S301
    assert copy.weight_format == WeightFormat(chunks=4)
    assert copy.packed_modules_mapping == PACKED


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        pytest.param({"format_version": 2}, "format_version 1", id="future_version"),
        pytest.param({"mask": "rows"}, "mask must be one of", id="unknown_mask"),
        pytest.param({"head_bits": 2}, "head_bits must be 16", id="head_bits"),
        pytest.param({"group_size": 128}, "unknown key 'group_size'", id="unknown_key"),
    ],
)
def test_unknown_settings_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        Squeeze10Config.from_config({**WeightFormat().to_config(), **changes})


def test_version_outside_the_range_warns_when_a_checkpoint_is_opened(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("squeeze10_vllm.versions.version", lambda name: "0.40.0")
    monkeypatch.setattr("logging.Logger.propagate", True, raising=False)
    monkeypatch.setattr("squeeze10_vllm.config.logger.parent.propagate", True)
    Squeeze10Config.from_config(WeightFormat().to_config())
    assert "0.26 to 0.33" in caplog.text
    assert "0.40.0" in caplog.text


@pytest.mark.parametrize(
    ("prefix", "names"),
    [
        ("model.layers.3.self_attn.qkv_proj", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        ("model.layers.3.mlp.gate_up_proj", ["mlp.gate_proj", "mlp.up_proj"]),
        ("model.layers.3.self_attn.o_proj", ["self_attn.o_proj"]),
        ("model.layers.3.mlp.down_proj", ["mlp.down_proj"]),
        ("lm_head", []),
        ("model.layers.3.router", []),
        ("multi_modal_projector.mlp.down_proj", []),
    ],
)
def test_layers_map_to_the_checkpoint(config: Squeeze10Config, prefix: str, names: list[str]) -> None:
    assert config.checkpoint_names(prefix) == tuple(f"model.layers.3.{name}" for name in names)


def test_partly_quantized_stack_is_refused(config: Squeeze10Config) -> None:
    config.packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "w_proj"]}
    with pytest.raises(BadInput, match="only some"):
        config.checkpoint_names("model.layers.0.self_attn.qkv_proj")


def test_other_layers_are_left_to_vllm(config: Squeeze10Config, vllm_config: Any) -> None:
    from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod

    other = LinearBase(8, 8, prefix="router", disable_tp=True)
    assert isinstance(config.get_quant_method(other, "model.layers.0.router"), UnquantizedLinearMethod)
    assert config.get_quant_method(torch.nn.Embedding(2, 2), "lm_head") is None


def test_experts_are_refused(config: Squeeze10Config) -> None:
    class RoutedExperts(torch.nn.Module):
        """Bears the name of vLLM's class."""

    with pytest.raises(BadInput, match="mixture of experts"):
        config.get_quant_method(RoutedExperts(), "model.layers.0.mlp.experts")


def test_other_architectures_are_refused(config: Squeeze10Config) -> None:
    hf_config = SimpleNamespace(architectures=["Qwen3ForCausalLM"])
    with pytest.raises(BadInput, match=r"LlamaForCausalLM.*Qwen3ForCausalLM"):
        config.maybe_update_config("org/model", hf_config=hf_config, revision=None)


FORK = f"""
import os, signal, sys, torch
from squeeze10_kernels import WeightFormat
from squeeze10_vllm.config import Squeeze10Config

torch.set_num_threads(2)
Squeeze10Config(WeightFormat(head_bits=4)).maybe_update_config({str(DEMO)!r})
assert torch.get_num_threads() == 2
child = os.fork()
if not child:
    signal.alarm(20)
    torch.ones(1 << 20).aminmax()
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_an_engine_can_be_forked_once_the_checkpoint_is_checked() -> None:
    """As vLLM does it on a GPU, from a script: it hung, since the check had used OpenMP's threads."""
    result = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
