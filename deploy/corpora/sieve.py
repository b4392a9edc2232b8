"""What stays of all paragraphs: none that an evaluation shares, and none twice."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from corpora.paragraphs import Document
from tuning_text import grams, texts_of

WORDS = 10
"""Shorter than the run of `tuning_text`, which looks at whole lines afterwards: dropping a paragraph costs little."""

SHORT = 60
"""Characters up to which a paragraph may come again."""


@dataclass(slots=True)
class Sieve:
    """Lets a paragraph through once.

    Attributes:
        forbidden: Hashes of runs of `WORDS` words.
        seen: Hashes of the letters of the paragraphs that came.
    """

    forbidden: set[int]
    seen: set[int] = field(default_factory=set)

    def strained(self, document: Document) -> Document:
        """The paragraphs that stay."""
        return [paragraph for paragraph in document if paragraph and self.passes(paragraph)]

    def passes(self, paragraph: str) -> bool:
        if not self.forbidden.isdisjoint(grams(paragraph, WORDS)):
            return False
        letters = hash(re.sub(r"\W+", "", paragraph.lower()))
        is_new = len(paragraph) <= SHORT or letters not in self.seen
        self.seen.add(letters)
        return is_new


def read_sieve(evaluation: list[Path]) -> Sieve:
    return Sieve({run for file in evaluation for text in texts_of(file) for run in grams(text, WORDS)})
