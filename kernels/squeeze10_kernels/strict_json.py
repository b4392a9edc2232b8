"""JSON objects of a model directory, read so that every parser reads the same and none runs out of memory."""

import json
import math
from collections import Counter
from typing import Any, Final

from squeeze10_kernels.errors import BadInput

MAX_BYTES: Final = 2 * 2**20
"""Of one JSON text: four times the header of the largest LLaMA in one file, and at most 70 MB of Python objects."""
MAX_DIGITS: Final = 40
"""Of an integer: transformers itself writes 10^30 for a tokenizer without a limit; Python fails to print 10^5000."""


def parse_object(text: bytes, source: object) -> dict[str, Any]:
    """The object that a JSON text holds.

    Args:
        text: UTF-8.
        source: Where it comes from, for the message.

    Raises:
        BadInput: No UTF-8, no JSON, no object, longer than `MAX_BYTES`, nested too deep, a name twice in one object,
            a number that is not finite or has more than `MAX_DIGITS` digits.
    """
    if len(text) > MAX_BYTES:
        raise BadInput(f"{source} must hold at most {MAX_BYTES} bytes of JSON; it has more.")
    try:
        value = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=object_without_repeats,
            parse_int=limited_integer,
            parse_float=finite_number,
            parse_constant=finite_number,
        )
    except (UnicodeDecodeError, json.JSONDecodeError, BadInput) as error:
        raise BadInput(f"{source} must hold JSON: {error}.") from error
    except RecursionError as error:
        raise BadInput(f"{source} must hold JSON of a model; its values are nested too deep.") from error
    if not isinstance(value, dict):
        raise BadInput(f"{source} must hold a JSON object; got {type(value).__name__}.")
    return value


def object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; parsers differ in which of two equal names they read."""
    value = dict(pairs)
    if len(value) < len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise BadInput(f"the name {name[:80]!r} stands twice in one object")
    return value


def limited_integer(digits: str) -> int:
    """An integer that can be printed."""
    if len(digits) > MAX_DIGITS:
        raise BadInput(f"an integer of more than {MAX_DIGITS} digits")
    return int(digits)


def finite_number(text: str) -> float:
    """A number; `NaN` and `Infinity` are no JSON, and 1e999 is one of them in disguise."""
    number = float(text)
    if not math.isfinite(number):
        raise BadInput(f"{text[:80]} is no finite number")
    return number
