"""Text again out of tokens with spaces between and tags behind them."""

import re

SPACING = [
    ("\x01 ?", '"'),
    (" ?\x02", '"'),
    (r" (n't|'s|'re|'ve|'ll|'d|'m|')(?=\s|$)", r"\1"),
    (r" ([.,;:!?%)\]}])", r"\1"),
    (r"([(\[{$#]) ", r"\1"),
    ("-LRB- ", "("),
    (" -RRB-", ")"),
    (" -- ", " - "),
    (r"([;?!]) ?([;?!.])(?=\s|$)", r"\1"),
    (r"\s+", " "),
]
"""In this order; \\x01 and \\x02 are quotation marks that open and close."""


def untagged(line: str) -> str:
    """The words of `word/tag word/tag`, with spaces between."""
    return " ".join(token.rsplit("/", 1)[0] for token in line.split())


def detokenized(text: str) -> str:
    """Spaces as a reader expects them around punctuation, brackets, clitics and quotation marks."""
    words = []
    is_open = False
    for word in text.replace("``", '"').replace("''", '"').split():
        if word == '"':
            word = "\x02" if is_open else "\x01"
            is_open = not is_open
        words.append(word)
    text = " ".join(words)
    for pattern, replacement in SPACING:
        text = re.sub(pattern, replacement, text)
    return text.strip()
