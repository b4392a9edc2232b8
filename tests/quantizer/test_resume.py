"""A stopped quantization goes on where it stopped, or says why not; OUT appears only when it is whole."""

import os

import pytest
import torch
from tiny_checkpoint import CONFIG
from tiny_model import SMALL, digests, write_tiny_model

from squeeze10_kernels import WeightFormat
from squeeze10_kernels.llama import shape_from_config
from squeeze10_quantizer import cli, pipeline, quantize
from squeeze10_quantizer.cli import main
from squeeze10_quantizer.directory import lock
from squeeze10_quantizer.partial import partial_output


@pytest.fixture
def stop_at_second_layer(monkeypatch):
    """Ctrl-C in the second layer."""
    original = pipeline.quantize_layer

    def stopping(job, layer, index, hidden):
        if index == 1:
            raise KeyboardInterrupt
        return original(job, layer, index, hidden)

    monkeypatch.setattr(pipeline, "quantize_layer", stopping)
    return lambda: monkeypatch.setattr(pipeline, "quantize_layer", original)


@pytest.mark.parametrize("fias", ["--fias", "--no-fias"])
def test_resumed_run_gives_the_same_bytes(tiny_model, tmp_path, stop_at_second_layer, fias, capsys):
    """Hours of work must survive a stop, and must not change the result."""
    out, whole = tmp_path / "a" / "out", tmp_path / "b" / "out"
    arguments = ["quantize", str(tiny_model), str(out), *SMALL, fias]

    assert main(arguments) == cli.STOPPED
    assert "goes on from there" in capsys.readouterr().err
    assert not out.exists()
    stop_at_second_layer()
    assert main(arguments) == 0
    assert main(["quantize", str(tiny_model), str(whole), *SMALL, fias]) == 0

    assert digests(out) == digests(whole)
    assert sorted(path.name for path in out.parent.iterdir()) == ["out"]


def test_what_a_killed_run_was_writing_is_removed(tiny_model, tmp_path, stop_at_second_layer):
    """kill -9 leaves spilled activations, a half-written output and half-written files: gigabytes."""
    out, whole = tmp_path / "a" / "out", tmp_path / "b" / "out"
    assert main(["quantize", str(tiny_model), str(out), *SMALL]) == cli.STOPPED
    state = out.with_name("out.partial")
    for name in ("activations-killed/hidden.bin", "output/model.safetensors", "state.tmp", "layer-00001.tmp"):
        (state / name).parent.mkdir(exist_ok=True)
        (state / name).write_bytes(b"half")
    stop_at_second_layer()

    assert main(["quantize", str(tiny_model), str(out), *SMALL]) == 0
    assert main(["quantize", str(tiny_model), str(whole), *SMALL]) == 0

    assert digests(out) == digests(whole)
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_two_writers_exclude_each_other(tiny_model, tmp_path, capsys):
    """Layers of two runs in one state would be published as one model."""
    out = tmp_path / "out"
    state = out.with_name("out.partial")
    state.mkdir()

    with lock(state / "lock"):
        assert main(["quantize", str(tiny_model), str(out), *SMALL]) == cli.BAD_DATA
    assert "another process" in capsys.readouterr().err

    assert main(["quantize", str(tiny_model), str(out), *SMALL]) == 0


def test_changed_inputs_are_not_mixed_in(tmp_path, stop_at_second_layer, monkeypatch, capsys):
    """Half a checkpoint of one recipe, model or version and half of another would look whole."""
    model, out, text = write_tiny_model(tmp_path / "model"), tmp_path / "out", tmp_path / "text.txt"
    text.write_text("All work and no play. " * 20)
    arguments = ["quantize", str(model), str(out), "--calibration", str(text), *SMALL]
    assert main(arguments) == cli.STOPPED
    stop_at_second_layer()
    capsys.readouterr()

    def refusal(*more):
        assert main([*arguments, *more]) == cli.BAD_DATA
        return capsys.readouterr().err

    assert "another recipe (seed: 0, now 1)" in refusal("--seed", "1")
    assert "another recipe (damp_ratio: 0.01, now 0.02); repeat" in refusal("--damp-ratio", "0.02")
    with monkeypatch.context() as patch:
        patch.setattr(quantize, "version", lambda name: "0")
        assert "another versions (squeeze10-vllm: " in refusal()
        patch.setattr(torch, "get_num_threads", lambda: 77)
        assert "cpu, 77 threads'); another versions" in refusal()
    weights = model / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "another model_sha256 (model.safetensors: " in refusal()
    assert not out.exists()
    weights.write_bytes(content)
    assert main(arguments) == 0


def test_damaged_state_is_quantized_again(tiny_model, tmp_path, stop_at_second_layer):
    """A layer file cut short by a full disk does not end up in the output."""
    out, whole = tmp_path / "a" / "out", tmp_path / "b" / "out"
    assert main(["quantize", str(tiny_model), str(out), *SMALL]) == cli.STOPPED
    kept = out.with_name("out.partial") / "layer-00000.safetensors"
    kept.write_bytes(kept.read_bytes()[:-10])
    stop_at_second_layer()

    assert main(["quantize", str(tiny_model), str(out), *SMALL]) == 0
    assert main(["quantize", str(tiny_model), str(whole), *SMALL]) == 0

    assert digests(out) == digests(whole)


@pytest.mark.parametrize("kept", [0, 4, 60, -1], ids=["empty", "in_length", "in_header", "last_byte"])
def test_damaged_state_of_a_distillation_is_left_out(tmp_path, kept):
    """It begins anew instead of ending in an error that only deleting the file would end."""

    class Run:
        def state(self):
            return {"weight": torch.ones(8)}

        def load(self, state):
            assert state["weight"].tolist() == [1.0] * 8

    with partial_output(tmp_path / "out", {}, WeightFormat(), shape_from_config(CONFIG)) as partial:
        partial.save_distillation(Run(), 1.5)
        assert partial.take_up(Run()) == 1.5
        partial.distillation.write_bytes(partial.distillation.read_bytes()[:kept])

        assert partial.take_up(Run()) is None


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_a_run_killed_while_it_removes_its_state(tiny_model, tmp_path, monkeypatch, call):
    """Layers without the identity they belong to would become part of another recipe's output."""
    out, text = tmp_path / "out", tmp_path / "text.txt"
    text.write_text("All work and no play. " * 20)
    original, calls = os.unlink, []

    def unlink(*arguments, **named):
        if out.exists():
            calls.append(arguments)
        if len(calls) == call:
            raise KeyboardInterrupt
        original(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        assert main(["quantize", str(tiny_model), str(out), "--calibration", str(text), *SMALL]) == cli.STOPPED
    state = out.with_name("out.partial")
    if list(state.glob("layer-*")):
        assert (state / "state.json").is_file()
