"""The World Factbook: paragraphs about countries, and questions with their answers."""

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from corpora.packages import members
from corpora.paragraphs import Document, is_prose

Country = dict[str, Any]
"""Sections of fields of fields; the innermost have a `text`."""

QUESTIONS = [
    ("Where is {}?", ("Geography", "Location")),
    ("What is the climate of {} like?", ("Geography", "Climate")),
    ("What kind of government does {} have?", ("Government", "Government type")),
    ("What is the terrain of {} like?", ("Geography", "Terrain")),
    ("What natural resources does {} have?", ("Geography", "Natural resources")),
]
"""Each with the field whose first line answers it."""


def countries(archive: Path, folder: str) -> Iterator[tuple[str, Country]]:
    """Names and profiles, by the archive's order of files."""
    for file, data in members(archive, rf"^{folder}/.*\.json$").items():
        if "/meta/" in file or file.endswith("package.json"):
            continue
        country = json.loads(data.decode("utf-8"))
        name = country_name(country) if isinstance(country, dict) else ""
        if name and name != "none" and len(name) <= 50:
            yield name, country


def country_name(country: Country) -> str:
    names = ("Government", "Country name")
    return field(country, *names, "conventional short form") or field(country, *names, "conventional long form")


def field(country: Country, *path: str) -> str:
    """The text of a field, empty where there is none."""
    value: Any = country
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return unmarked(value.get("text", "")) if isinstance(value, dict) else ""


def unmarked(text: str) -> str:
    """Without tags and entities; a line for every paragraph and item."""
    text = re.sub("<[^>]+>", "", re.sub("<br ?/?>|</p>|</li>", "\n", text))
    return re.sub(r"[ \t]+", " ", html.unescape(html.unescape(text)).replace("++", "")).strip()


def sentence(text: str) -> str:
    """With a capital first and a full stop last."""
    text = text.strip(" ;,\n")
    return text and text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")


def profiles(archive: Path, folder: str) -> Iterator[Document]:
    """The name of every country and its fields that are prose."""
    for name, country in countries(archive, folder):
        facts = [fact for section, value in country.items() for fact in prose_of(value, [section], name)]
        if len(facts) > 2:
            yield [name, *facts]


def prose_of(value: object, path: list[str], name: str) -> Iterator[str]:
    """All texts below a field that are prose, labelled but for overviews."""
    if not isinstance(value, dict):
        return
    for key, part in value.items():
        if key == "text" and isinstance(part, str):
            yield from labelled(unmarked(part), path, name)
        else:
            yield from prose_of(part, [*path, key], name)


def labelled(text: str, path: list[str], name: str) -> Iterator[str]:
    """Lines with enough words, unless the text is mostly figures."""
    if sum(map(str.isdigit, text)) > 0.08 * len(text):
        return
    label = " - ".join(part for part in path[1:] if part not in ("note", "text"))
    for line in map(str.strip, text.split("\n")):
        if len(line) < 70 or len(line.split()) < 11:
            continue
        if path[-1] == "Background" or "overview" in path[-1].lower():
            yield line
        elif is_prose(sentence(line), 70):
            yield f"{label} ({name}): {sentence(line)}"


def questions(archive: Path, folder: str) -> Iterator[Document]:
    """One text a country: what its capital is, where it lies, how it is governed."""
    for name, country in countries(archive, folder):
        pairs = [*capital(name, country)]
        for question, path in QUESTIONS:
            if answer := field(country, *path).split("\n")[0]:
                pairs.append(f"Question: {question.format(name)}\nAnswer: {sentence(answer)}")
        if len(pairs) > 2:
            yield ["\n\n".join(pairs)]


def capital(name: str, country: Country) -> Iterator[str]:
    text = field(country, "Government", "Capital", "name")
    if text and len(text) < 40:
        answer = f"The capital of {name} is {text.split(';')[0]}."
        yield f"Question: What is the capital of {name}?\nAnswer: {answer}"
