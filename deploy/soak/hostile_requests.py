"""Every hostile body of the tests to one server, an honest request after each; with our gate or vLLM alone.

    PYTHONPATH=tests:deploy:deploy/gate python deploy/soak/hostile_requests.py [--alone]

Prints what did not get a 4xx. With the gate that is a failure; alone it is a finding on vLLM (tests/FAULTS.md), and the
server's memory is bounded, since one of the bodies would take all of the machine's.
"""

import argparse
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

import httpx
from e2e.bodies import anonymous_client, completion, status_of
from e2e.hostile_bodies import HOSTILE
from soak.load_server import FLAGS, LOG, MODEL
from vllm_server import serving

ALONE: Final = ("--quantization", "squeeze10", "--no-enable-chunked-prefill")
MAX_ADDRESSES: Final = 9 * 2**30
"""Bytes of address space for each process: twice what a server of the demo model has after its start."""
UNANSWERED: Final = 0


def status(client: httpx.Client, path: str, body: bytes) -> int:
    """The status, or `UNANSWERED`."""
    try:
        return status_of(client, path, body)
    except httpx.HTTPError:
        return UNANSWERED


def send_all(base_url: str) -> tuple[dict[str, int], dict[str, float], list[str]]:
    """Statuses and seconds by name, and the names after which an honest request was not answered."""
    statuses, seconds, broken = {}, {}, []
    with anonymous_client(base_url) as client:
        for name, (path, body) in HOSTILE.items():
            begin = time.monotonic()
            statuses[name] = status(client, path, body)
            seconds[name] = time.monotonic() - begin
            if status(client, *completion(max_tokens=1)) != 200:
                broken.append(name)
                if not status(client, *completion(max_tokens=1)):
                    break  # nobody is there any more
    return statuses, seconds, broken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alone", action="store_true", help="without the gate")
    parser.add_argument("--log", type=Path, default=LOG, help="file that takes what the server prints")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESSES, MAX_ADDRESSES))
    with serving(MODEL, options.log, *(ALONE if options.alone else FLAGS)) as base_url:
        statuses, seconds, broken = send_all(base_url)
    slowest = max(seconds, key=seconds.__getitem__)
    kinds = Counter(f"{value // 100}xx" if value else "no answer" for value in statuses.values())
    print(f"{len(statuses)} of {len(HOSTILE)} bodies: {dict(kinds)}")
    print(f"slowest: {seconds[slowest]:.1f} s, {slowest}; no answer to an honest request after: {broken}")
    other = {name: value for name, value in statuses.items() if not 400 <= value < 500}
    print(f"not refused: {other}")
    return int(bool(other or broken) or len(statuses) < len(HOSTILE))


if __name__ == "__main__":
    sys.exit(main())
