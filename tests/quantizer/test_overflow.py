"""Models and text that turn into NaN or infinity: what can be used is, what cannot is named, no traceback."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import write_tiny_model

from squeeze10_quantizer import block_tuning, distillation
from squeeze10_quantizer.cli import BAD_DATA, main
from squeeze10_quantizer.training import Rates

POISON = 7
"""A token under which the spoiled model overflows."""
SAMPLES, CONTEXT, SPOILED = 5, 32, 2
TUNING = ["--tune-steps", "3", "--distill-tokens", "320"]


def changed(model: Path, **tensors: Any) -> Path:
    """Change tensors of a model directory by functions of what they hold."""
    file = model / "model.safetensors"
    stored = load_file(file)
    for name, change in tensors.items():
        full = name.replace("__", ".")
        stored[full] = change(stored[full].clone())
    save_file(stored, file, metadata={"format": "pt"})
    return model


@pytest.fixture(scope="module")
def spoiled_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Channel 0 is 0 for every token but one, and its norm multiplies it beyond fp32; every tensor is finite."""

    def embed(table: torch.Tensor) -> torch.Tensor:
        table[:, 0] = 0
        table[POISON, 0] = 1
        return table

    def norm(weight: torch.Tensor) -> torch.Tensor:
        weight[0] = 3e38
        return weight

    model = write_tiny_model(tmp_path_factory.mktemp("spoiled") / "tiny")
    names = {"model__embed_tokens__weight": embed, "model__layers__0__input_layernorm__weight": norm}
    return changed(model, **names)


@pytest.fixture
def samples(tmp_path: Path) -> dict[str, Path]:
    """Token files: with a spoiled sample, without it, with spoiled ones only."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(POISON + 1, 256, (SAMPLES, CONTEXT), generator=generator)
    sound = tokens[torch.arange(SAMPLES) != SPOILED].contiguous()
    tokens[SPOILED, 10] = POISON
    spoiled = tokens.clone()
    spoiled[:, 5] = POISON
    files = {}
    for name, ids in (("mixed", tokens), ("sound", sound), ("spoiled", spoiled)):
        files[name] = tmp_path / f"{name}.safetensors"
        save_file({"input_ids": ids}, files[name])
    return files


def command(model: Path, out: Path, calibration: Path, *more: str) -> list[str]:
    count = SAMPLES - (calibration.name == "sound.safetensors")
    small = ["--samples", str(count), "--context", str(CONTEXT), "--pbar-tokens", "64", "--device", "cpu"]
    return ["quantize", str(model), str(out), "--calibration", str(calibration), *small, *more]


def report_of(out: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((out / "squeeze10_report.json").read_text())
    return report


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(["--fias", "--pbar"], id="fias"),
        pytest.param(["--mask", "elements"], id="no_fias"),
        pytest.param(["--head-bits", "4", "--tune", "blocks", *TUNING], id="tuned_with_tables"),
    ],
)
def test_a_spoiled_sample_is_named_and_dropped(
    more: list[str], spoiled_model: Path, samples: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The result is that of calibration without it; one NaN in a Hessian would cost every weight."""
    assert main(command(spoiled_model, tmp_path / "mixed", samples["mixed"], *more)) == 0
    heard = capfd.readouterr().err
    assert main(command(spoiled_model, tmp_path / "sound", samples["sound"], *more)) == 0

    mixed, sound = (load_file(tmp_path / name / "model.safetensors") for name in ("mixed", "sound"))
    assert all(torch.equal(mixed[name], sound[name]) for name in sound)
    assert f"Calibration sample {SPOILED} turns into NaN or infinity in layer 0" in heard
    assert heard.count("Calibration sample") == 1
    assert report_of(tmp_path / "mixed")["dropped_samples"] == {str(SPOILED): 0}
    assert report_of(tmp_path / "sound")["dropped_samples"] == {}
    assert report_of(tmp_path / "mixed")["layers"] == pytest.approx(report_of(tmp_path / "sound")["layers"])
    assert main(["verify", str(tmp_path / "mixed")]) == 0


