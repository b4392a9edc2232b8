"""vLLM on the CPU, offline."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
if not torch.cuda.is_available():
    os.environ["VLLM_TARGET_DEVICE"] = "cpu"


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


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
