"""The proxy of deploy/nginx passes on what its list allows, and nothing else that vLLM serves."""

import http.client
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

CONFIG = Path(__file__).resolve().parents[2] / "deploy" / "nginx" / "nginx.conf"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
ALLOWED = {("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("GET", "/v1/models"), ("GET", "/health")}
OPEN = [
    "/invocations",
    "/ping",
    "/generative_scoring",
    "/tokenize",
    "/detokenize",
    "/scale_elastic_ep",
    "/is_scaling_elastic_ep",
    "/load",
    "/version",
    "/kv_event_sources",
    "/metrics",
    "/openapi.json",
    "/docs",
    "/docs/oauth2-redirect",
    "/redoc",
]
"""What vLLM 0.32 serves without a key even if it has one."""
DEVELOPMENT = [
    "/sleep",
    "/wake_up",
    "/is_sleeping",
    "/collective_rpc",
    "/server_info",
    "/reset_prefix_cache",
    "/pause",
    "/resume",
    "/abort_requests",
    "/update_weights",
    "/init_weight_transfer_engine",
    "/start_profile",
    "/fault_tolerance/apply",
]
"""More of them, which flags or `VLLM_SERVER_DEV_MODE=1` switch on."""
GUARDED = [
    "/v1/responses",
    "/v1/messages",
    "/v1/load_lora_adapter",
    "/v1/chat/completions/batch",
    "/v1/completions/render",
    "/inference/v1/generate",
]
SPELLINGS = [
    "//invocations",
    "/v1/../invocations",
    "/v1/models/../../invocations",
    "/%69nvocations",
    "/v1/models/",
    "/v1/models%00",
    "/v1/chat/completions;/../../../invocations",
    "/V1/MODELS",
    "/v1/models/..%2f..%2finvocations",
    "/./invocations",
]
METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE")

pytestmark = pytest.mark.skipif(NGINX is None, reason="needs nginx (Debian: apt-get install nginx-light)")


class Upstream(BaseHTTPRequestHandler):
    """Stands for vLLM: answers everything, and notes what arrived."""

    seen: ClassVar[list[tuple[str, str, str | None]]] = []

    def answer(self) -> None:
        self.seen.append((self.command, self.path, self.headers.get("Authorization")))
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    do_GET = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_PATCH = do_TRACE = answer

    def log_message(self, *_: Any) -> None:
        """Silent."""


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of nginx with the recipe's config, in front of `Upstream`."""
    assert NGINX is not None
    place = tmp_path_factory.mktemp("nginx")
    place.chmod(0o755)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = free_port()
    text = CONFIG.read_text().replace("127.0.0.1:8080", f"127.0.0.1:{port}")
    (place / "nginx.conf").write_text(text.replace("127.0.0.1:8000", f"127.0.0.1:{server.server_port}"))
    command = [NGINX, "-p", str(place), "-c", "nginx.conf", "-g", "daemon off;"]
    with subprocess.Popen(command, stderr=(place / "log").open("w")) as process:
        try:
            wait_for(port, process, place / "log")
            yield port
        finally:
            process.terminate()
            process.wait(10)
            server.shutdown()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(100):
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError(f"nginx does not listen: {log.read_text()}")


def ask(port: int, method: str, path: str, body: bytes = b"") -> int:
    """The status of one request, its path as spelled."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.putrequest(method, path, skip_host=False)
        connection.putheader("Authorization", "Bearer key")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize(("method", "path"), sorted(ALLOWED))
def test_allowed_endpoints_arrive_with_their_key(method: str, path: str, proxy: int) -> None:
    """vLLM still checks the key."""
    Upstream.seen.clear()

    assert ask(proxy, method, path) == 200

    assert Upstream.seen == [(method, path, "Bearer key")]


def test_nothing_else_arrives(proxy: int) -> None:
    """One endpoint that slips through is an open model, or an open machine."""
    Upstream.seen.clear()
    paths = [*OPEN, *DEVELOPMENT, *GUARDED, *SPELLINGS, "/", "/v1", "/no_such_path"]
    wanted = {(method, path) for method in METHODS for path in (*paths, *(path for _, path in ALLOWED))} - ALLOWED

    statuses = {(method, path): ask(proxy, method, path) for method, path in sorted(wanted)}

    assert set(statuses.values()) <= {400, 403, 404, 405}, statuses
    assert Upstream.seen == []


def test_large_bodies_stop_at_the_proxy(proxy: int) -> None:
    Upstream.seen.clear()

    assert ask(proxy, "POST", "/v1/completions", bytes(2**20)) == 200
    assert ask(proxy, "POST", "/v1/completions", bytes(2**20 + 1)) == 413

    assert len(Upstream.seen) == 1
