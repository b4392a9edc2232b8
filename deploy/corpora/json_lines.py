"""Documents as JSON lines of bounded size, and an evenly spaced part of the lines."""

import json
from collections.abc import Iterable, Iterator

from corpora.paragraphs import Document

LINE = 4000
"""Characters after which a line ends: far more than a context of the tuning, so that a line is read in order."""

LONGEST = 20_000
"""Characters of a document after which it is cut; no line has more than `LINE` and `LONGEST` together."""


def json_line(text: str) -> str:
    return json.dumps({"text": text}, ensure_ascii=False)


def packed(documents: Iterable[Document]) -> Iterator[str]:
    """JSON lines of whole documents, an empty line after each; long ones are cut at a line's end or at a space."""
    held: list[str] = []
    for document in documents:
        for piece in pieces("\n".join(document)):
            held.append(piece)
            if sum(map(len, held)) > LINE:
                yield json_line("\n\n".join(held) + "\n\n")
                held.clear()
    if held:
        yield json_line("\n\n".join(held) + "\n\n")


def pieces(text: str) -> Iterator[str]:
    """Parts of at most `LONGEST` characters, without the white space between them."""
    while len(text) > LONGEST:
        cut = text.rfind("\n", 0, LONGEST)
        # an early line break would leave next to nothing
        if cut <= LONGEST // 4:
            cut = text.rfind(" ", 0, LONGEST)
        if cut <= 0:
            cut = LONGEST
        yield text[:cut]
        text = text[cut:].lstrip()
    yield text


def evenly_spaced(lines: list[str], characters: int | None) -> list[str]:
    """As many lines as have about this many characters together, the same distance between them; None keeps all."""
    total = sum(map(len, lines))
    if characters is None or total <= characters:
        return lines
    count = len(lines) * characters // total
    return [lines[i * len(lines) // count] for i in range(count)]
