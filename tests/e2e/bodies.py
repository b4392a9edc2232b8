"""Requests as bytes, and the status that a server answers them with."""

import json
from typing import Any, Final

import httpx

COMPLETIONS: Final = "/v1/completions"
CHAT: Final = "/v1/chat/completions"
LIMIT_S: Final = 30
"""Far more than any answer here takes: a server that has not answered by then hangs."""


def completion(**options: Any) -> tuple[str, bytes]:
    """A short completion with something wrong in it; Python writes NaN and Infinity, and vLLM's reader takes them."""
    request = {"model": "model", "prompt": "One, two,", "max_tokens": 2} | options
    return COMPLETIONS, json.dumps(request).encode()


def chat(**options: Any) -> tuple[str, bytes]:
    """As `completion`, for chat."""
    request = {"model": "model", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2} | options
    return CHAT, json.dumps(request).encode()


def message(**fields: Any) -> tuple[str, bytes]:
    """A chat of one message."""
    return chat(messages=[fields])


def anonymous_client(base_url: str) -> httpx.Client:
    """A client that opens a connection for every request, as strangers do.

    Args:
        base_url: The OpenAI API, which ends in /v1.
    """
    url = base_url.removesuffix("/v1")
    return httpx.Client(base_url=url, timeout=LIMIT_S, limits=httpx.Limits(max_keepalive_connections=0))


def status_of(client: httpx.Client, path: str, body: bytes) -> int:
    """The status of one request, its body as it is; `httpx.HTTPError` if there is no answer in `LIMIT_S`."""
    return client.post(path, content=body, headers={"Content-Type": "application/json"}).status_code
