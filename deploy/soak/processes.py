"""The processes of a running server."""

import os
import re
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import psutil

ENGINE: Final = "VLLM::EngineCore"


def find_server(base_url: str) -> psutil.Process:
    """The child of this process that was started to listen on that port; `RuntimeError` if there is none."""
    port = str(urlsplit(base_url).port)
    for child in psutil.Process().children():
        arguments = child.cmdline()
        if "serve" in arguments and port in arguments:
            return child
    raise RuntimeError(f"No child of this process serves on port {port}.")


def find_engine(server: psutil.Process) -> psutil.Process:
    """The process that holds the scheduler and its queue."""
    for child in server.children(recursive=True):
        if ENGINE in child.cmdline():
            return child
    raise RuntimeError(f"No process below {server.pid} is called {ENGINE}.")


def memory_bytes(server: psutil.Process) -> dict[str, int]:
    """Memory of the server and all below it, by process name.

    Anonymous and shared memory, proportionally, so that what they share counts once. Not the pages of files: how much
    of a library is whose depends on what else runs on the machine. A process that has ended has none: Triton's
    compilers come and go while a server on a GPU works.
    """
    sizes: Counter[str] = Counter()
    for process in (server, *server.children(recursive=True)):
        with suppress(FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess):
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            parts = re.findall(r"^Pss_(?:Anon|Shmem):\s+(\d+) kB", text, re.MULTILINE)
            assert len(parts) == 2, text
            sizes[process.name()] += 1024 * sum(map(int, parts))
    return dict(sizes)


def wait_for_end(pid: int, limit_s: float) -> int | None:
    """Exit code of a child (a signal's number if that ended it) that ends in time, and stays for its parent to reap."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if ended := os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
            return ended.si_status
        time.sleep(0.1)
    return None
