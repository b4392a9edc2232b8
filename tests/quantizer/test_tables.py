"""8- and 4-bit embeddings and lm_head: nearer than plain rounding, one command to quantize, resumable."""

import json
from pathlib import Path

import pytest
import torch
from assertions import assert_close
from tiny_model import SMALL, digests, write_tiny_model
from transformers import AutoModelForCausalLM

from squeeze10_kernels import check_linear, dequantize, open_checkpoint, pack_linear
from squeeze10_kernels.embedding import look_up
from squeeze10_kernels.format import TABLE_FORMAT
from squeeze10_quantizer import cli, pipeline
from squeeze10_quantizer.cli import main
from squeeze10_quantizer.loading import checkpoint_weight, load_model
from squeeze10_quantizer.recipe import Recipe
from squeeze10_quantizer.tables import codes_in_two_parts, quantize_table
from squeeze10_quantizer.uniform import round_uniform


@pytest.mark.parametrize(
    ("tied", "bits", "least", "most"), [(True, 4, 1, 1.3), (False, 4, 1, 1.3), (False, 8, 0.99, 1.01)]
)
def test_tables_are_quantized_and_mean_what_they_say(
    tmp_path: Path, tied: bool, bits: int, least: float, most: float
) -> None:
    """Every reader agrees, and they add little to the error of 4-bit layers: 8 bits next to nothing."""
    model = write_tiny_model(tmp_path / "model", tie_word_embeddings=tied)
    out, dense, layers_only = (tmp_path / name for name in ("out", "dense", "layers-only"))

    assert main(["quantize", str(model), str(layers_only), *SMALL, "--salient-ratio", "1"]) == 0
    assert main(["quantize", str(model), str(out), *SMALL, "--head-bits", str(bits), "--salient-ratio", "1"]) == 0
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
    assert least < (logits - wanted).norm() / (before - wanted).norm() < most
    report = json.loads((out / "squeeze10_report.json").read_text())
    assert all(0 < report["tables"][name] < 12.8 * 0.25**bits for name in checkpoint.tables)


def test_outputs_are_nearer_than_with_plain_rounding() -> None:
    """A Hessian with a few strong, correlated channels, as final norms leave it."""
    weight = torch.randn(200, 64)
    x = torch.randn(500, 64) @ (torch.eye(64) + 0.5 * torch.randn(64, 64) / 8)
    x[:, :3] *= 20
    hessian = x.T @ x / len(x)

    table = dequantize(quantize_table(weight, hessian / hessian.diagonal().mean(), Recipe()).layer)

    ours, plain = ((x @ (other - weight).T).square().mean() for other in (table, round_uniform(weight, 4)))
    assert ours < 0.3 * plain


def test_8_bits_round_to_the_nearest_of_what_is_stored() -> None:
    """Rows far from zero, of one value, and of values whose steps fp16 does not hold; the ends of a span may be cut."""
    values = torch.randn(200, 64) * torch.logspace(-6, 2, 200)[:, None] + 9 * torch.logspace(2, -6, 200)[:, None]
    values[:3] = torch.tensor([[0.3], [-0.3], [0.0]])

    codes, scales = codes_in_two_parts(values)

    high, low = codes.int().split(64, dim=1)
    code = 16 * high + low
    step, offset = scales[:, 1:2].float() / 16, scales[:, 2:].float() * 17 / 16
    error = (step * (code - 136) + offset - values).abs()
    inner = (code > 0) & (code < 255) & (step > 0)
    assert (error <= 0.5001 * step + 1e-6 * values.abs() + 1e-9)[inner].all()
    assert (error[:3] <= values[:3].abs() / 2048).all()


def test_8_bits_span_the_weights_of_a_row_in_256_steps() -> None:
    """Wide rows, and tiny ones whose steps are below fp16's normal numbers."""
    weight = torch.randn(200, 64) * torch.logspace(-6, 2, 200)[:, None] + torch.logspace(-6, 2, 200)[:, None]

    layer = quantize_table(weight, torch.eye(64), Recipe(head_bits=8)).layer

    check_linear(pack_linear(layer, TABLE_FORMAT), TABLE_FORMAT, 200, 128)
    table = dequantize(layer).view(200, 2, 64).sum(1)
    channel_scales = layer.channel_scales[:64].float()
    scaled, error = weight / channel_scales, ((table - weight) / channel_scales).abs().amax(1)
    step = (scaled.amax(1) - scaled.amin(1)) / 255
    in_fp16 = scaled.abs().amax(1) / 2048 + 127 * 2**-24 / 32  # offset and step, normal and below
    assert (error < 0.63 * step + in_fp16).all()
    high, low = layer.codes.int().split(64, dim=1)
    assert ((16 * high + low).amin(), (16 * high + low).amax()) == (0, 255)


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_are_those_of_the_reference(tmp_path: Path, bits: int) -> None:
    """To the bit, for any shape of ids, in the dtype asked for."""
    model = write_tiny_model(tmp_path / "model")
    assert main(["quantize", str(model), str(tmp_path / "out"), *SMALL, "--head-bits", str(bits)]) == 0
    checkpoint = open_checkpoint(tmp_path / "out")
    names = [f"model.embed_tokens.{suffix}" for suffix in ("qweight_salient", "scales", "channel_scales")]
    tensors = [checkpoint.directory.tensor(name) for name in names]
    ids = torch.randint(0, 320, (3, 5))

    for dtype in (torch.float32, torch.bfloat16):
        rows = look_up(ids, *tensors, checkpoint.shape.hidden, dtype)

        assert torch.equal(rows, checkpoint_weight(checkpoint, "model.embed_tokens.weight")[ids].to(dtype))


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
    for bits in ("16", "8", "4"):
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
    assert abs(before["8"] / before["16"] - 1) < 0.02
    assert all(main(["verify", str(tmp_path / bits)]) == 0 for bits in ("8", "4"))
