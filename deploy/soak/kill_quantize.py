"""Kill `squeeze10 quantize` at random moments until it is through, and compare the result with an undisturbed run.

    PYTHONPATH=tests python deploy/soak/kill_quantize.py [--kills 200] [--seed 0]

A tiny random model; every kill is SIGKILL after a random part of the time that a whole run takes.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tiny_model import SMALL, digests, write_tiny_model

QUANTIZE = [sys.executable, "-m", "squeeze10_quantizer.cli", "quantize"]


def killed(command: list[str], seconds: float) -> bool:
    """Run a command for at most `seconds`; whether it had to be killed. A failure of its own raises."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            _, message = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return True
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode} after a kill: {message}")
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    moment = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        model, whole = write_tiny_model(Path(folder, "model")), Path(folder, "whole", "out")
        start = time.monotonic()
        killed([*QUANTIZE, str(model), str(whole), *SMALL], 600)
        seconds = time.monotonic() - start
        kills = finished = 0
        while kills < options.kills:
            place = Path(folder, f"run-{finished}")
            place.mkdir()
            command = [*QUANTIZE, str(model), str(place / "out"), *SMALL]
            while not (place / "out").exists():
                limit = moment.uniform(0.3, 1.1) * seconds if kills < options.kills else 600
                kills += killed(command, limit)
            if digests(place / "out") != digests(whole):
                raise RuntimeError("the output after kills differs")
            left = sorted(path.name for path in place.iterdir())
            finished += 1
            print(f"{kills} kills, {finished} outputs equal, left behind beside the last: {left}", flush=True)


if __name__ == "__main__":
    main()
