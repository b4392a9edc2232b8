"""`squeeze10 generate` writes what the model says, and `squeeze10 quantize` reads it."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_model import SMALL
from transformers import AutoModelForCausalLM, AutoTokenizer

from squeeze10_quantizer import generation
from squeeze10_quantizer.calibration import read_documents
from squeeze10_quantizer.cli import BAD_DATA, STOPPED, main
from squeeze10_quantizer.generation import OPENERS, Writer, cut, lines

MERGING = Path(__file__).parents[2] / "deploy" / "models" / "smollm2-135m-sq10"
LICENSE = str(Path(__file__).parents[2] / "LICENSE")


def generate(model: Path, out: Path, *more: str) -> int:
    sizes = ["--tokens", "320", "--context", "64", "--batch", "4", "--device", "cpu"]
    return main(["generate", str(model), str(out), "--text", LICENSE, *sizes, *more])


def texts_of(file: Path) -> list[str]:
    return [json.loads(line)["text"] for line in file.read_text().splitlines()]


def test_texts_go_on_from_real_words_and_chats_from_the_template(tiny_model: Path, tmp_path: Path) -> None:
    assert generate(tiny_model, tmp_path / "a.jsonl") == 0

    texts = texts_of(tmp_path / "a.jsonl")
    chats = [text for text in texts if text.startswith("user: ")]
    assert 0 < len(chats) <= len(texts) / 2
    assert all("\nassistant: " in text for text in chats)
    assert all(text[:24] in Path(LICENSE).read_text() for text in texts if text not in chats)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    assert sum(len(tokenizer(text)["input_ids"]) for text in texts) >= 320


def test_without_chats_no_text_is_one(tiny_model: Path, tmp_path: Path) -> None:
    assert generate(tiny_model, tmp_path / "a.jsonl", "--no-chats") == 0

    assert not any(text.startswith("user: ") for text in texts_of(tmp_path / "a.jsonl"))


def test_a_template_that_hides_the_user_is_refused(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{{ 'hello' }}"
    tokenizer.save_pretrained(model)

    assert generate(model, tmp_path / "a.jsonl") == BAD_DATA

    assert "--no-chats" in capsys.readouterr().err
    assert generate(model, tmp_path / "a.jsonl", "--no-chats") == 0


def test_users_begin_with_plain_questions(tiny_model: Path, tmp_path: Path) -> None:
    assert generate(tiny_model, tmp_path / "a.jsonl", "--batch", "32") == 0

    chats = [text for text in texts_of(tmp_path / "a.jsonl") if text.startswith("user: ")]
    assert {"What is", "Who", "How"} <= {word for word in OPENERS for chat in chats if chat[6:].startswith(word)}


@pytest.mark.parametrize("begin", ["[INST] ", "USER: ", "<|im_start|>user\n", ""])
def test_a_question_is_whole_whatever_stands_before_it(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, begin: str
) -> None:
    """A space before the first word is a part of it to most tokenizers."""
    tokenizer = AutoTokenizer.from_pretrained(MERGING)
    tokenizer.chat_template = begin + "{{ messages[0]['content'] }}" + "{% if add_generation_prompt %} GO{% endif %}"
    writer = Writer(AutoModelForCausalLM.from_pretrained(tiny_model), tokenizer, temperature=1.0)
    end = tokenizer.eos_token_id
    ids = [tokenizer(f"{begin}{words} is the moon?")["input_ids"] + [end] for words in ("What", "Who", "")]
    monkeypatch.setattr(Writer, "complete", lambda *_: ids)

    assert writer.questions(3) == [
        f"{begin}{words} is the moon? GO".replace("  ", " ") for words in ("What", "Who")
    ] + [f"{begin}is the moon? GO"]


def test_few_questions_at_a_time_begin_in_all_ways(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model), 1.0)
    asked: list[str] = []
    monkeypatch.setattr(Writer, "complete", lambda _, prompts, __: asked.extend(prompts) or [[1]] * len(prompts))

    for _ in range(len(OPENERS)):
        writer.questions(1)

    assert [prompt.removeprefix("user: ") for prompt in asked] == list(OPENERS)


def test_a_low_temperature_gives_the_likeliest_text(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    prompt = "Licensed works"

    (cold,) = Writer(model, tokenizer, temperature=1e-4).complete([prompt], 20)

    greedy = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=20, do_sample=False)[0].tolist()
    assert cold == greedy
    assert Writer(model, tokenizer, temperature=1.0).complete([prompt], 20) != [greedy]


def test_a_seed_gives_one_text(tiny_model: Path, tmp_path: Path) -> None:
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert generate(tiny_model, tmp_path / name, "--seed", seed) == 0

    first, again, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == again
    assert first != other


def test_quantize_distills_on_it(tiny_model: Path, tmp_path: Path) -> None:
    assert generate(tiny_model, tmp_path / "a.jsonl") == 0
    tune = ["--tune", "distill", "--tune-steps", "2", "--distill-tokens", "256"]
    text = ["--distill-text", str(tmp_path / "a.jsonl"), LICENSE]

    assert main(["quantize", str(tiny_model), str(tmp_path / "out"), *SMALL, *tune, *text]) == 0

    report = json.loads((tmp_path / "out" / "squeeze10_report.json").read_text())
    assert report["distillation"] == "a.jsonl, LICENSE"


def test_a_text_ends_where_the_model_ended_it() -> None:
    """LLaMA 3 has several tokens for that; what follows is padding."""
    assert cut([1, 2], [3, 9, 9, 9], {9}) == [1, 2, 3, 9]
    assert cut([9, 2], [3, 4], {9}) == [9, 2, 3, 4]
    assert cut([1], [2, 8, 9], {8, 9}) == [1, 2, 8]
    assert cut([1], [2], set()) == [1, 2]


def test_every_character_survives_the_file(tiny_model: Path, tmp_path: Path) -> None:
    """U+2028 ends a line for Python's splitlines, not for JSON."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    text = "one\u2028two\u0085three\u2029four\nfive"
    (tmp_path / "a.jsonl").write_text("".join(lines([tokenizer(text)["input_ids"]], tokenizer)), encoding="utf-8")

    assert read_documents(tmp_path / "a.jsonl", tokenizer) == [text]


def test_nothing_is_left_of_a_stopped_run(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generation, "lines", stop)

    assert generate(tiny_model, tmp_path / "a.jsonl") == STOPPED
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "more", [["--tokens", "0"], ["--context", "0"], ["--temperature", "0"], ["--text", "absent.txt"]]
)
def test_nothing_is_left_of_a_refused_run(
    tiny_model: Path, tmp_path: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(tiny_model, tmp_path / "a.jsonl", *more) == BAD_DATA
    assert len(capsys.readouterr().err.strip().splitlines()[-1]) > 20
    assert not (tmp_path / "a.jsonl").exists()

    assert list(tmp_path.iterdir()) == []

    (tmp_path / "a.jsonl").write_text("kept")
    assert generate(tiny_model, tmp_path / "a.jsonl") == BAD_DATA
    assert (tmp_path / "a.jsonl").read_text() == "kept"
