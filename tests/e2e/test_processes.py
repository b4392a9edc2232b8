"""The watch on a server's memory lasts as long as the server."""

import subprocess
import sys
from subprocess import PIPE
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from soak.load_server import report_memory
from soak.processes import memory_bytes

FILLED = 64 * 2**20
WAIT = "import sys; sys.stdin.read()"


def test_memory_of_children_counts_and_a_child_that_ends_meanwhile_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that vLLM started may end between the list of processes and the look at each."""
    code = f"data = b'1' * {FILLED}; print('filled', flush=True); {WAIT}"
    with subprocess.Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE) as filled:
        assert filled.stdout is not None
        filled.stdout.readline()
        with subprocess.Popen([sys.executable, "-c", WAIT], stdin=PIPE) as child:
            ended = psutil.Process(child.pid)
        living = psutil.Process(filled.pid)
        alone = sum(memory_bytes(living).values())
        monkeypatch.setattr(psutil.Process, "children", lambda self, recursive: [living, ended])

        sizes = memory_bytes(psutil.Process())

    assert alone == pytest.approx(FILLED, abs=16 * 2**20)
    assert sum(sizes.values()) > alone + 2**20


def test_a_system_that_tells_no_sizes_is_no_server_that_keeps_its_size() -> None:
    watch: Any = SimpleNamespace(sizes=[{}] * 60, seconds=[5.0 * index for index in range(60)])

    (fault,) = report_memory(watch)

    assert "not measured" in fault
