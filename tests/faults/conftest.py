"""Sound checkpoints to spoil, the readers that must refuse them, and hypothesis with a short and a long profile."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import tiny_checkpoint as tiny
from faults.readers import refusal_of
from faults.spoiling import FORMATS
from hypothesis import settings

from squeeze10_quantizer.directory import write_sums

settings.register_profile("short", max_examples=300, deadline=None, database=None, derandomize=True)
settings.register_profile("soak", max_examples=10_000, deadline=None, database=None, print_blob=True)
settings.load_profile("short")


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name in FORMATS to a whole checkpoint with sums; copy it before you spoil it."""
    paths = {}
    for name, weight_format in FORMATS.items():
        paths[name] = tiny.build_checkpoint(tmp_path_factory.mktemp("sound") / "model", weight_format).path
        write_sums(paths[name])
    return paths


@pytest.fixture
def refusal(tmp_path: Path, capfd: Any) -> Callable[[str, Path], tuple[int, str]]:
    """Reader and checkpoint to exit code and message."""
    return lambda reader, path: refusal_of(reader, path, tmp_path, capfd)
