"""A model directory that cannot become a checkpoint is refused before any work; what is harmless in it is not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import SMALL, write_tiny_model

from squeeze10_quantizer import quantize as quantize_module
from squeeze10_quantizer.cli import BAD_DATA, main


def edit_config(model: Path, **changes: object) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def infinite(name: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        tensors = load_file(model / "model.safetensors")
        tensors[name].view(-1)[5] = torch.inf
        save_file(tensors, model / "model.safetensors")

    return change


REFUSED = {
    "infinite_norm": infinite("model.norm.weight"),
    "infinite_embeddings": infinite("model.embed_tokens.weight"),
    "many_labels": lambda model: edit_config(model, num_labels=20_000),
    "another_model_type": lambda model: edit_config(model, model_type="mistral"),
    "unknown_activation": lambda model: edit_config(model, hidden_act="nonsense"),
    "unknown_rotary_embedding": lambda model: edit_config(model, rope_scaling={"type": "su"}),
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED.keys())
def test_what_the_export_would_refuse_is_refused_at_once(
    change: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Layers take hours, and the same command would end the same way again."""
    model = write_tiny_model(tmp_path / "model")
    change(model)
    monkeypatch.setattr(quantize_module, "quantize_all", lambda *_: pytest.fail("work was done"))

    assert main(["quantize", str(model), str(tmp_path / "out"), *SMALL]) == BAD_DATA

    (sentence,) = capsys.readouterr().err.strip().splitlines()
    assert str(model) in sentence
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_harmless_files_and_entries_are_taken(tmp_path: Path) -> None:
    """Of other formats and of editors; entries that are null, or of other releases of transformers."""
    model = write_tiny_model(tmp_path / "model")
    edit_config(model, quantization_config=None, rope_scaling=None, pretraining_tp=1, head_dim=None)
    (model / ".#config.json").symlink_to("nobody@nowhere")
    for name in ("pytorch_model.bin", "tokenizer.bin"):
        (model / name).write_bytes(b"of another format")

    assert main(["quantize", str(model), str(tmp_path / "out"), *SMALL]) == 0

    assert main(["verify", str(tmp_path / "out")]) == 0
    assert not list((tmp_path / "out").glob("*.bin"))
