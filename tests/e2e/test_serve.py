"""A real `vllm serve` of what `squeeze10 quantize` wrote, asked through the official OpenAI client.

The oracle is transformers on the directory that `squeeze10 dequantize` writes (bf16_noise.py).
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import openai
import pytest
import torch
from bf16_noise import PROMPTS, assert_within_noise, load_twins
from e2e.conftest import SERVERS, Served
from openai import OpenAI
from soak.processes import find_engine, find_server, wait_for_end
from transformers import AutoTokenizer
from vllm_server import SERVED_NAME

pytestmark = pytest.mark.serve

NEW_TOKENS: Final = 16
END_LIMIT_S: Final = 15


def complete(client: OpenAI, prompt: str, **options: Any) -> Any:
    """One greedy completion with the log-probabilities of the prompt and of what follows."""
    return client.completions.create(
        model=SERVED_NAME,
        prompt=prompt,
        temperature=0,
        logprobs=1,
        extra_body={"prompt_logprobs": 0, "return_token_ids": True},
        **options,
    ).choices[0]


def test_log_probabilities_are_those_of_the_dequantized_model(served: Served) -> None:
    """And greedy tokens agree wherever the two best candidates are further apart than the noise of both."""
    tokenizer = AutoTokenizer.from_pretrained(served.plain)
    answers = []

    for prompt in PROMPTS:
        answer = complete(served.client, prompt, max_tokens=NEW_TOKENS)
        ids = tokenizer(prompt)["input_ids"] + answer.token_ids
        given = [entry[str(token)]["logprob"] for entry, token in zip(answer.prompt_logprobs[1:], ids[1:])]  # noqa: B905
        answers.append((ids, given + answer.logprobs.token_logprobs, len(answer.token_ids)))

    assert_within_noise(load_twins(served.plain), answers)


def test_chat_and_its_stream_say_the_same(served: Served) -> None:
    """Every chunk arrives, in order."""
    request: dict[str, Any] = {
        "model": SERVED_NAME,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
        "max_tokens": 12,
    }

    whole = served.client.chat.completions.create(**request)
    chunks = list(served.client.chat.completions.create(**request, stream=True))

    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert whole.usage.completion_tokens > 0
    assert whole.choices[0].finish_reason in ("stop", "length")
    assert streamed == whole.choices[0].message.content
    assert len(chunks) > 1


def test_16_concurrent_requests_are_answered_as_alone(served: Served) -> None:
    """A batch mixes prefill and decode; log-probabilities of the prompts must not depend on the company."""
    prompts = [f"{number}. {PROMPTS[number % len(PROMPTS)]}" for number in range(16)]

    def prompt_logprobs(prompt: str) -> torch.Tensor:
        entries = complete(served.client, prompt, max_tokens=8).prompt_logprobs[1:]
        return torch.tensor([next(iter(entry.values()))["logprob"] for entry in entries])

    alone = [prompt_logprobs(prompt) for prompt in prompts[:4]]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(prompt_logprobs, prompts))

    assert len(together) == 16
    for one, other in zip(alone, together, strict=False):
        assert float((one - other).abs().mean()) < 0.1


def test_a_killed_engine_takes_the_server_with_it_and_clients_hear_of_it(served: Served) -> None:
    """The last test of each server. A server that lives on without its engine would hold clients for ever."""
    if SERVERS[served.number][0] == "tiny":
        pytest.skip("the tiny model's stream may be over before its engine is")
    server = find_server(served.base_url)
    engine = find_engine(server)
    stream = served.client.completions.create(
        model=SERVED_NAME, prompt="One,", max_tokens=200, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))

    engine.kill()

    with pytest.raises(openai.APIError, match="EngineCore encountered an issue"):
        list(stream)
    assert wait_for_end(server.pid, END_LIMIT_S) is not None
    assert "engine core exited unexpectedly" in served.log.read_text()
    with pytest.raises(openai.APIConnectionError):
        served.client.with_options(max_retries=0).models.list()
