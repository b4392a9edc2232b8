"""Fixtures for all tests: no network, fixed seeds, GPU tests skipped without a GPU, the demo model."""

import os
import random
import shutil
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # before the first product on a GPU; tuning asks for it

import pytest
import torch
from tiny_model import write_tiny_model

ROOT = Path(__file__).resolve().parent.parent
SEED = 20250718


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device; torch.cuda.is_available() is False")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    """Every test begins from the same random state, in any order of tests."""
    random.seed(SEED)
    torch.manual_seed(SEED)


@pytest.fixture
def nan_poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill floating-point memory that torch leaves uninitialised with NaN, so that a forgotten cell shows.

    Idea: flash-linear-attention's conftest. Request it in every test of a kernel that allocates its output.
    """

    def poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        @wraps(allocate)
        def allocate_poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return allocate_poisoned

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """SmolLM2-135M-Instruct, written once into .cache/ and again whenever its writer changes."""
    from squeeze10_quantizer import demo_model as writer

    path = ROOT / ".cache" / "demo-model"
    if path.exists() and path.stat().st_mtime < Path(writer.__file__).stat().st_mtime:
        shutil.rmtree(path)
    if not path.exists():
        writer.write_demo_model(path)
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unquantized directory."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
