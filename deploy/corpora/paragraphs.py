"""Paragraphs of prose out of marked-up files."""

import re
import unicodedata
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from corpora.packages import texts

Document = list[str]
"""Paragraphs, in order."""

# fmt: off
BLOCKS = frozenset((
    "p", "div", "li", "dd", "dt", "blockquote", "h1", "h2", "h3", "h4", "h5", "h6", "tr", "td", "br", "para",
    "simpara", "title", "listitem", "section", "item", "page", "note", "body", "desc", "ul", "ol", "dl", "table",
    "figure", "pre"
))
# fmt: on
"""Elements of HTML, DocBook and Mallard that end a paragraph."""

# fmt: off
SKIPPED = frozenset((
    "script", "style", "pre", "table", "head", "nav", "header", "footer", "h1", "h2", "h3", "h4", "h5", "h6", "title",
    "screen", "programlisting", "literallayout", "info", "sectioninfo", "media", "mediaobject", "indexterm", "links",
    "informaltable", "synopsis", "sup", "button", "svg", "math", "code-block", "bookinfo", "sect1info", "chapterinfo",
    "authorgroup", "comment"
))
# fmt: on
"""Elements whose text is no prose."""

INVISIBLE = str.maketrans({"\u00a0": " ", "\u200b": None, "\ufeff": None, "\u00ad": None})


class ParagraphParser(HTMLParser):
    """Collects the text between the edges of blocks, but for what is inside skipped elements."""

    def __init__(self, skipped: frozenset[str]) -> None:
        super().__init__(convert_charrefs=True)
        self.skipped = skipped
        self.inside: list[str] = []
        self.text: list[str] = []
        self.paragraphs: list[str] = []

    def end_paragraph(self) -> None:
        paragraph = one_line("".join(self.text))
        self.text.clear()
        if paragraph:
            self.paragraphs.append(paragraph)

    def meet(self, tag: str) -> None:
        if tag in BLOCKS and not self.inside:
            self.end_paragraph()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.meet(tag)
        if tag in self.skipped:
            self.inside.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.meet(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.inside:
            while self.inside.pop() != tag:
                pass
        self.meet(tag)

    def handle_data(self, data: str) -> None:
        if not self.inside:
            self.text.append(data)


def paragraphs(source: str, skipped: frozenset[str] = SKIPPED) -> list[str]:
    """Every non-empty paragraph of HTML, DocBook or Mallard, each one line."""
    parser = ParagraphParser(skipped)
    parser.feed(source)
    parser.end_paragraph()
    return parser.paragraphs


def prose(source: str, least: int = 80, skipped: frozenset[str] = SKIPPED) -> Document:
    """The paragraphs that are prose."""
    return [paragraph for paragraph in paragraphs(source, skipped) if is_prose(paragraph, least)]


def pages(archive: Path, pattern: str, least: int = 80) -> Iterator[Document]:
    """The prose of every marked-up file of an archive whose name holds a regular expression."""
    return (prose(source, least) for source in texts(archive, pattern).values())


def is_prose(text: str, least: int = 80) -> bool:
    """Whether it is long enough, mostly letters, mostly lower case, ends as a sentence and has no monster of a word."""
    if len(text) < least:
        return False
    words = text.split()
    if len(words) < 10 or max(map(len, words)) > 60:
        return False
    plain = sum(character.isalpha() or character == " " for character in text)
    small = sum(map(str.islower, text))
    return plain >= 0.85 * len(text) and small > 0.48 * len(text) and text[-1] in ".!?:;\"')”’"


def one_line(text: str) -> str:
    """Every run of white space one space, none at the ends."""
    return re.sub(r"\s+", " ", text).strip()


def tidy(text: str) -> str:
    """NFC; no invisible or control character; every run of spaces one space, none at the ends."""
    visible = unicodedata.normalize("NFC", text).translate(INVISIBLE)
    return re.sub(r"[ \t]+", " ", re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", " ", visible)).strip()


def gathered(parts: list[str], least: int) -> Document:
    """Parts joined until each paragraph is longer than `least` characters; the last one may be shorter."""
    document: Document = []
    held = ""
    for part in parts:
        held = f"{held} {part}".strip()
        if len(held) > least:
            document.append(held)
            held = ""
    return [*document, held] if held else document


def grouped(document: Document, size: int) -> Iterator[Document]:
    """Documents of `size` paragraphs."""
    return (document[begin : begin + size] for begin in range(0, len(document), size))
