"""SIGTERM at any stage: exit code 75, what was in work is kept, and the same command ends with the same bytes."""

import os
import random
import signal
import string
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from tiny_model import digests

from squeeze10_quantizer import ablation_walk, block_tuning, pipeline, quantize
from squeeze10_quantizer.cli import STOPPED, main
from squeeze10_quantizer.distillation import Distillation

STEPS = 4
LAYERS = ["layer-00000", "layer-00001"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "letters.txt"
    path.write_text("".join(random.Random(0).choices(string.ascii_letters, k=2000)))
    return path


def command(model: Path, out: Path, text: Path, tune: str = "blocks") -> list[str]:
    """62 windows of 16 tokens make a step of a distillation."""
    small = ["--samples", "2", "--context", "16", "--tune-steps", "2", "--device", "cpu"]
    stages = ["--tune", tune, "--distill-tokens", str(STEPS * 62 * 16)]
    return ["quantize", str(model), str(out), "--calibration", str(text), *small, *stages]


@pytest.fixture(scope="module")
def undisturbed(tiny_model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main(command(tiny_model, out, text)) == 0
    return digests(out)


def terminate_at(patch: pytest.MonkeyPatch, owner: Any, name: str, number: int, signals: int = 1) -> list[str]:
    """Send the process SIGTERM as the n-th call begins; the list grows with every call."""
    original, calls = getattr(owner, name), []

    def interrupted(*arguments: Any, **named: Any) -> Any:
        calls.append(name)
        for _ in range(signals if len(calls) == number else 0):
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **named)

    patch.setattr(owner, name, interrupted)
    return calls


def kept(out: Path) -> list[str]:
    """Finished layers of an interrupted run."""
    return sorted(file.stem for file in out.with_name("out.partial").glob("layer-*"))


@pytest.mark.parametrize(
    ("owner", "name", "call", "layers"),
    [
        pytest.param(quantize, "load_calibration", 1, [], id="reading_text"),
        pytest.param(pipeline, "collect_inputs", 2, LAYERS, id="collecting_activations"),
        pytest.param(pipeline, "quantize_group", 2, LAYERS[:1], id="rounding"),
        pytest.param(block_tuning, "train", 1, LAYERS[:1], id="tuning_a_block"),
        pytest.param(quantize, "write_shards", 1, LAYERS, id="writing_the_output"),
    ],
)
def test_sigterm_ends_with_75_and_the_same_bytes(
    owner: Any,
    name: str,
    call: int,
    layers: list[str],
    tiny_model: Path,
    text: Path,
    undisturbed: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The layer in work is finished: on a GPU it is a minute, tuned on a CPU an hour."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        terminate_at(patch, owner, name, call)
        assert main(command(tiny_model, out, text)) == STOPPED

    assert "the same command goes on from there" in capfd.readouterr().err
    assert not out.exists()
    assert kept(out) == layers
    assert main(command(tiny_model, out, text)) == 0
    assert digests(out) == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_sigterm_keeps_every_step_of_a_distillation(
    tiny_model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before five minutes have passed."""
    out, whole = tmp_path / "a" / "out", tmp_path / "b" / "out"
    assert main(command(tiny_model, whole, text, "distill")) == 0
    monkeypatch.setattr(quantize, "SHOW_STEPS", 1)
    with monkeypatch.context() as patch:
        terminate_at(patch, Distillation, "train", 2)
        assert main(command(tiny_model, out, text, "distill")) == STOPPED
    with safe_open(out.with_name("out.partial") / "distillation.safetensors", framework="pt") as file:
        assert int(file.get_tensor("step")) == 2

    calls = terminate_at(monkeypatch, Distillation, "train", 0)
    assert main(command(tiny_model, out, text, "distill")) == 0

    assert len(calls) == STEPS - 2
    assert digests(out) == digests(whole)


def test_second_sigterm_stops_at_once(
    tiny_model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whoever asks twice does not want to wait for a layer."""
    terminate_at(monkeypatch, pipeline, "quantize_group", 2, signals=2)

    assert main(command(tiny_model, tmp_path / "out", text)) == STOPPED

    assert "a second SIGTERM stops at once" in capfd.readouterr().err
    assert kept(tmp_path / "out") == []


def test_sigterm_keeps_the_variant_of_an_ablation(
    tiny_model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layer in work of every variant that was rounded with it."""
    terminate_at(monkeypatch, ablation_walk, "quantize_inputs", 1)
    small = ["--samples", "2", "--context", "16", "--device", "cpu", "--calibration", str(text), "--text", str(text)]

    assert main(["ablate", str(tiny_model), "--out", str(tmp_path / "out"), "--table", "3", *small]) == STOPPED

    found = [file.name for file in (tmp_path / "out.partial").glob("*/layer-*")]
    assert found == 7 * ["layer-00000.safetensors"]
