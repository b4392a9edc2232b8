"""The gate changes nothing for honest clients, and what it refuses never reaches vLLM."""

import asyncio
import json
from typing import Any

import pytest
from gate.request_gate import MAX_BODY_BYTES, RequestGate

COMPLETION = {
    "model": "m",
    "prompt": ["é\n", [1, 2]],
    "n": 2,
    "max_tokens": 5,
    "temperature": 0.7,
    "top_p": 1,
    "top_k": -1,
    "seed": -(2**40),
    "stop": ["\n", "."],
    "stream": True,
    "stream_options": {"include_usage": True},
    "logprobs": 0,
    "echo": False,
    "user": None,
}
CHAT = {
    "messages": [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": ""},
    ],
    "max_completion_tokens": 3,
    "logprobs": True,
    "top_logprobs": 2,
    "presence_penalty": -2,
}


class Upstream:
    """Stands for vLLM: notes what arrives, reads the body and then whether the client leaves."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self.seen.append((scope, [await receive(), await receive()]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def body(self) -> bytes:
        """Of the only request."""
        ((_, (message, _)),) = self.seen
        return bytes(message["body"])


def ask(upstream: Upstream, *pieces: bytes, method: str = "POST", path: str = "/v1/completions") -> tuple[int, bytes]:
    """Status and body of one request whose body comes in pieces, after which the client leaves."""
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages[-1]["more_body"] = False
    messages.append({"type": "http.disconnect"})
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": [(b"Content-Length", b"7"), (b"x", b"y")]}
    asyncio.run(RequestGate(upstream)(scope, receive, send))
    return sent[0]["status"], sent[1]["body"]


@pytest.mark.parametrize(("path", "request_"), [("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT)])
def test_honest_requests_arrive_as_they_were_sent(path: str, request_: dict[str, Any]) -> None:
    upstream, body = Upstream(), json.dumps(request_).encode()

    status, _ = ask(upstream, body[:7], body[7:], path=path)

    assert status == 200
    assert json.loads(upstream.body()) == request_
    scope, (_, after) = upstream.seen[0]
    assert (b"content-length", str(len(upstream.body())).encode()) in scope["headers"]
    assert [name for name, _ in scope["headers"] if name.lower() == b"content-length"] == [b"content-length"]
    assert after == {"type": "http.disconnect"}


def test_vllm_reads_what_the_gate_has_read() -> None:
    """A key twice is a way past a check whose reader takes the other one."""
    upstream = Upstream()

    status, _ = ask(upstream, b'{"prompt": "a", "n": 1000000000, "n": 1}')

    assert status == 200
    assert upstream.body() == b'{"n":1,"prompt":"a"}'


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        pytest.param(b'{"prompt": "a", "structured_outputs": {"regex": "a"}}', "structured_outputs", id="constraint"),
        pytest.param(b'{"prompt": "a", "n": 17}', "less than or equal to 16", id="answers"),
        pytest.param(b'{"prompt": "a", "temperature": NaN}', "finite number", id="nan"),
        pytest.param(b'{"prompt": "a", "n": "1"}', "valid integer", id="type"),
        pytest.param(b'{"prompt": "\xff"}', "JSON", id="encoding"),
        pytest.param(b"", "JSON", id="nothing"),
    ],
)
def test_a_refusal_says_why_and_stays_short(body: bytes, sentence: str) -> None:
    upstream = Upstream()

    status, answer = ask(upstream, body)

    assert status == 400
    assert sentence in json.loads(answer)["error"]["message"]
    assert len(answer) < 1000
    assert upstream.seen == []


def test_a_body_without_end_is_not_kept() -> None:
    """Its length is what comes, not what its header says."""
    upstream = Upstream()

    status, _ = ask(upstream, *[bytes(2**16)] * (MAX_BODY_BYTES // 2**16), b"1")

    assert status == 413
    assert upstream.seen == []


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_other_paths_and_methods_do_not_exist(method: str) -> None:
    upstream = Upstream()
    paths = ["/invocations", "/v1/completions/", "//v1/completions", "/v1/responses", "/V1/completions"]

    for path in paths if method == "POST" else [*paths, "/v1/completions", "/v1/models"]:
        assert ask(upstream, b"{}", method=method, path=path)[0] == 404, path

    assert upstream.seen == []
