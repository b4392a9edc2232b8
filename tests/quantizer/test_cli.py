"""What a user meets: exit codes, one sentence on bad input, JSON that scripts can read, files others can read."""

import json
import math
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoint import byte_tokenizer
from tiny_model import SMALL
from transformers import AutoModelForCausalLM

from squeeze10_kernels import dequantize, open_checkpoint
from squeeze10_quantizer.cli import BAD_DATA, IO_ERROR, by_name, main


def rewrite_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def remove_tensor(folder, name):
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")


def to_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def set_nan(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, folder / "model.safetensors")


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        pytest.param(to_pickle, "holds its weights as pickles (pytorch_model.bin)", id="bin_only"),
        pytest.param(
            lambda folder: rewrite_config(folder, quantization_config={"quant_method": "gptq"}),
            "already quantized (quant_method gptq)",
            id="already_quantized",
        ),
        pytest.param(
            lambda folder: rewrite_config(folder, architectures=["BertModel"]),
            "architectures must be",
            id="other_family",
        ),
        pytest.param(lambda folder: rewrite_config(folder, hidden_size=256), "by config.json", id="other_config"),
        pytest.param(
            lambda folder: remove_tensor(folder, "model.layers.1.mlp.up_proj.weight"),
            "model.layers.1.mlp.up_proj.weight is missing",
            id="missing_tensor",
        ),
        pytest.param(cut, "damaged or cut short", id="truncated"),
        pytest.param(set_nan, "model.layers.1.mlp.up_proj.weight holds NaN", id="nan_weight"),
        pytest.param(lambda folder: shutil.rmtree(folder), "is not a directory", id="no_directory"),
        pytest.param(lambda folder: (folder / "config.json").unlink(), "has no config.json", id="no_config"),
        pytest.param(lambda folder: (folder / "config.json").write_text("{"), "must hold JSON", id="broken_config"),
        pytest.param(lambda folder: rewrite_config(folder, auto_map={"x": "y"}), "auto_map", id="own_code"),
    ],
)
def test_unusable_model_is_refused_with_a_sentence(tiny_model, tmp_path, capsys, spoil, sentence):
    """Exit 65, one line that names the place, no OUT."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    spoil(model)

    assert main(["quantize", str(model), str(tmp_path / "out"), *SMALL]) == BAD_DATA

    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("squeeze10: ")
    assert str(model) in error
    assert sentence in error
    assert not (tmp_path / "out").exists()


def test_existing_output_is_not_touched(tiny_model, tmp_path, capsys):
    """Nothing is ever overwritten."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")

    assert main(["quantize", str(tiny_model), str(tmp_path / "out"), *SMALL]) == BAD_DATA

    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_unwritable_place_is_an_io_error(tiny_model, tmp_path, capsys):
    """Exit 74: a file where the output's directory should be."""
    (tmp_path / "file").write_text("")

    assert main(["quantize", str(tiny_model), str(tmp_path / "file" / "out"), *SMALL]) == IO_ERROR

    assert "Reading or writing failed" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["quantize"], ["quantize", "a", "b", "--mask", "rows"], ["nonsense"]])
def test_wrong_usage_exits_with_2(arguments):
    """As every command does."""
    with pytest.raises(SystemExit, match="2"):
        main(arguments)


@pytest.mark.parametrize("flag", [["--salient-ratio", "1.5"], ["--samples", "0"], ["--device", "abacus"]])
def test_impossible_values_are_refused(tiny_model, tmp_path, capsys, flag):
    """Before any work."""
    assert main(["quantize", str(tiny_model), str(tmp_path / "out"), *SMALL, *flag]) == BAD_DATA
    assert not (tmp_path / "out").exists()


def test_inspect_counts_every_stored_byte(tiny_quantized, capsys):
    """Independently: the file's size, less the tensors that are stored as they are and the header's frame."""
    assert main(["inspect", str(tiny_quantized), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)

    raw = (tiny_quantized / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    metadata = header.pop("__metadata__")
    dense = {name: entry for name, entry in header.items() if "_proj." not in name}
    dense_bytes = sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in dense.values())
    frame = len(json.dumps(dense | {"__metadata__": metadata}, separators=(",", ":")))
    weights = sum(layer["shape"][0] * layer["shape"][1] for layer in summary["layers"])
    expected = 8 * (len(raw) - 8 - dense_bytes - frame) / weights
    assert summary["bits_per_weight"] == pytest.approx(expected, abs=0.01)
    assert summary["bits_per_weight"] > 1.6
    assert summary["format_version"] == 1
    assert 0.15 < summary["salient_ratio"] < 0.26
    assert len(summary["layers"]) == 14
    assert all(0 < layer["relative_output_error"] < 0.5 for layer in summary["layers"])


def test_files_are_readable_by_others(tiny_quantized):
    """safetensors writes mode 0600, which a server under another user cannot read."""
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in tiny_quantized.iterdir())


