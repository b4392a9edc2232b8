"""A completions endpoint for tests, on a loopback port: what lm-eval asks vLLM for, and nothing else."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import torch
from transformers import PreTrainedModel


@contextmanager
def endpoint(answer: Callable[[Any], Any]) -> Iterator[tuple[str, list[Any]]]:
    """The server while the block runs: base of its URL, and the requests that it has got."""
    requests: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status, reply = (200, answer(requests[-1])) if self.path == "/v1/completions" else (404, {})
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(reply).encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def echoing(model: PreTrainedModel) -> Callable[[Any], Any]:
    """Answers as vLLM does: every prompt with the log-probabilities of its tokens, and one token after it."""

    def choice(index: int, prompt: list[int]) -> dict[str, Any]:
        with torch.no_grad():
            scores = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
        best = scores.max(-1).values.tolist()
        given = [None, *scores[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0].tolist(), best[-1]]
        return {"index": index, "logprobs": {"token_logprobs": given, "top_logprobs": [None, *({"": b} for b in best)]}}

    # in any order: the index counts
    return lambda request: {"choices": [choice(*each) for each in enumerate(request["prompt"])][::-1]}
