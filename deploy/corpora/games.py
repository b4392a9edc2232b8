"""Stories, dialogue and descriptions written for games."""

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path

from corpora.packages import texts
from corpora.paragraphs import Document, is_prose, one_line

WESNOTH_TEXT = r'(?:message|story|description|note|help_taxonomy|text)\s*=\s*_\s*"((?:[^"]|"")*)"'

ENDLESS_SKY_TEXT = r'\s*(?:description|`|spaceport|dialog)?\s*([`"])(.{100,})\1\s*$'

CATACLYSM_KEYS = frozenset({"description", "text", "str", "message", "content", "desc"})


def game_texts(naev: Path, cataclysm: Path, endless_sky: Path, *wesnoth: Path) -> Iterator[Document]:
    """All that games tell, one document a file."""
    yield from wesnoth_campaigns(*wesnoth)
    yield from naev_texts(naev)
    yield from cataclysm_texts(cataclysm)
    for source in texts(endless_sky, r"/data/.*\.txt$").values():
        matches = [re.match(ENDLESS_SKY_TEXT, line) for line in source.split("\n")]
        yield [match[2].strip() for match in matches if match and "<" not in match[2]]


def wesnoth_campaigns(*debs: Path) -> Iterator[Document]:
    """Files of all packages by their names, since a campaign spreads over packages."""
    sources = {name: source for deb in debs for name, source in texts(deb, r"/1\.16/data/.*\.cfg$").items()}
    for name in sorted(sources):
        said = [wesnoth_text(match[1]) for match in re.finditer(WESNOTH_TEXT, sources[name])]
        yield [one_line(line) for text in said for line in text.split("\n") if len(line.strip()) > 60]


def wesnoth_text(quoted: str) -> str:
    """What the player reads."""
    text = quoted.replace('""', '"').replace("\\n", "\n").replace("“", '"').replace("”", '"')
    return re.sub("<[^>]+>", "", text)


def naev_texts(deb: Path) -> Iterator[Document]:
    """Descriptions of worlds, and what scripts say without anything filled in."""
    for source in texts(deb, r"/assets/[^/]*\.xml$").values():
        found = re.findall("<(?:description|bar)>(.*?)</", source, re.DOTALL)
        yield [text for text in (one_line(html.unescape(part)) for part in found) if len(text) > 100]
    for source in texts(deb, r"\.lua$").values():
        found = re.findall(r"_\(\[\[(.*?)\]\]", source, re.DOTALL) + re.findall(r'_\("((?:[^"\\]|\\.)*)"\)', source)
        said = [one_line(text.replace('\\"', '"')) for text in found]
        yield [text.replace("\\n", " ") for text in said if len(text) > 100 and not re.search(r"%|\\a|\$\{", text)]


def cataclysm_texts(deb: Path) -> Iterator[Document]:
    for source in texts(deb, r"/json/.*\.json$").values():
        yield [line for line in map(one_line, told(json.loads(source))) if is_prose(line, 120)]


def told(value: object, key: str = "") -> Iterator[str]:
    """Long texts under the keys that players see, without tags and choices."""
    if isinstance(value, str):
        if key in CATACLYSM_KEYS and len(value) > 120 and "<" not in value and "|" not in value:
            yield value
    elif isinstance(value, list):
        for part in value:
            yield from told(part, key)
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from told(part, name)