def test_dequantize_is_bit_equal_to_the_reference(tiny_quantized, tmp_path):
    """And a plain model for transformers, no key of ours left."""
    assert main(["dequantize", str(tiny_quantized), str(tmp_path / "plain")]) == 0

    tensors = load_file(tmp_path / "plain" / "model.safetensors")
    checkpoint = open_checkpoint(tiny_quantized)
    for name in checkpoint.linears:
        assert torch.equal(tensors[f"{name}.weight"], dequantize(checkpoint.layer(name)).bfloat16())
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    AutoModelForCausalLM.from_pretrained(tmp_path / "plain")


def test_eval_equals_transformers_for_both_kinds(tiny_model, tiny_quantized, tmp_path, capsys):
    """Perplexity written out here, over the same windows, for the plain model and the checkpoint."""
    text = tmp_path / "text.txt"
    text.write_text("A quick brown fox jumps over the lazy dog. " * 8)
    ids = torch.tensor(byte_tokenizer()(text.read_text())["input_ids"][:200]).view(4, 50)
    checkpoint = open_checkpoint(tiny_quantized)
    original = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    quantized = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    for name in checkpoint.linears:
        quantized.get_submodule(name).weight.data = dequantize(checkpoint.layer(name))

    for folder, model in ((tiny_model, original), (tiny_quantized, quantized)):
        command = ["eval", str(folder), "--text", str(text), "--context", "50", "--max-tokens", "220", "--json"]
        assert main([*command, "--device", "cpu"]) == 0
        result = json.loads(capsys.readouterr().out)

        with torch.no_grad():
            loss = model(ids, labels=ids).loss
        assert result["tokens"] == 4 * 49
        assert result["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)


def test_eval_against_the_original(tiny_model, tiny_quantized, tmp_path, capsys):
    """Divergence and agreement written out here, over the same windows; of a model from itself: none."""
    text = tmp_path / "text.txt"
    text.write_text("A quick brown fox jumps over the lazy dog. " * 8)
    ids = torch.tensor(byte_tokenizer()(text.read_text())["input_ids"][:200]).view(4, 50)
    assert main(["dequantize", str(tiny_quantized), str(tmp_path / "plain")]) == 0
    capsys.readouterr()
    windows = ["--text", str(text), "--context", "50", "--max-tokens", "220", "--against", str(tiny_model), "--json"]

    found = {}
    for folder in (tiny_model, tmp_path / "plain"):
        assert main(["eval", str(folder), *windows, "--device", "cpu"]) == 0
        found[folder.name] = json.loads(capsys.readouterr().out)

    wanted, ours = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits[:, :-1].detach().softmax(-1)
        for folder in (tiny_model, tmp_path / "plain")
    )
    divergence = (wanted * (wanted / ours).log()).sum(-1).mean()
    assert found["plain"]["divergence"] == pytest.approx(float(divergence), rel=1e-4)
    assert found["plain"]["agreement"] == pytest.approx(float((wanted.argmax(-1) == ours.argmax(-1)).float().mean()))
    assert 0 < found["plain"]["agreement"] < 1
    assert found[tiny_model.name]["agreement"] == 1
    assert found[tiny_model.name]["divergence"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("/home/me/wiki.txt", "wiki.txt"),
        ("--text=/home/me/wiki.txt", "--text=wiki.txt"),
        ("--seed", "--seed"),
        ("3", "3"),
    ],
)
def test_reports_hold_no_paths_of_the_user(word, shown):
    """The command goes into the model card, which is published."""
    assert by_name(word) == shown


def test_eval_against_needs_a_text(tiny_model, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["eval", str(tiny_model), "--tasks", "boolq", "--task-data", "x", "--against", str(tiny_model)])

    assert exit_.value.code == 2
    assert "--against needs --text" in capsys.readouterr().err


def test_verify_accepts_a_whole_checkpoint_and_names_a_changed_byte(tiny_quantized, tmp_path, capsys):
    """A flipped bit in a code is invisible to everything but the sums."""
    assert main(["verify", str(tiny_quantized)]) == 0
    copy = tmp_path / "copy"
    shutil.copytree(tiny_quantized, copy)
    raw = bytearray((copy / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (copy / "model.safetensors").write_bytes(raw)

    assert main(["verify", str(copy)]) == BAD_DATA

    assert "model.safetensors differs from its sum" in capsys.readouterr().err


def test_a_reader_that_has_enough_is_no_error(tiny_quantized):
    """`squeeze10 inspect CKPT | head -0`: it ends long before the first line is written."""
    script = (
        f"import sys; from squeeze10_quantizer.cli import main; sys.exit(main(['inspect', {str(tiny_quantized)!r}]))"
    )
    command = [sys.executable, "-u", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, errors = process.communicate()

    assert errors == b""
    assert process.returncode == 141
