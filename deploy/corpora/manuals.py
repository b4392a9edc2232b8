"""Handbooks and help, of which paragraphs of prose are taken."""

import html
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from corpora.packages import texts
from corpora.paragraphs import Document, pages, prose


def debian_handbook(deb: Path) -> Iterator[Document]:
    return pages(deb, r"/en-US/.*\.html$")


def astronomy(kstars: Path, stellarium: Path) -> Iterator[Document]:
    """The handbook of KStars with its articles, and what peoples see in the sky."""
    for source in texts(kstars, r"/HTML/en/kstars/[^/]*\.docbook$").values():
        yield prose(re.sub(r"&(\w+);", entity, source.replace("&kstars;", "KStars")))
    for source in texts(stellarium, r"description\.en\.[^/]*$").values():
        yield prose(re.sub("<!--.*?-->", "", source, flags=re.DOTALL))


def entity(match: re.Match[str]) -> str:
    """The character that HTML names so; other names are DocBook's own and stand for themselves."""
    character = html.unescape(match[0])
    return match[1] if character == match[0] else character


def application_help(gimp: Path, gnome: Path, png: Path, libreoffice: Path) -> Iterator[Document]:
    """Help of GIMP, GNOME and LibreOffice (but its Basic), and the guide to PNG."""
    yield from chain(pages(gimp, r"/en/.*\.html$"), pages(gnome, r"/C/.*\.page$"), pages(png, r"\.html$"))
    yield from pages(libreoffice, r"^(?!.*/sbasic/).*\.html$", 100)


def rust_and_debian(rust: Path, history: Path, edu: Path) -> Iterator[Document]:
    """The Rust book, the history of Debian and the manual of Debian Edu."""
    yield from chain(pages(rust, r"/html/book/[^/]*\.html$"), pages(history, r"en\.html$"), pages(edu, r"\.html$"))
