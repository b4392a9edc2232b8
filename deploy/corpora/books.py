"""Books."""

import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from corpora.packages import members, texts
from corpora.paragraphs import SKIPPED, Document, grouped, one_line, pages, prose

PARAGRAPHS = 12
"""Paragraphs of a novel that make a document."""

R_STRING = 9
"""Low 16 bits of the flags before a string of R's serialization, whose length follows in 4 bytes."""


def anarchist_faq(deb: Path) -> Iterator[Document]:
    return pages(deb, r"\.html$")


def hacker_culture(deb: Path) -> Iterator[Document]:
    """The chapters of "Copyright Does Not Exist", whose text stands in tables."""
    for source in texts(deb, r"(web|/ottoen)\.htm$").values():
        yield prose(source, skipped=SKIPPED - {"table"})


def austen_novels(deb: Path) -> Iterator[Document]:
    """The six novels, out of R's database of lazily loaded objects."""
    (database,) = members(deb, r"/janeaustenr/data/Rdata\.rdb$").values()
    for stream in zlib_streams(database):
        lines = r_strings(stream)
        # what is shorter is no novel
        if len(lines) > 1000:
            blocks = [one_line(block) for block in "\n".join(lines).split("\n\n")]
            kept = [block for block in blocks if len(block) > 60 and not block.isupper()]
            yield from grouped([block.replace("_", "").replace("--", " - ") for block in kept], PARAGRAPHS)


def zlib_streams(database: bytes) -> Iterator[bytes]:
    """What each object was before it was compressed; its length stands in 4 bytes before."""
    at = 0
    while at + 6 < len(database):
        stream = zlib.decompressobj()
        try:
            yield stream.decompress(database[at + 4 :])
            at = len(database) - len(stream.unused_data)
        except zlib.error:
            at += 1


def r_strings(stream: bytes) -> list[str]:
    """The strings of a serialized R object, none of 5000 bytes or more."""
    found = []
    at = 0
    while at + 8 < len(stream):
        flags, length = struct.unpack_from(">Ii", stream, at)
        end = at + 8 + length
        if flags & 0xFFFF == R_STRING and 0 <= length < 5000 and end <= len(stream):
            found.append(stream[at + 8 : end].decode("utf-8", "replace"))
            at = end
        else:
            at += 1
    return found


def moby_dick(npm: Path) -> Iterator[Document]:
    (text,) = texts(npm, r"^package/moby-dick/data/data\.txt$").values()
    blocks = [one_line(block).replace("--", " - ") for block in re.split(r"\n\s*\n", text)]
    return grouped([block for block in blocks if len(block) > 80], PARAGRAPHS)
