"""No model is tuned on what it is measured on."""

import json
import subprocess
import sys
from pathlib import Path

import tuning_text

NUMBERS = [f"word{i}" for i in range(40)]


def test_passages_of_the_evaluation_are_left_out(tmp_path: Path) -> None:
    """Also where case, punctuation and line ends differ, and in JSON lines."""
    thirteen, twelve = " ".join(NUMBERS[:13]), " ".join(NUMBERS[20:32])
    (tmp_path / "eval.txt").write_text(f"before\n{thirteen.upper()}, after {twelve} !\n")
    query = {"query": " ".join(NUMBERS[5:25]), "choices": ["no"]}
    (tmp_path / "eval.jsonl").write_text(json.dumps(query) + "\n")
    kept = [f"mine {twelve} mine", "another line", "one\N{EM DASH}two"]
    lost = [f"x {thirteen.replace(' ', ', ')}. y", " ".join(NUMBERS[6:20])]
    (tmp_path / "text.txt").write_text("\n".join([kept[0], lost[0], kept[1], lost[1], kept[2]]) + "\n")
    script = [sys.executable, tuning_text.__file__, str(tmp_path / "out"), "--text", str(tmp_path / "text.txt")]
    files = ["--without", str(tmp_path / "eval.txt"), str(tmp_path / "eval.jsonl"), "--held-out", "0"]

    subprocess.run([*script, *files], check=True)

    assert (tmp_path / "out" / "tune.txt").read_text() == "\n".join(kept) + "\n"


def test_what_is_held_out_is_not_tuned_on(tmp_path: Path) -> None:
    (tmp_path / "eval.txt").write_text("nothing")
    lines = [f"line {i}\n" for i in range(100)]
    (tmp_path / "text.txt").write_text("".join(lines))
    files = ["--text", str(tmp_path / "text.txt"), "--without", str(tmp_path / "eval.txt")]

    subprocess.run([sys.executable, tuning_text.__file__, str(tmp_path / "out"), *files], check=True)

    tune, held_out = ((tmp_path / "out" / name).read_text() for name in ("tune.txt", "held-out.txt"))
    assert tune + held_out == "".join(lines)
    assert 4 < held_out.count("\n") < 12


def test_no_generated_text_asks_what_is_asked_at_the_end(tmp_path: Path) -> None:
    """Nor shares 13 words with an evaluation; a line break is no part of a word there."""
    (tmp_path / "eval.txt").write_text(" ".join(NUMBERS[:13]))
    (tmp_path / "questions.txt").write_text("What do bees make?\nHow many?\n")
    kept = [{"text": "user\nWhat did bees make"}, {"text": "however\nHow manyfold\u2028x"}, {"text": ""}]
    lost = [{"text": "user\nwhat do bees, make"}, {"text": "a\nhow many x"}, {"text": "\n".join(NUMBERS[:13])}]
    lost += [{"messages": [{"role": "user", "content": "How many?"}]}]
    rows = [kept[0], *lost[:2], kept[1], *lost[2:], kept[2]]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    script = [sys.executable, tuning_text.__file__, str(tmp_path / "out"), "--text", str(tmp_path / "said.jsonl")]
    files = ["--without", str(tmp_path / "eval.txt"), "--questions", str(tmp_path / "questions.txt")]

    subprocess.run([*script, *files], check=True)

    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "said.jsonl").write_text("")
    twice = subprocess.run([*script, str(tmp_path / "b" / "said.jsonl"), *files], capture_output=True, check=False)
    assert twice.returncode == 2
    assert b"different names" in twice.stderr
    assert [json.loads(line) for line in (tmp_path / "out" / "said.jsonl").read_text().strip().split("\n")] == kept