def test_an_ablation_refuses_a_spoiled_sample(
    spoiled_model: Path, samples: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its variants compare only where all are calibrated on the same text."""
    small = ["--samples", str(SAMPLES), "--context", str(CONTEXT), "--calibration", str(samples["mixed"])]
    words = ["--table", "3", "--text", str(Path(__file__)), "--device", "cpu", *small]

    assert main(["ablate", str(spoiled_model), "--out", str(tmp_path / "out"), *words]) == BAD_DATA

    assert f"Calibration samples [{SPOILED}] give NaN or infinity" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("calibration", "more", "sentence"),
    [
        pytest.param("spoiled", [], "Decoder layer 0: every calibration sample gives NaN", id="all_spoiled"),
        pytest.param(
            "mixed",
            ["--tune", "distill", *TUNING, "--distill-text", "spoiled"],
            "held out of distillation",
            id="distill",
        ),
    ],
)
def test_text_that_cannot_be_used_is_refused(
    calibration: str,
    more: list[str],
    sentence: str,
    spoiled_model: Path,
    samples: dict[str, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    words = [str(samples.get(word, word)) for word in more]

    assert main(command(spoiled_model, tmp_path / "out", samples[calibration], *words)) == BAD_DATA

    assert sentence in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tuning_needs_two_sound_samples(
    spoiled_model: Path, samples: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One is held out."""
    tokens = load_file(samples["spoiled"])["input_ids"]
    tokens[0, 5] = POISON + 1
    save_file({"input_ids": tokens}, samples["spoiled"])

    assert main(command(spoiled_model, tmp_path / "out", samples["spoiled"], "--tune", "blocks", *TUNING)) == BAD_DATA

    assert "2 samples without NaN and infinity, not 1" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        pytest.param(
            "model__layers__1__mlp__down_proj__weight",
            lambda w: w * 1e7,
            "of mlp.down_proj must have row scales",
            id="fp16",
        ),
        pytest.param(
            "model__layers__1__input_layernorm__weight", lambda w: w * 1e25, "squares of calibration", id="squares"
        ),
    ],
)
def test_a_model_beyond_the_range_is_refused(
    name: str, change: Any, sentence: str, samples: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not as a checkpoint that no reader takes, and with the layer's name."""
    tensors = {name: change}
    if "norm" in name:  # the products of queries and keys must stay finite
        tensors |= dict.fromkeys(("model__layers__1__self_attn__q_proj__weight",), lambda w: w * 1e-30)
    model = changed(write_tiny_model(tmp_path / "model"), **tensors)

    assert main(command(model, tmp_path / "out", samples["sound"])) == BAD_DATA

    heard = capfd.readouterr().err
    assert "squeeze10: Decoder layer 1: the " in heard
    assert sentence in heard
    assert not (tmp_path / "out").exists()


def test_raised_damping_is_said_and_reported(
    tiny_model: Path, samples: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """16 tokens leave 112 of 128 eigenvalues to rounding in fp32, which a damping of 10⁻⁷ does not lift above 0."""
    more = ["--samples", "1", "--context", "16", "--damp-ratio", "2e-7"]

    assert main(command(tiny_model, tmp_path / "out", samples["sound"], *more)) == 0

    damping = report_of(tmp_path / "out")["raised_damping"]
    assert damping
    assert all(any(math.isclose(value, 2e-7 * step) for step in (10, 100)) for value in damping.values())
    heard = capfd.readouterr().err
    for name, value in damping.items():
        assert f"The Hessian of {name} was singular; its damping is raised to {value:g}" in heard


def test_tuning_that_ends_in_nan_is_left_out(
    tiny_model: Path, samples: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights become NaN at the first step, of blocks and of distillation; the checkpoint is the untuned one."""
    assert main(command(tiny_model, tmp_path / "none", samples["sound"])) == 0
    for module in (block_tuning, distillation):
        monkeypatch.setattr(module, "RATES", Rates(latent=math.nan, scales=math.nan))

    assert main(command(tiny_model, tmp_path / "out", samples["sound"], "--tune", "distill", *TUNING)) == 0

    none, after = (load_file(tmp_path / name / "model.safetensors") for name in ("none", "out"))
    assert all(torch.equal(none[name], after[name]) for name in none)
    report = report_of(tmp_path / "out")
    assert all(math.isfinite(part["after"]) for part in [*report["blocks"], report["divergence"]])
    assert main(["inspect", str(tmp_path / "out")]) == 0


def test_a_block_without_a_finite_loss_is_refused(
    tiny_model: Path,
    samples: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Before its steps are spent; a NaN in the report would be refused by every reader."""
    monkeypatch.setattr(block_tuning, "held_out_error", lambda *_: math.nan)

    assert main(command(tiny_model, tmp_path / "out", samples["sound"], "--tune", "blocks", *TUNING)) == BAD_DATA

    assert "Decoder layer 0: the quantized layer gives NaN" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_states_of_zeros_are_quantized(samples: dict[str, Path], tmp_path: Path) -> None:
    """Embeddings of zeros: every Hessian and every output is 0, and nothing may be divided by their size."""
    model = changed(write_tiny_model(tmp_path / "model"), model__embed_tokens__weight=torch.zeros_like)
    more = ["--tune", "blocks", "--head-bits", "4", *TUNING]

    assert main(command(model, tmp_path / "out", samples["sound"], *more)) == 0

    assert main(["verify", str(tmp_path / "out")]) == 0
    assert set(report_of(tmp_path / "out")["layers"].values()) == {0.0}
