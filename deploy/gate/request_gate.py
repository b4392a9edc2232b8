"""Only requests of a known form reach vLLM: an ASGI middleware, by vLLM's own option.

    PYTHONPATH=deploy/gate vllm serve MODEL --middleware request_gate.RequestGate

What deploy/nginx is for paths, this is for bodies: plain completions and chats pass, with every number in its range.
All else gets a 4xx: vLLM 0.32 answers some of it with a 5xx, and one regex of `structured_outputs` can take all memory
(tests/FAULTS.md). Clients that need constraints, tools or images cannot use it.
"""

import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MAX_BODY_BYTES: Final = 2**20
"""As `client_max_body_size` in deploy/nginx."""
MAX_ANSWERS: Final = 16
MAX_PROMPTS: Final = 16
MAX_LOGPROBS: Final = 20
"""vLLM's own default of --max-logprobs."""
INT32: Final = 2**31 - 1
INT64: Final = 2**63 - 1

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Count = Annotated[int, Field(ge=0, le=INT32)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Share = Annotated[float, Field(ge=0, le=1)]
Tokens = Annotated[list[Count], Field(min_length=1)]
Text = Annotated[str, Field(min_length=1)]


class Form(BaseModel):
    """A JSON object with no other keys than these, no value of another type, no NaN and no infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Form):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Request(Form):
    """What completions and chats share."""

    model: Annotated[str, Field(max_length=256)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_ANSWERS)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=INT32)] | None = None
    min_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=INT32)] | None = None
    min_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    seed: Annotated[int, Field(ge=-INT64, le=INT64)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=4)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    return_token_ids: bool | None = None
    user: str | None = None


class Completion(Request):
    prompt: Text | Tokens | Annotated[list[Text | Tokens], Field(min_length=1, max_length=MAX_PROMPTS)]
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool | None = None


class TextPart(Form):
    type: Literal["text"]
    text: str


class Message(Form):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: Annotated[str, Field(max_length=256)] | None = None


class Chat(Request):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=INT32)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None


FORMS: Final[dict[str, type[Request]]] = {"/v1/completions": Completion, "/v1/chat/completions": Chat}


class RequestGate:
    """The middleware. GET passes; POST only to the paths of `FORMS`, as `FORMS` has it; no other method.

    vLLM gets what was read here, written anew, and not the client's bytes: both cannot read them differently.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            return await self.app(scope, receive, send)
        form = FORMS.get(scope["path"]) if scope["method"] == "POST" else None
        if form is None:
            return await refuse(send, 404, f"Only POST to {' and '.join(FORMS)} is served.")
        body = await read_body(receive)
        if body is None:
            return await refuse(send, 413, f"A body may have {MAX_BODY_BYTES} bytes at most.")
        try:
            request = form.model_validate_json(body)
        except ValidationError as error:
            return await refuse(send, 400, reason(error))
        checked = request.model_dump_json(exclude_unset=True).encode()
        return await self.app(with_body(scope, checked), replay(checked, receive), send)


async def read_body(receive: Receive) -> bytes | None:
    """The whole body, or None as soon as it is too large; what a client sent who has gone is what came."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            return None
        if not message.get("more_body"):
            return bytes(body)


def reason(error: ValidationError) -> str:
    """The first fault in one sentence, without the client's own text."""
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}."[:500]


def with_body(scope: Scope, body: bytes) -> Scope:
    """The scope of a request whose body is another."""
    changed = (b"content-length", b"content-type", b"transfer-encoding")
    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in changed]
    headers += [(b"content-length", str(len(body)).encode()), (b"content-type", b"application/json")]
    return {**scope, "headers": headers}


def replay(body: bytes, receive: Receive) -> Receive:
    """Gives the body, and then what the client does: vLLM stops its work when that is to leave."""
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> dict[str, Any]:
        return pending.pop() if pending else await receive()

    return next_message


async def refuse(send: Send, status: int, sentence: str) -> None:
    """An error as OpenAI's clients read it."""
    detail = {"message": sentence, "type": "BadRequestError", "param": None, "code": status}
    body = json.dumps({"error": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
