"""64 clients of a real server, some of which leave in the middle: does it come to rest, stay right, and stay as large?

    PYTHONPATH=tests:deploy:deploy/gate python deploy/soak/load_server.py [--seconds 1800] [--seed 0]
        [--flags no-enforce-eager gpu-memory-utilization=0.15]

`vllm serve` of the demo model, behind the gate of deploy/gate. Fails, with a sentence, if a request ends in an error,
the counters of running and waiting requests and of cache use do not return to zero, a greedy answer differs before
and after, or memory grows after warm-up by more than `ALLOWANCE` beyond doubt (slope.py).
"""

import argparse
import asyncio
import csv
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

import psutil
import torch
from openai import OpenAI
from soak.counters import wait_for_rest
from soak.processes import find_server, memory_bytes
from soak.slope import MIN_SAMPLES, fit_slope
from soak.streams import Tally, run_streams
from vllm_server import SERVED_NAME, is_healthy, serving

MODEL: Final = Path(__file__).resolve().parents[1] / "models" / "smollm2-135m-sq10"
FLAGS: Final = (
    "--quantization",
    "squeeze10",
    "--middleware",
    "request_gate.RequestGate",
    *(() if torch.cuda.is_available() else ("--no-enable-chunked-prefill",)),
)
"""The last one on CPUs only: without it the engine dies there when it cuts a prompt of a request with a seed."""
LOG: Final = Path(tempfile.gettempdir(), "squeeze10-soak-server.log")
"""Takes what the server prints."""
MIB: Final = 2**20
ALLOWANCE: Final = 0.2 * MIB / 60
"""Bytes per second: below what a server loses that keeps one kilobyte of every request, at 4 requests per second."""
SAMPLE_S: Final = 5.0
BUSY_LIMIT_S: Final = 30
"""For /health of a server that still works off what its clients left."""


class MemoryWatch(threading.Thread):
    """Measures a server's memory every few seconds until told to stop.

    Attributes:
        seconds: When, since the start.
        sizes: Bytes by process name, for each of them.
    """

    def __init__(self, base_url: str) -> None:
        super().__init__(daemon=True)
        self.server = find_server(base_url)
        self.seconds: list[float] = []
        self.sizes: list[dict[str, int]] = []
        self.over = threading.Event()

    def run(self) -> None:
        start = time.monotonic()
        while not self.over.is_set():
            try:
                self.sizes.append(memory_bytes(self.server))
            except psutil.NoSuchProcess:
                return  # who asks the server finds it dead, and says so
            self.seconds.append(time.monotonic() - start)
            self.over.wait(SAMPLE_S)

    def totals(self) -> list[float]:
        """Bytes of all processes."""
        return [float(sum(sizes.values())) for sizes in self.sizes]


def greedy_answer(base_url: str) -> Any:
    """Tokens and log-probabilities of one request, alone on the server."""
    client = OpenAI(base_url=base_url, api_key="none", timeout=120)
    options: dict[str, Any] = {"max_tokens": 16, "temperature": 0, "logprobs": 1}
    answer = client.completions.create(model=SERVED_NAME, prompt="The capital of France is", **options).choices[0]
    return answer.text, answer.logprobs and answer.logprobs.token_logprobs


def faults_under_load(base_url: str, seconds: float, **load: int) -> tuple[Tally, list[str]]:
    """What the clients got, and sentences on what is wrong; `load` goes to `run_streams`."""
    before = greedy_answer(base_url)
    tally = asyncio.run(run_streams(base_url, seconds, **load))
    faults = []
    if tally.errors():
        faults.append(f"Requests ended in errors: {tally.errors()}.")
    if not tally.outcomes["finished"] or not any(end.startswith("left") for end in tally.outcomes):
        faults.append(f"The load is none: {dict(tally.outcomes)}.")
    if not is_healthy(base_url.removesuffix("/v1"), BUSY_LIMIT_S):
        return tally, [*faults, "The server does not answer any more; its log says why."]
    if busy := wait_for_rest(base_url):
        faults.append(f"The server does not come to rest: {busy}.")
    after = greedy_answer(base_url)
    if after != before:
        faults.append(f"The greedy answer was {before!r} before the load and is {after!r} after it.")
    return tally, faults


def report_memory(watch: MemoryWatch) -> list[str]:
    """Print sizes and slopes; what is wrong with them."""
    if not any(watch.sizes):
        return ["Memory was not measured: this system has no /proc/PID/smaps_rollup."]
    names = sorted(set().union(*watch.sizes))
    parts = {name: [float(sizes.get(name, 0)) for sizes in watch.sizes] for name in names}
    parts["all"] = watch.totals()
    for name, values in parts.items():
        slope = fit_slope(watch.seconds, values)
        sizes = f"{values[0] / MIB:.0f} MiB at first, {values[-1] / MIB:.0f} at last, {max(values) / MIB:.0f} at most"
        rate = f"{slope.value * 60 / MIB:+.3f} ± {slope.error * 60 / MIB:.3f} MiB a minute after warm-up"
        print(f"{name:20s} {sizes}; {rate}")
    slope = fit_slope(watch.seconds, parts["all"])
    return [f"Memory grows: {slope.value * 60 / MIB:.2f} MiB a minute."] if slope.exceeds(ALLOWANCE) else []


def write_samples(path: Path, watch: MemoryWatch) -> None:
    """One line a sample: seconds, then bytes by process."""
    names = sorted(set().union(*watch.sizes))
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["seconds", *names])
        for at, sizes in zip(watch.seconds, watch.sizes, strict=True):
            lines.writerow([f"{at:.1f}", *(sizes.get(name, 0) for name in names)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--words", type=int, default=40, help="of the longest prompt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--flags", nargs="+", default=[], help="of vllm serve, without their dashes: name=value")
    parser.add_argument("--log", type=Path, default=LOG, help="file that takes what the server prints")
    parser.add_argument("--samples", type=Path, help="a CSV file for the memory's samples")
    options = parser.parse_args()
    flags = [f"--{flag}" for flag in options.flags]
    with serving(options.model, options.log, *FLAGS, *flags) as base_url:
        watch = MemoryWatch(base_url)
        watch.start()
        tally, faults = faults_under_load(
            base_url, options.seconds, streams=options.streams, seed=options.seed, words=options.words
        )
        watch.over.set()
        watch.join()
    print(f"{tally.outcomes.total()} requests, {tally.chunks} chunks: {dict(tally.outcomes)}")
    if options.samples:
        write_samples(options.samples, watch)
    if len(watch.seconds) >= MIN_SAMPLES:
        faults += report_memory(watch)
    else:
        faults.append(f"{len(watch.seconds)} samples of memory say nothing of its slope; {MIN_SAMPLES} are needed.")
    print("\n".join(faults) or "No fault.", f"The server's log: {options.log}", sep="\n")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
