"""A `vllm serve` process that runs while a block does: for the demo and for the tests."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

VLLM: Final = (sys.executable, "-P", "-m", "vllm.entrypoints.cli.main")
"""This environment's `vllm`, its script installed or not; with -P nothing of the working directory is imported."""
HOST: Final = "127.0.0.1"
SERVED_NAME: Final = "model"
START_LIMIT_S: Final = 900
HEALTH_LIMIT_S: Final = 5
STOP_LIMIT_S: Final = 20
LOG_LINES: Final = 25


@contextmanager
def serving(model: Path, log: Path, *flags: str) -> Iterator[str]:
    """`vllm serve` on a free loopback port while the block runs; the base URL of its OpenAI API.

    Args:
        model: The model directory.
        log: File that takes what the server prints.
        flags: Further arguments of `vllm serve`.
    """
    port = free_port()
    words = ["serve", str(model), "--served-model-name", SERVED_NAME, "--host", HOST, "--port", str(port)]
    words += ["--max-model-len", "2048", "--enforce-eager", *flags]
    print("vllm", *words)
    with log.open("w") as output:
        server = subprocess.Popen(
            [*VLLM, *words],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"},
        )
    try:
        wait_until_healthy(server, port, log)
        yield f"http://{HOST}:{port}/v1"
    finally:
        stop(server)


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


def wait_until_healthy(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return once /health answers; `SystemExit` with the log's end if the server dies or takes too long."""
    begin = time.monotonic()
    while not is_healthy(f"http://{HOST}:{port}", HEALTH_LIMIT_S):
        elapsed = time.monotonic() - begin
        if server.poll() is not None or elapsed > START_LIMIT_S:
            fate = "did not start in time" if server.poll() is None else f"ended with code {server.returncode}"
            raise SystemExit(f"\nThe server {fate}; the end of {log}:\n{log_tail(log)}\n\nCause: {cause(log)}")
        show_progress(f"starting, {elapsed:.0f} s")
        time.sleep(1)
    print(f"\nready after {time.monotonic() - begin:.0f} s")


def is_healthy(url: str, limit_s: float) -> bool:
    """Whether the server answers /health in time, and well."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=limit_s) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def log_tail(log: Path) -> str:
    """The last lines of the server's log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])


def cause(log: Path) -> str:
    """The log's last error, but for vLLM's summary, which says "See root cause above" a hundred lines below it."""
    text = log.read_text(errors="replace")
    errors = re.findall(r"(?:^|\s)((?:[\w.]*(?:Error|BadInput): |Value error, ).+)", text, re.MULTILINE)
    errors = [line for line in errors if "See root cause above" not in line]
    return errors[-1] if errors else "the log names none"


def stop(server: subprocess.Popen[bytes]) -> None:
    """Ask the server to end, then insist; its worker processes end with it."""
    for ask_for in (signal.SIGINT, signal.SIGTERM):
        if server.poll() is None:
            server.send_signal(ask_for)
            try:
                server.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                print(f"The server ignores {ask_for.name}.", file=sys.stderr)
    end_group(server.pid)


def end_group(group: int) -> None:
    """Wait for the processes of a group to end; kill those that do not."""
    deadline = time.monotonic() + STOP_LIMIT_S
    try:
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.2)
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return  # the group is empty, as it should be


def show_progress(text: str) -> None:
    """One line that replaces itself on a terminal; nothing in a log file."""
    if sys.stdout.isatty():
        print(f"\r{text}", end="", flush=True)
