"""Stop `squeeze10 quantize` at random moments until it is through, and compare the result with an undisturbed run.

    PYTHONPATH=tests python deploy/soak/kill_quantize.py [--kills 200] [--recipe tuned] [--signal TERM] [--seed 0]

A tiny random model; every moment is a random part of the time that a whole run takes. SIGKILL ends a run on the spot;
after SIGTERM it must end by itself with exit code 75, or 0 if it was through.
"""

import argparse
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

from kill_runs import RECIPES, Runs, stage

STOPPED = 75


def interrupted(runs: Runs, out: Path, seconds: float, number: int) -> bool:
    """Run and signal after so many seconds; whether that stopped it. A failure of its own raises."""
    process = runs.start(out)
    time.sleep(seconds)
    code = runs.signal(process, number)
    if code not in (0, -number, STOPPED if number == signal.SIGTERM else 0):
        raise RuntimeError(f"exit code {code}: {(out.parent / 'stderr').read_text()[-2000:]}")
    return code != 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--recipe", choices=RECIPES, default="plain")
    parser.add_argument("--signal", choices=["KILL", "TERM"], default="KILL")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    moment = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder), options.recipe)
        start = time.monotonic()
        runs.finish(runs.new_place())
        seconds = time.monotonic() - start
        stages: Counter[str] = Counter()
        outputs, left_behind = 0, 0
        while stages.total() < options.kills:
            out = runs.new_place()
            while not out.exists():
                if interrupted(runs, out, moment.uniform(0, 1.1) * seconds, signal.Signals[f"SIG{options.signal}"]):
                    stages[stage(out)] += 1
            left_behind += bool(runs.check(out))
            outputs += 1
            print(f"{stages.total()} stops, {outputs} outputs equal", flush=True)
        found = ", ".join(f"{count} {name}" for name, count in sorted(stages.items()))
        print(f"{options.recipe}, SIG{options.signal}: {stages.total()} stops ({found}), {outputs} outputs equal,")
        print(f"the state of {left_behind} left beside a whole output; {seconds:.2f} s for a run", flush=True)


if __name__ == "__main__":
    main()
