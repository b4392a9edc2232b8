"""TensorBoard gets what the report says, or the user a sentence."""

import json
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_model import SMALL

from squeeze10_quantizer import cli, quantize
from squeeze10_quantizer.cli import main
from squeeze10_quantizer.distillation import Distillation


def command(model: Path, folder: Path) -> list[str]:
    text = folder / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 100)
    tuning = ["--tune", "distill", "--tune-steps", "4", "--distill-tokens", "20000", "--calibration", str(text)]
    return ["quantize", str(model), str(folder / "out"), *SMALL, *tuning, "--tensorboard", str(folder / "curves")]


def test_curves_hold_what_the_report_says(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "SHOW_STEPS", 2)
    train, divergences = Distillation.train, []
    monkeypatch.setattr(
        Distillation, "train", lambda run, steps: divergences.append(train(run, steps)) or divergences[-1]
    )

    assert main(command(tiny_model, tmp_path)) == 0

    events = EventAccumulator(str(tmp_path / "curves"))
    events.Reload()
    report = json.loads((tmp_path / "out" / "squeeze10_report.json").read_text())
    losses = [event.value for event in events.Scalars("layer/loss_after_tuning")]
    assert losses == pytest.approx([block["after"] for block in report["blocks"]])
    points = events.Scalars("distillation/divergence")
    assert len(points) > 2
    assert [point.step for point in points][:2] == [2, 4]
    assert [point.value for point in points] == pytest.approx(divergences)


def test_curves_without_tensorboard_are_refused(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)

    assert main(command(tiny_model, tmp_path)) == cli.BAD_DATA

    assert "pip install squeeze10-vllm[tensorboard]" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]
