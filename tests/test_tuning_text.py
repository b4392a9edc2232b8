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
