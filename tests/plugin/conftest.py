"""vLLM on the CPU, offline; tiny layers and checkpoints."""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
if not torch.cuda.is_available():
    os.environ["VLLM_TARGET_DEVICE"] = "cpu"


def load_builder() -> ModuleType:
    """tiny_checkpoint.py by its path, as other suites import it."""
    name = "tiny_checkpoint"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The builder of tiny layers and checkpoints."""
    return load_builder()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def assert_close() -> Callable[[torch.Tensor, torch.Tensor, float], None]:
    """Relative RMS error below a bound; one number that means the same at every scale."""

    def check(actual: torch.Tensor, expected: torch.Tensor, rms: float) -> None:
        assert actual.shape == expected.shape
        assert actual.isfinite().all()
        error = (actual.double() - expected.double()).square().mean().sqrt()
        assert error <= rms * expected.double().square().mean().sqrt()

    return check


@pytest.fixture
def vllm_config() -> Iterator[Any]:
    """A vLLM config in force, as vLLM's layers need while they are built."""
    from vllm.config import VllmConfig, set_current_vllm_config

    config = VllmConfig()
    with set_current_vllm_config(config):
        yield config


@pytest.fixture
def set_rank(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Pretend to be rank r of n: vLLM's layers only ask for the two numbers."""

    def set_numbers(rank: int, size: int) -> None:
        for module in ("vllm.model_executor.parameter", "vllm.model_executor.layers.linear"):
            monkeypatch.setattr(f"{module}.get_tensor_model_parallel_rank", lambda: rank)
            monkeypatch.setattr(f"{module}.get_tensor_model_parallel_world_size", lambda: size)

    return set_numbers
