"""The tuned model in deploy/models/ is whole, as small as it says, and still speaks."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from squeeze10_quantizer.cli import main
from squeeze10_quantizer.loading import load_model

MODEL = Path(__file__).parents[1] / "deploy" / "models" / "smollm2-135m-sq10"


def test_every_file_is_as_it_was_made() -> None:
    assert main(["verify", str(MODEL)]) == 0


def test_it_takes_the_bits_that_it_promises(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(MODEL), "--json"]) == 0

    report = json.loads(capsys.readouterr().out)
    linears, table = 30 * 576 * (2 * 576 + 2 * 192 + 3 * 1536), 49152 * 576
    assert report["bits_per_weight"] <= 1.72
    assert (MODEL / "model.safetensors").stat().st_size * 8 <= 1.72 * linears + 4.1 * table
    assert sum(file.stat().st_size for file in MODEL.iterdir()) <= 40_000_000


def test_it_knows_the_capital_of_france_and_ends_by_itself() -> None:
    model = load_model(MODEL, torch.float32, torch.device("cpu"))
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)

    out = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]

    assert tokenizer.decode(out, skip_special_tokens=True) == "The capital of France is Paris."
    assert out[-1] == 2


def test_its_card_is_of_use_elsewhere() -> None:
    """It holds the command that made the model, without a path of the machine that ran it."""
    for name in ("README.md", "squeeze10_report.json", "config.json"):
        text = (MODEL / name).read_text()
        assert "squeeze10 quantize smollm2 OUT " in text or name == "config.json"
        assert not any(path in text for path in ("/tmp/", "/work/", "/root/", "/home/"))
