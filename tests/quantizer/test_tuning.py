"""Tuning: outputs come nearer to the original model's, it never does harm, and a stop costs nothing."""

import json
import random
import string
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_model import digests
from torch import nn

from squeeze10_quantizer import block_tuning, cli, distillation, pipeline, quantize, training
from squeeze10_quantizer.cli import main
from squeeze10_quantizer.decoder import Decoder
from squeeze10_quantizer.latent import LatentLinear
from squeeze10_quantizer.loading import load_model
from squeeze10_quantizer.partial import PartialOutput

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread: several wait for each other ten times as long as they compute when a server runs beside."""
    for module in (block_tuning, distillation):
        monkeypatch.setattr(module, "BATCH_TOKENS", 512)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def _text(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`letters.txt` in the working directory."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "letters.txt").write_text(letters(0, 100_000))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


def letters(seed: int, count: int) -> str:
    """The same wherever and whenever the tests run."""
    return "".join(random.Random(seed).choices(string.ascii_letters + string.digits + " ", k=count))


def command(model: Path, out: Path, tune: str, *more: str) -> list[str]:
    small = ["--samples", "32", "--context", "64", "--device", "cpu", "--tune-steps", "10"]
    text = ["--calibration", "letters.txt", "--distill-tokens", "10000"]
    return ["quantize", str(model), str(out), *small, *text, "--tune", tune, *more]


def held_out_ids() -> torch.Tensor:
    """Tokens of the tiny byte-level tokenizer that no calibration window holds."""
    return torch.tensor(list(letters(1, 2048).encode())).view(32, 64)


def output_error(model: Path, checkpoint: Path, layers: int) -> float:
    """Relative error of the hidden states after so many layers, by transformers on the whole models."""
    states = []
    for path in (model, checkpoint):
        whole = load_model(path, torch.float32, torch.device("cpu"))
        with torch.no_grad():
            states.append(whole.model(held_out_ids(), output_hidden_states=True).hidden_states[layers])
    return float((states[1] - states[0]).square().sum() / states[0].square().sum())


def mean_divergence(model: Path, checkpoint: Path) -> float:
    """KL(original || checkpoint) in nats a token."""
    original, ours = (load_model(path, torch.float32, torch.device("cpu")) for path in (model, checkpoint))
    with torch.no_grad():
        wanted, logits = (whole(held_out_ids()).logits.log_softmax(-1) for whole in (original, ours))
    return float(nn.functional.kl_div(logits, wanted, log_target=True, reduction="none").sum(-1).mean())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mask", ["columns", "elements"])
def test_blocks_come_nearer_to_the_original(tiny_model: Path, tmp_path: Path, mask: str, device: str) -> None:
    for tune in ("none", "blocks"):
        arguments = command(
            tiny_model, tmp_path / tune, tune, "--mask", mask, "--tune-steps", "100", "--device", device
        )
        assert main(arguments) == 0

    assert main(["verify", str(tmp_path / "blocks")]) == 0
    assert output_error(tiny_model, tmp_path / "blocks", 1) < 0.9 * output_error(tiny_model, tmp_path / "none", 1)
    blocks = json.loads((tmp_path / "blocks" / "squeeze10_report.json").read_text())["blocks"]
    assert len(blocks) == 2
    assert blocks[0]["after"] < 0.9 * blocks[0]["before"]
    assert all(0 < block["after"] <= block["before"] for block in blocks)


@pytest.mark.parametrize("device", DEVICES)
def test_distillation_comes_nearer_to_the_original(tiny_model: Path, tmp_path: Path, device: str) -> None:
    for tune in ("blocks", "distill"):
        assert main(command(tiny_model, tmp_path / tune, tune, "--distill-tokens", "150000", "--device", device)) == 0

    assert main(["verify", str(tmp_path / "distill")]) == 0
    assert mean_divergence(tiny_model, tmp_path / "distill") < 0.9 * mean_divergence(tiny_model, tmp_path / "blocks")
    divergence = json.loads((tmp_path / "distill" / "squeeze10_report.json").read_text())["divergence"]
    assert divergence["after"] < divergence["before"]
    card = (tmp_path / "distill" / "README.md").read_text()
    assert f"150000 tokens of letters.txt: divergence from the original {divergence['before']:.3f}" in card


def test_scales_alone_come_nearer_and_leave_the_codes(tiny_model: Path, tmp_path: Path) -> None:
    """For models whose latents do not fit: nothing may hold latents, and no code may change."""
    assert main(command(tiny_model, tmp_path / "blocks", "blocks")) == 0
    more = ["--no-distill-codes", "--distill-tokens", "150000"]

    assert main(command(tiny_model, tmp_path / "scales", "distill", *more)) == 0

    assert main(["verify", str(tmp_path / "scales")]) == 0
    assert mean_divergence(tiny_model, tmp_path / "scales") < 0.98 * mean_divergence(tiny_model, tmp_path / "blocks")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("blocks", "scales"))
    changed = {name.rsplit(".", 1)[1] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"scales", "channel_scales"}


@pytest.mark.gpu
def test_the_same_seed_gives_the_same_bytes_on_a_gpu(tiny_model: Path, tmp_path: Path) -> None:
    """Attention's backward pass adds in any order unless it is told not to."""
    for name in ("once", "again", "other"):
        more = ["--context", "256", "--device", "cuda", "--seed", str(int(name == "other"))]
        assert main(command(tiny_model, tmp_path / name / "out", "distill", *more)) == 0

    once, again, other = (digests(tmp_path / name / "out") for name in ("once", "again", "other"))
    assert once == again
    assert once["model.safetensors"] != other["model.safetensors"]


