"""One checkpoint of the tiny model for many tests."""

from pathlib import Path

import pytest
from tiny_model import SMALL

from squeeze10_quantizer.cli import main


@pytest.fixture(scope="session", params=["columns", "elements"])
def tiny_quantized(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its checkpoint, under either mask."""
    out = tmp_path_factory.mktemp(request.param) / "tiny-sq10"
    assert main(["quantize", str(tiny_model), str(out), "--mask", request.param, *SMALL]) == 0
    return out
