"""Calibration text in every form, deterministic, and refused with a sentence when it will not do."""

import json

import pytest
import torch
from safetensors.torch import save_file
from tiny_checkpoint import byte_tokenizer

from squeeze10_kernels import BadInput
from squeeze10_quantizer.calibration import load_calibration

TEXT = "In the beginning was the word. " * 40


def load(files, samples=3, context=32, seed=0):
    return load_calibration(files, byte_tokenizer(), samples=samples, context=context, seed=seed)


def test_default_text_needs_no_file():
    """Offline by default; the seed decides the windows."""
    calibration = load([])

    assert calibration.tokens.shape == (3, 32)
    assert torch.equal(calibration.tokens, load([]).tokens)
    assert not torch.equal(calibration.tokens, load([], seed=1).tokens)


def test_text_windows_are_the_texts_own_tokens(tmp_path):
    """Every window is a stretch of the text."""
    file = tmp_path / "some.txt"
    file.write_text(TEXT)
    tokenizer = byte_tokenizer()

    for window in load([file]).tokens:
        assert tokenizer.decode(window) in TEXT


def test_chat_messages_go_through_the_template(tmp_path):
    """A chat model is calibrated on what it will see."""
    file = tmp_path / "chat.jsonl"
    file.write_text(json.dumps({"messages": [{"role": "user", "content": "x" * 210}]}) + "\n\n")

    tokens = load([file], samples=1, context=200).tokens

    assert byte_tokenizer().decode(tokens[0]).startswith("user: xxx")


def test_token_file_is_taken_as_it_is(tmp_path):
    """Researchers bring their own tokens."""
    file = tmp_path / "tokens.safetensors"
    ids = torch.arange(200).view(4, 50) % 256
    save_file({"input_ids": ids}, file)

    assert torch.equal(load([file]).tokens, ids[:3, :32])


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("short.txt", b"too short", "9 tokens"),
        ("latin.txt", b"\xff\xfe\xe9", "must be UTF-8"),
        ("bad.jsonl", b'{"text": "fine"}\n{oops', "line 2, must hold JSON"),
        ("shape.jsonl", b'{"texts": 1}', "messages .a list. or text"),
        ("roles.jsonl", b'{"messages": [{"content": "x"}]}', "role and content"),
        ("cut.safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00", "must be a safetensors file"),
    ],
)
def test_unusable_file_is_named(tmp_path, name, content, sentence):
    """One sentence with the file's name."""
    file = tmp_path / name
    file.write_bytes(content)

    with pytest.raises(BadInput, match=sentence):
        load([file])


def test_missing_file_is_named(tmp_path):
    """Not a traceback."""
    with pytest.raises(BadInput, match=r"nowhere\.txt does not exist"):
        load([tmp_path / "nowhere.txt"])


def test_token_ids_beyond_the_vocabulary_are_refused(tmp_path):
    """They would read outside the embedding."""
    file = tmp_path / "tokens.safetensors"
    save_file({"input_ids": torch.full((3, 32), 10**6)}, file)

    with pytest.raises(BadInput, match="token ids must lie in"):
        load([file])
