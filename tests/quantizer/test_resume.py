"""A stopped quantization goes on where it stopped, or says why not; OUT appears only when it is whole."""

import os
import shutil

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
from squeeze10_quantizer.state_directory import StateDirectory


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
    state, whole = out.with_name("out.partial"), digests(out)
    has_identity = (state / "state.json").is_file()
    assert has_identity == (call < 4)
    assert has_identity or [file.name for file in state.iterdir()] == ["lock"]

    code = main(["quantize", str(tiny_model), str(out), "--calibration", str(text), *SMALL])

    assert code == (0 if has_identity else cli.BAD_DATA)
    assert state.exists() != has_identity
    assert digests(out) == whole


@pytest.fixture
def published(tiny_model, tmp_path, monkeypatch):
    """A command whose run ended between publishing its output and removing its state."""
    command = ["quantize", str(tiny_model), str(tmp_path / "out"), *SMALL]

    def stopping(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StateDirectory, "remove", stopping)
        assert main(command) == cli.STOPPED
    return command


def test_state_beside_a_whole_output_is_removed_by_the_same_command(published, tmp_path, capsys):
    """Tens of gigabytes would stay, and whoever repeats a killed command until it succeeds would repeat it for ever."""
    out, state = tmp_path / "out", tmp_path / "out.partial"
    assert list(state.glob("layer-*"))
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in out.iterdir()}

    assert main(published) == 0

    assert f"{out} was already finished; the state" in capsys.readouterr().out
    assert not state.exists()
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in out.iterdir()} == before


def flip_a_byte(out):
    weights = out / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def replace_by_another_run(out):
    shutil.rmtree(out)
    model = write_tiny_model(out.parent / "other", seed=1)
    assert main(["quantize", str(model), str(out.with_name("of-other")), *SMALL]) == 0
    out.with_name("of-other").rename(out)


def replace_by_a_file(out):
    shutil.rmtree(out)
    out.write_text("mine")


@pytest.mark.parametrize(
    ("spoil", "more", "sentence"),
    [
        pytest.param(lambda out: None, ["--damp-ratio", "0.02"], "with another recipe (damp_ratio: 0.01, now 0.02)"),
        pytest.param(flip_a_byte, [], "model.safetensors differs from its sum in SHA256SUMS"),
        pytest.param(lambda out: (out / "squeeze10_report.json").unlink(), [], "names 'squeeze10_report.json'"),
        pytest.param(replace_by_another_run, [], "(another model ('other', now "),
        pytest.param(replace_by_a_file, [], "is not the whole output of the run whose state is"),
        pytest.param(
            lambda out: (out.with_name("out.partial") / "state.json").unlink(), [], "not overwritten; remove it or"
        ),
    ],
    ids=["another_command", "damaged", "incomplete", "output_of_another_run", "a_file", "state_without_identity"],
)
def test_nothing_is_removed_beside_an_output_unless_it_is_this_run_s(
    published, tmp_path, capsys, spoil, more, sentence
):
    """Days of work may be in the state, and "finished" said of something else would be believed."""
    spoil(tmp_path / "out")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    capsys.readouterr()

    assert main([*published, *more]) == cli.BAD_DATA

    said = capsys.readouterr()
    assert "already finished" not in said.out
    assert "exists already and is not overwritten" in said.err
    assert sentence in said.err
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_damaged_output_beside_its_state_is_written_again_once_it_is_out_of_the_way(published, tmp_path):
    """What the refusal advises works: the state has everything that the output needs."""
    out = tmp_path / "out"
    whole = digests(out)
    flip_a_byte(out)
    assert main(published) == cli.BAD_DATA

    shutil.rmtree(out)
    assert main(published) == 0

    assert digests(out) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_state_of_a_run_that_removes_it_is_left_to_that_run(published, tmp_path, capsys):
    """It may still read what it kept."""
    with lock(tmp_path / "out.partial" / "lock"):
        assert main(published) == cli.BAD_DATA

    assert "another process" in capsys.readouterr().err
    assert list((tmp_path / "out.partial").glob("layer-*"))