def test_tuning_that_harms_is_left_out(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates far too high for a model must not cost the user the model."""
    assert main(command(tiny_model, tmp_path / "none", "none")) == 0
    wild = training.Rates(latent=50.0, scales=5.0)
    monkeypatch.setattr(block_tuning, "RATES", wild)
    monkeypatch.setattr(distillation, "RATES", wild)

    assert main(command(tiny_model, tmp_path / "wild", "distill")) == 0

    none, after = (load_file(tmp_path / name / "model.safetensors") for name in ("none", "wild"))
    assert all(torch.equal(none[name], after[name]) for name in none)


def test_checkpointing_gives_the_same_codes(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It saves memory: every layer of the student runs twice in a step."""
    calls = dict.fromkeys(("plain", "twice"), 0)
    for name, more in (("plain", []), ("twice", ["--checkpointing"])):
        counted = count_calls(monkeypatch, LatentLinear, "weight")
        assert main(command(tiny_model, tmp_path / name, "distill", *more)) == 0
        calls[name] = len(counted)

    plain, twice = (load_file(tmp_path / name / "model.safetensors") for name in calls)
    assert all(torch.equal(plain[name], twice[name]) for name in plain)
    assert calls["twice"] > 1.2 * calls["plain"]


def count_calls(patch: pytest.MonkeyPatch, owner: object, name: str) -> list[str]:
    """A list that grows with every call."""
    original, calls = getattr(owner, name), []

    def counted(*arguments: object, **named: object) -> object:
        calls.append(name)
        return original(*arguments, **named)

    patch.setattr(owner, name, counted)
    return calls


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_what_a_layer_reads_while_it_is_tuned(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """Against transformers' hidden states of the original model, of the quantized one, and their mean."""
    seen: list[torch.Tensor] = []
    tune_layer = pipeline.tune_layer

    def record(decoder: Decoder, layer: nn.Module, start: object, inputs: torch.Tensor, *rest: object) -> object:
        seen.append(inputs.clone())
        return tune_layer(decoder, layer, start, inputs, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "tune_layer", record)

    assert main(command(tiny_model, tmp_path / "out", "blocks", "--tune-inputs", str(share))) == 0

    original, ours = (second_layer_inputs(path, seen[0]) for path in (tiny_model, tmp_path / "out"))
    assert not torch.allclose(original, ours, rtol=1e-2)
    torch.testing.assert_close(seen[1], original + share * (ours - original), rtol=1e-4, atol=1e-4)


def second_layer_inputs(model: Path, embeddings: torch.Tensor) -> torch.Tensor:
    """By transformers."""
    whole = load_model(model, torch.float32, torch.device("cpu"))
    with torch.no_grad():
        states = whole.model(inputs_embeds=embeddings, output_hidden_states=True).hidden_states
    return states[1]  # type: ignore[no-any-return]


@pytest.mark.parametrize("stopped", ["blocks", "distill"])
def test_a_stopped_run_ends_with_the_same_bytes(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: str
) -> None:
    """Stopped while the second layer is tuned, or between two saved states of the distillation."""
    whole, out = tmp_path / "a" / "out", tmp_path / "b" / "out"
    monkeypatch.setattr(quantize, "SHOW_STEPS", 5)
    assert main(command(tiny_model, whole, "distill")) == 0
    with monkeypatch.context() as stop:
        if stopped == "blocks":
            stop_at_call(stop, block_tuning, "tune_block", 2)
        else:
            stop.setattr(quantize, "SAVE_SECONDS", 0.0)
            stop_at_call(stop, distillation.Distillation, "train", 3)
        assert main(command(tiny_model, out, "distill")) == cli.STOPPED
    assert not out.exists()

    assert main(command(tiny_model, out, "distill")) == 0

    assert digests(out) == digests(whole)
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def stop_at_call(patch: pytest.MonkeyPatch, owner: object, name: str, number: int) -> None:
    """Ctrl-C at the n-th call."""
    original, calls = getattr(owner, name), []

    def counted(*arguments: object, **named: object) -> object:
        calls.append(name)
        if len(calls) == number:
            raise KeyboardInterrupt
        return original(*arguments, **named)

    patch.setattr(owner, name, counted)


@pytest.mark.parametrize(
    "more", [["--tune", "distill", "--samples", "1"], ["--distill-text", "letters.txt"], ["--no-distill-codes"]]
)
def test_what_cannot_be_tuned_is_refused_before_any_work(
    tiny_model: Path, tmp_path: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """One sample cannot be held out and trained on; text for a stage that does not run is a mistake."""
    assert main([*command(tiny_model, tmp_path / "out", "none"), *more]) == cli.BAD_DATA

    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_text_of_one_window_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("x" * 100)
    more = ["--distill-text", str(tmp_path / "short.txt")]

    assert main(command(tiny_model, tmp_path / "out", "distill", *more)) == cli.BAD_DATA


def test_a_run_stopped_while_it_saves_the_distilled_layers(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whose distillation does not help when it is repeated: no layer of the first try is published."""
    assert main(command(tiny_model, tmp_path / "blocks", "blocks")) == 0
    with monkeypatch.context() as stop:
        stop_at_call(stop, PartialOutput, "save", 4)
        assert main(command(tiny_model, tmp_path / "out", "distill")) == cli.STOPPED
    assert list((tmp_path / "out.partial").glob("distilled-*"))
    monkeypatch.setattr(distillation, "RATES", training.Rates(latent=50.0, scales=5.0))

    assert main(command(tiny_model, tmp_path / "out", "distill")) == 0

    blocks, after = (load_file(tmp_path / name / "model.safetensors") for name in ("blocks", "out"))
    assert all(torch.equal(blocks[name], after[name]) for name in blocks)
