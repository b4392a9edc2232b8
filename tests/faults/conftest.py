"""Sound checkpoints to spoil, the readers that must refuse them, and hypothesis with a short and a long profile."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from faults.readers import refusal_of
from faults.spoiling import sound_checkpoints
from hypothesis import settings

settings.register_profile("short", max_examples=300, deadline=None, database=None, derandomize=True)
settings.register_profile("soak", max_examples=10_000, deadline=None, database=None, print_blob=True)
settings.load_profile("short")


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each of `FORMATS`, for all tests."""
    return sound_checkpoints(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def refusal(tmp_path: Path, capfd: Any) -> Callable[[str, Path], tuple[int, str]]:
    """Reader and checkpoint to exit code and message."""
    return lambda reader, path: refusal_of(reader, path, tmp_path, capfd)
