"""Kill the engine of a server under load, again and again: the server ends, says why, and no client waits for ever.

PYTHONPATH=tests:deploy:deploy/gate python deploy/soak/kill_engine.py [--kills 3] [--seed 0]
"""

import argparse
import asyncio
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

from soak.load_server import FLAGS, MODEL
from soak.processes import find_engine, find_server, wait_for_end
from soak.streams import Tally, run_streams
from vllm_server import serving

END_LIMIT_S: Final = 15
REASON: Final = "engine core exited unexpectedly"
"""In vLLM 0.32's log."""


def kill_under_load(folder: Path, after_s: float) -> str:
    """One server, 64 clients, one SIGKILL; what followed, `RuntimeError` if it is not what must follow."""
    log, tallies = folder / "server.log", list[Tally]()
    with serving(MODEL, log, *FLAGS) as base_url:
        server = find_server(base_url)
        load = threading.Thread(target=lambda: tallies.append(asyncio.run(run_streams(base_url, after_s + 10))))
        load.start()
        time.sleep(after_s)
        begin = time.monotonic()
        find_engine(server).kill()
        code = wait_for_end(server.pid, END_LIMIT_S)
        seconds = time.monotonic() - begin
        load.join(60)
    if code is None or load.is_alive() or REASON not in log.read_text():
        raise RuntimeError(f"Code {code}, clients waiting: {load.is_alive()}; the log ends: {log.read_text()[-2000:]}")
    told = sum(count for end, count in tallies[0].outcomes.items() if end in ("APIError", "status 500", "status 503"))
    return f"ended after {seconds:.1f} s with code {code}; {told} clients were told"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    for _ in range(options.kills):
        with tempfile.TemporaryDirectory() as folder:
            print(kill_under_load(Path(folder), chance.uniform(1, 20)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
