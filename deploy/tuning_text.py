"""Text to tune on, without what an evaluation asks: passages that share 13 words in a row are left out.

    python deploy/tuning_text.py OUT --text FILE ... --without FILE ... [--questions FILE] [--held-out 0.08]

Writes OUT/tune.txt, and the last part of every file to OUT/held-out.txt, which recipes are chosen on; of JSON lines,
which `squeeze10 generate` writes, OUT/NAME with those that stay. A passage is a line of text or of JSON lines; words
are compared in lower case without punctuation, and what has fewer of them is not looked for, except the lines of
--questions, which nothing may hold.
"""

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WORDS = 13


def words_of(text: str) -> list[str]:
    """Its words, to be compared."""
    return re.findall(r"[a-z0-9]+", text.lower())


@dataclass(frozen=True, slots=True)
class Forbidden:
    """What no passage may share.

    Attributes:
        grams: Hashes of runs of `WORDS` words.
        questions: Each its words with spaces between and around.
    """

    grams: set[int]
    questions: list[str]

    def touches(self, passage: str) -> bool:
        """Whether a passage shares something."""
        spaced = f" {' '.join(words_of(passage))} "
        return any(question in spaced for question in self.questions) or not self.grams.isdisjoint(grams(passage))

    def touches_line(self, line: str) -> bool:
        """Whether a string in a line of JSON does."""
        return any(map(self.touches, strings(json.loads(line))))


def read_forbidden(evaluation: list[Path], questions: Path | None) -> Forbidden:
    lines = questions.read_text(encoding="utf-8").splitlines() if questions else []
    spaced = [f" {' '.join(words)} " for words in map(words_of, lines) if words]
    return Forbidden({gram for file in evaluation for text in texts_of(file) for gram in grams(text)}, spaced)


def grams(text: str, length: int = WORDS) -> Iterator[int]:
    """Hashes of all runs of so many words."""
    words = words_of(text)
    return (hash(tuple(words[i : i + length])) for i in range(len(words) - length + 1))


def texts_of(file: Path) -> Iterator[str]:
    """The strings of a JSON-lines file, or the whole of any other."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".jsonl":
        for line in filter(str.strip, text.split("\n")):
            yield from strings(json.loads(line))
    else:
        yield text


def strings(value: object) -> Iterator[str]:
    """All strings inside a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def write_text(file: Path, forbidden: Forbidden, out: Path, held_out: float) -> None:
    """Append what stays of a text to tune.txt, and its end to held-out.txt."""
    text = file.read_text(encoding="utf-8")
    kept = "\n".join(line for line in text.split("\n") if not forbidden.touches(line))
    edge = kept.find("\n", int(len(kept) * (1 - held_out))) + 1 or len(kept)
    for name, part in (("tune.txt", kept[:edge]), ("held-out.txt", kept[edge:])):
        with (out / name).open("a", encoding="utf-8") as target:
            target.write(part)
    print(f"{file.name}: {len(text) - len(kept)} of {len(text)} characters left out", flush=True)


def write_lines(file: Path, forbidden: Forbidden, out: Path) -> None:
    """Copy the JSON lines that stay."""
    lines = [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    kept = [line for line in lines if not forbidden.touches_line(line)]
    (out / file.name).write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    print(f"{file.name}: {len(lines) - len(kept)} of {len(lines)} texts left out", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--without", type=Path, nargs="+", required=True)
    parser.add_argument("--questions", type=Path)
    parser.add_argument("--held-out", type=float, default=0.08, help="part of every text file")
    options = parser.parse_args()
    names = [file.name for file in options.text if file.suffix == ".jsonl"]
    if len(set(names)) < len(names):
        parser.error("files of JSON lines must have different names; they land in one folder")
    forbidden = read_forbidden(options.without, options.questions)
    options.out.mkdir(parents=True)
    for file in options.text:
        if file.suffix == ".jsonl":
            write_lines(file, forbidden, options.out)
        else:
            write_text(file, forbidden, options.out, options.held_out)


if __name__ == "__main__":
    main()
