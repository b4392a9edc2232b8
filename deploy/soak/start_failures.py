"""Servers that cannot start: does the process end, with an error code, and where in its output is the cause?

    PYTHONPATH=tests:deploy python deploy/soak/start_failures.py

A line for each failure: exit code, seconds, the sentence, and how many lines vLLM prints after it. Fails if a server
starts, ends with exit code 0, or never gives the cause.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from tiny_checkpoint import build_checkpoint
from vllm_server import VLLM, free_port

from squeeze10_kernels import WeightFormat

LIMIT_S: Final = 300


def nothing(_: Path) -> None:
    """The checkpoint is sound."""


def rename_architecture(path: Path) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"architectures": ["MistralForCausalLM"]}))


def cut(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


@dataclass(frozen=True)
class Failure:
    """A start that must fail.

    Attributes:
        cause: A pattern of the line that tells the user why.
        spoil: What is done to a sound checkpoint of mask `elements`.
        flags: For `vllm serve`.
        environment: Besides this process's own.
    """

    cause: str
    spoil: Callable[[Path], Any] = nothing
    flags: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


NO_ROOM: Final = r"ValueError: No available memory for the cache blocks"
ANYWHERE: Final = {
    "wrong architecture": Failure(r"squeeze10 serves LlamaForCausalLM.*MistralForCausalLM", rename_architecture),
    "weights cut short": Failure(r"model\.safetensors is damaged or cut short", cut),
    "plugin excluded": Failure(r"squeeze10", environment={"VLLM_PLUGINS": "other"}),
    "plugin excluded, by flag": Failure(
        r"squeeze10", flags=("--quantization", "squeeze10"), environment={"VLLM_PLUGINS": "other"}
    ),
}
ON_CPU: Final = {
    "two ranks for mask elements": Failure(
        r"mask elements.*size 1 only; got 2",
        flags=("--tensor-parallel-size", "2"),
        environment={"VLLM_CPU_OMP_THREADS_BIND": "0|1"},
    ),
    "memory for less than one request": Failure(NO_ROOM, flags=("--num-gpu-blocks-override", "1")),
    "more memory than there is": Failure(
        r"is less than requested memory for kv", environment={"VLLM_CPU_KVCACHE_SPACE": "100000"}
    ),
}
ON_GPU: Final = {
    "a GPU too small": Failure(NO_ROOM, flags=("--gpu-memory-utilization", "0.002")),
    "a GPU that others use": Failure(
        r"ValueError: Free memory on device .* is less than desired", flags=("--gpu-memory-utilization", "1.0")
    ),
}
FAILURES: Final = ANYWHERE | (ON_GPU if torch.cuda.is_available() else ON_CPU)


def run_server(path: Path, failure: Failure) -> tuple[int | None, float, list[str]]:
    """Exit code (None: it started, or took too long), seconds, and lines of what it printed."""
    command = [*VLLM, "serve", str(path), "--host", "127.0.0.1", "--port", str(free_port())]
    command += ["--max-model-len", "256", "--enforce-eager", *failure.flags]
    begin = time.monotonic()
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"} | failure.environment,
    ) as server:
        try:
            output, _ = server.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, 9)
            return None, time.monotonic() - begin, []
    return server.returncode, time.monotonic() - begin, output.splitlines()


def main() -> int:
    bad = 0
    for name in sys.argv[1:] or FAILURES:
        failure = FAILURES[name]
        with tempfile.TemporaryDirectory() as folder:
            path = build_checkpoint(Path(folder, "model"), WeightFormat("elements")).path
            failure.spoil(path)
            code, seconds, lines = run_server(path, failure)
        told = [index for index, line in enumerate(lines) if re.search(failure.cause, line)]
        bad += not code or not told
        print(f"\n{name}: exit code {code} after {seconds:.0f} s, {len(lines)} lines")
        if told:
            print(f"  {len(lines) - told[-1] - 1} lines from the end: {lines[told[-1]].strip()[:400]}")
        print("  last: " + "\n        ".join(line[:200] for line in lines[-2:]), flush=True)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
