"""4-bit embeddings and lm_head: nearer than plain rounding, one command from quantize to dequantize, resumable."""

import json
from pathlib import Path

import pytest
import torch
from assertions import assert_close
from tiny_model import SMALL, digests, write_tiny_model
from transformers import AutoModelForCausalLM

from squeeze10_kernels import dequantize, open_checkpoint
from squeeze10_kernels.embedding import look_up
from squeeze10_quantizer import cli, pipeline
from squeeze10_quantizer.cli import main
from squeeze10_quantizer.loading import load_model
from squeeze10_quantizer.recipe import Recipe
from squeeze10_quantizer.tables import quantize_table
from squeeze10_quantizer.uniform import round_uniform


@pytest.mark.parametrize("tied", [True, False])
def test_tables_are_quantized_and_mean_what_they_say(tmp_path: Path, tied: bool) -> None:
    """Every reader agrees, and they add little to the error of 4-bit layers."""
    model = write_tiny_model(tmp_path / "model", tie_word_embeddings=tied)
    out, dense, layers_only = (tmp_path / name for name in ("out", "dense", "layers-only"))

    assert main(["quantize", str(model), str(layers_only), *SMALL, "--salient-ratio", "1"]) == 0
    assert main(["quantize", str(model), str(out), *SMALL, "--head-bits", "4", "--salient-ratio", "1"]) == 0
    assert main(["verify", str(out)]) == 0
    assert main(["dequantize", str(out), str(dense)]) == 0

    checkpoint = open_checkpoint(out)
    assert set(checkpoint.tables) == ({"model.embed_tokens"} if tied else {"model.embed_tokens", "lm_head"})
    assert "model.embed_tokens.weight" not in checkpoint.directory.entries
    ids = torch.randint(0, 256, (2, 40))
    original = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ours, without = (load_model(path, torch.float32, torch.device("cpu")) for path in (out, layers_only))
    plain = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
    with torch.no_grad():
        wanted, logits, before, decoded = (whole(ids).logits for whole in (original, ours, without, plain))
    assert_close(logits, decoded, rms=2e-2)
    assert (before - wanted).norm() < (logits - wanted).norm() < 1.3 * (before - wanted).norm()
    report = json.loads((out / "squeeze10_report.json").read_text())
    assert all(0 < report["tables"][name] < 0.05 for name in checkpoint.tables)


def test_outputs_are_nearer_than_with_plain_rounding() -> None:
    """A Hessian with a few strong, correlated channels, as final norms leave it."""
    weight = torch.randn(200, 64)
    x = torch.randn(500, 64) @ (torch.eye(64) + 0.5 * torch.randn(64, 64) / 8)
    x[:, :3] *= 20
    hessian = x.T @ x / len(x)

    table = dequantize(quantize_table(weight, hessian / hessian.diagonal().mean(), Recipe()).layer)

    ours, plain = ((x @ (other - weight).T).square().mean() for other in (table, round_uniform(weight, 4)))
    assert ours < 0.3 * plain


def test_rows_are_those_of_the_reference(tmp_path: Path) -> None:
    """To the bit, for any shape of ids, in the dtype asked for."""
    model = write_tiny_model(tmp_path / "model")
    assert main(["quantize", str(model), str(tmp_path / "out"), *SMALL, "--head-bits", "4"]) == 0
    checkpoint = open_checkpoint(tmp_path / "out")
    names = [f"model.embed_tokens.{suffix}" for suffix in ("qweight_salient", "scales", "channel_scales")]
    tensors = [checkpoint.directory.tensor(name) for name in names]
    ids = torch.randint(0, 320, (3, 5))

    for dtype in (torch.float32, torch.bfloat16):
        rows = look_up(ids, *tensors, dtype)

        assert torch.equal(rows, dequantize(checkpoint.layer("model.embed_tokens"))[ids].to(dtype))


def test_a_run_stopped_before_the_tables_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All layers are finished then, but the states after the last one are gone."""
    model = write_tiny_model(tmp_path / "model")
    command = ["quantize", str(model), "OUT", *SMALL, "--head-bits", "4"]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for folder in ("whole", "stopped"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        if folder == "stopped":
            with monkeypatch.context() as patch:
                patch.setattr(pipeline, "quantize_tables", stop)
                assert main(command) == cli.STOPPED
        assert main(command) == 0

    assert digests(tmp_path / "stopped" / "OUT") == digests(tmp_path / "whole" / "OUT")


def test_distillation_learns_under_the_quantized_tables(tmp_path: Path) -> None:
    """The student starts further away than with the original tables, and its tables stay."""
    model = write_tiny_model(tmp_path / "model")
    licence = str(Path(__file__).parents[2] / "LICENSE")
    before = {}
    for bits in ("16", "4"):
        tune = [
            "--tune",
            "distill",
            "--tune-steps",
            "2",
            "--distill-tokens",
            "256",
            "--head-bits",
            bits,
            "--salient-ratio",
            "1",
        ]
        assert main(["quantize", str(model), str(tmp_path / bits), *SMALL, *tune, "--calibration", licence]) == 0
        report = json.loads((tmp_path / bits / "squeeze10_report.json").read_text())
        before[bits] = report["divergence"]["before"]

    assert before["4"] > 1.2 * before["16"]
    assert main(["verify", str(tmp_path / "4")]) == 0
