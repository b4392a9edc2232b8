"""Real servers, each started once for all tests: two models under both masks."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from openai import OpenAI
from soak.load_server import FLAGS
from vllm_server import serving

from squeeze10_quantizer.cli import main

SERVERS: Final = (("demo", "columns"), ("demo", "elements"), ("tiny", "columns"), ("tiny", "elements"))
GATE: Final = Path(__file__).resolve().parents[2] / "deploy" / "gate"


@dataclass(frozen=True)
class Served:
    """A running server and the plain model that it must agree with.

    Attributes:
        number: Of the server among `SERVERS`: tests that need not repeat themselves share their cases out by it.
        base_url: The OpenAI API.
        client: Asks it.
        plain: The dequantized model.
        log: What the server prints.
    """

    number: int
    base_url: str
    client: OpenAI
    plain: Path
    log: Path


@pytest.fixture(scope="session", params=SERVERS, ids=lambda pair: f"{pair[0]}_{pair[1]}")
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One start of `vllm serve` for all tests of a model and mask."""
    name, mask = request.param
    model = request.getfixturevalue(f"{name}_model")
    folder = tmp_path_factory.mktemp(f"{name}-{mask}")
    out, plain, log = folder / "sq10", folder / "plain", folder / "server.log"
    # FIAS: the model that the bounds of these tests were set on
    flags = ["--mask", mask, "--samples", "16", "--context", "256", "--fias", "--device", "cpu"]
    assert main(["quantize", str(model), str(out), *flags]) == 0
    assert main(["dequantize", str(out), str(plain)]) == 0
    length = ["--max-model-len", "256"] if name == "tiny" else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(GATE))
        with serving(out, log, *FLAGS, *length) as base_url:
            client = OpenAI(base_url=base_url, api_key="none", timeout=300)
            yield Served(SERVERS.index(request.param), base_url, client, plain, log)
