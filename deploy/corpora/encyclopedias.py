"""Articles and entries of Wikipedia, FOLDOC and WordNet."""

import bz2
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path

from corpora.packages import members, texts
from corpora.paragraphs import Document, grouped, is_prose, one_line

WIKITEXT = [
    (r"\{\{(?:convert|cvt)\|([\d,.]+)\|([^|{}]+)[^{}]*\}\}", r"\1 \2", 1),
    (r"\{\{lang\|[^|{}]*\|([^{}|]*)\}\}", r"\1", 1),
    (r"<!--.*?-->", "", 1),
    (r"<ref[^>/]*/>", "", 1),
    (r"<ref.*?</ref>", "", 1),
    (r"<(math|gallery|timeline|source|pre|code|table|imagemap)\b.*?</\1>", "", 1),
    (r"\{\{[^{}]*\}\}", "", 12),
    (r"\{\|(?:(?!\{\|).)*?\|\}", "", 5),
    (r"\[\[(?:File|Image|Category|[a-z\-]{2,12}):(?:[^\[\]]|\[\[[^\[\]]*\]\])*\]\]", "", 4),
    (r"\[\[(?:[^|\]]*\|)?([^\]|]*)\]\]", r"\1", 1),
    (r"\[https?://\S+ ?([^\]]*)\]", r"\1", 1),
    (r"'{2,}", "", 1),
    (r"<[^>]+>", "", 1),
]
"""Pattern, replacement and how often in a row: nested templates, tables and pictures go from the inside out."""

APPENDIX = r"\n==\s*(?:See also|References|External links|Notes|Further reading|Bibliography|Footnotes|Sources)\s*=="

WORD_CLASSES = {"adj": "adjective", "adv": "adverb", "noun": "noun", "verb": "verb"}

FOLDOC_NOISE = [r"[{}]", r"<[^<>]{3,70}>\s*", r"\((?:http|ftp)[^)]*\)", r"\(\d{4}-\d\d-\d\d\)", r"\[[^\]]*\]"]
"""Links, subject labels, addresses, dates and remarks of the editors."""


def vital_articles(wheel: Path) -> Iterator[Document]:
    """First sections of Wikipedia's vital articles; a paragraph from which a name was cut is left out."""
    (data,) = members(wheel, r"/data/summaries_en-us\.json$").values()
    for article in json.loads(data).values():
        if len(article["extract"]) > 80:
            lines = article["extract"].split("\n")
            yield [without_gaps(line) for line in lines if not re.search("  of |  is |  has ", line)]


def without_gaps(text: str) -> str:
    """Without the empty brackets and the spaces that removed markup leaves."""
    text = re.sub(r"\(\s*[;,]?\s*\)", "", text)
    return re.sub("  +", " ", re.sub(r" ([,.;:)])", r"\1", text))


def long_articles(wheel: Path) -> Iterator[Document]:
    """Whole articles of the piece of a Wikipedia dump with which gensim is tested."""
    (dump,) = members(wheel, r"/test_data/enwiki-latest-pages-articles1[^/]*\.bz2$").values()
    for page in re.findall("<page>(.*?)</page>", bz2.decompress(dump).decode(), re.DOTALL):
        text = re.search("<text[^>]*>(.*?)</text>", page, re.DOTALL)
        if text and not re.search("<ns>[^0]", page) and not text[1].lower().startswith("#redirect"):
            yield article(text[1])


def article(wikitext: str) -> Document:
    """The prose of an article, up to its references."""
    text = html.unescape(html.unescape(wikitext)).replace("\u00a0", " ")
    for pattern, replacement, times in WIKITEXT:
        for _ in range(times):
            text = re.sub(pattern, replacement, text, flags=re.DOTALL)
    lines = map(str.strip, without_gaps(re.split(APPENDIX, text)[0]).split("\n"))
    return [line for line in lines if not re.match("[=*#:;|!{}]", line) and is_prose(line, 60)]


def computing_terms(deb: Path) -> Iterator[Document]:
    """Entries of FOLDOC that are more than a pointer to another, each after its word."""
    (dictionary,) = texts(deb, r"\.dict\.dz$").values()
    for entry in re.split(r"\n\n(?=\S)", dictionary):
        word, _, text = entry.partition("\n")
        text = explanation(text)
        if "See " in text[:30] or len(text) < 150 or word.startswith("00-"):
            continue
        first, *others = [part for part in map(one_line, re.split(r"\n\s*\n", text)) if is_prose(part, 60)] or [""]
        if first:
            yield [f"{word.strip()}: {first}", *others]


def explanation(text: str) -> str:
    """The text of an entry without its noise."""
    for pattern in FOLDOC_NOISE:
        text = re.sub(pattern, "", text)
    return html.unescape(text)


def glosses(deb: Path) -> Iterator[Document]:
    """WordNet's meanings, `word, word (class): meaning. "Example"`, eight a document."""
    for name, data in members(deb, r"/data\.(adj|adv|noun|verb)$").items():
        lines = data.decode(errors="replace").split("\n")
        entries = [line for line in lines if "|" in line and not line.startswith("  ")]
        word_class = WORD_CLASSES[name.rsplit(".", 1)[1]]
        yield from grouped([text for entry in entries if (text := gloss(entry, word_class))], 8)


def gloss(entry: str, word_class: str) -> str:
    """The sentence of one line of WordNet, empty if it says little."""
    fields, meaning = entry.split("|", 1)
    _, _, _, count, *words = fields.split()
    meaning = meaning.strip()
    if len(meaning) < 45:
        return ""
    named = [re.sub(r"\(.*?\)", "", word).replace("_", " ") for word in words[: 2 * int(count, 16) : 2]]
    text = f"{', '.join(named[:3])} ({word_class}): " + re.sub('; "', '. "', meaning)
    return text if text[-1] in '."!?' else text + "."
