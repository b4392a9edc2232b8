"""Many clients of a server at once, some of which leave in the middle, and what they got."""

import asyncio
import math
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import openai
from openai import AsyncOpenAI
from vllm_server import SERVED_NAME

WORDS: Final = ("one", "two", "three", "red", "green", "blue", "cat", "dog", "house", "tree", "river", "hill")
LEAVING: Final = 0.4
"""Share of clients that do not wait for the end."""
HANG_S: Final = 600
"""An answer that takes longer is a fault: two busy cores give 64 tokens to each of 64 clients in a fifth of it."""


@dataclass
class Tally:
    """What happened to the requests.

    Attributes:
        outcomes: Requests by how they ended: `finished`, `left before the end`, `left in the middle`, or an error.
        chunks: Pieces of answers that arrived.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    chunks: int = 0

    def errors(self) -> dict[str, int]:
        """Ends that are no client's own wish."""
        return {end: count for end, count in self.outcomes.items() if end != "finished" and not end.startswith("left")}


async def run_streams(base_url: str, seconds: float, streams: int = 64, seed: int = 0, words: int = 20) -> Tally:
    """Keep `streams` requests open for a time, then let all of them leave.

    Args:
        base_url: The OpenAI API.
        seconds: How long.
        streams: Clients, each of which asks again as soon as it has its answer or has left.
        seed: Of prompts, lengths and moments of leaving.
        words: Of the longest prompt.
    """
    tally = Tally()
    end = time.monotonic() + seconds
    client = AsyncOpenAI(base_url=base_url, api_key="none", timeout=HANG_S, max_retries=0)
    async with client, asyncio.TaskGroup() as group:
        for index in range(streams):
            group.create_task(ask_until(end, client, random.Random(f"{seed}-{index}"), words, tally))
    return tally


async def ask_until(end: float, client: AsyncOpenAI, chance: random.Random, words: int, tally: Tally) -> None:
    """One client."""
    while (left := end - time.monotonic()) > 0:
        wish = patience(chance)
        try:
            async with asyncio.timeout(min(left, wish, HANG_S)):
                outcome = await ask(client, chance, words, tally)
        except TimeoutError:
            outcome = "left before the end" if min(left, wish) < HANG_S else f"no end in {HANG_S} s"
        except openai.APIStatusError as error:
            outcome = f"status {error.status_code}"
        except openai.OpenAIError as error:
            outcome = type(error.__cause__ or error).__name__
        tally.outcomes[outcome] += 1
        if outcome in tally.errors():
            await asyncio.sleep(0.5)


def patience(chance: random.Random) -> float:
    """Seconds until a client leaves, wherever its request is then: waiting, in prefill, or answered in part."""
    return 10 ** chance.uniform(-2, 1) if chance.random() < LEAVING / 2 else math.inf


async def ask(client: AsyncOpenAI, chance: random.Random, words: int, tally: Tally) -> str:
    """One streamed answer, or its first chunks; how it ended."""
    options: dict[str, Any] = {
        "model": SERVED_NAME,
        "max_tokens": chance.randint(1, 64),
        "temperature": chance.choice([0.0, 0.7, 1.0]),
        "seed": chance.getrandbits(31),
        "stream": True,
        "extra_body": {"ignore_eos": True},
    }
    if options["temperature"] and chance.random() < 0.2:
        options["n"] = 2
    wanted = chance.randint(0, 16) if chance.random() < LEAVING / 2 else None
    text = " ".join(chance.choices(WORDS, k=chance.randint(1, words)))
    if chance.random() < 0.5:
        stream: Any = await client.completions.create(prompt=text, **options)
    else:
        stream = await client.chat.completions.create(messages=[{"role": "user", "content": text}], **options)
    async with stream:
        return await read(stream, wanted, tally)


async def read(stream: Any, wanted: int | None, tally: Tally) -> str:
    """Read chunks, all or as many as wanted."""
    count = 0
    async for _ in stream:
        count += 1
        tally.chunks += 1
        if count == wanted:
            return "left in the middle"
    return "finished" if count else "an answer without a chunk"
