"""Kill `squeeze10 quantize` right before and right after everything that lasts, then finish it and compare.

    PYTHONPATH=tests python deploy/soak/kill_boundaries.py [--recipe tuned] [--stride 1]

What lasts: every call of `os` that renames, flushes, makes or removes. The k-th call of a run ends it by SIGKILL, for
every k and on both sides; the same command must then end with the bytes of an undisturbed run, and leave nothing else.
A run killed after it removed its state's identity has its output, and beside it an empty directory at most.
"""

import argparse
import os
import signal
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial, wraps
from itertools import count
from pathlib import Path
from typing import Any, Final

from kill_runs import RECIPES, Runs, stage

from squeeze10_quantizer.state_directory import LOCK, has_state, state_path

CALLS: Final = ("rename", "replace", "fsync", "mkdir", "rmdir", "unlink")
SIDES: Final = ("before", "after")


def count_calls(log: Path) -> None:
    """Write the name of every call to a file."""

    def visit(name: str, _: int, side: str) -> None:
        if side == "before":
            with log.open("a") as file:
                file.write(f"{name}\n")

    with_each_call(visit)


def die_at(number: int, side: str) -> None:
    """End this process at the n-th call, on one side of it."""

    def visit(_: str, current: int, now: str) -> None:
        if (current, now) == (number, side):
            os.kill(os.getpid(), signal.SIGKILL)

    with_each_call(visit)


def with_each_call(visit: Callable[[str, int, str], None]) -> None:
    """From now on call `visit(name, number, side)` around every call in `CALLS` of this process, counted from 1."""
    numbers = count(1)

    def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def visited(*arguments: Any, **named: Any) -> Any:
            number = next(numbers)
            visit(name, number, "before")
            try:
                return call(*arguments, **named)
            finally:
                visit(name, number, "after")

        return visited

    for name in CALLS:
        setattr(os, name, watched(name, getattr(os, name)))


def calls_of_a_run(runs: Runs) -> list[str]:
    """Names of all calls of an undisturbed run, in their order."""
    out, log = runs.new_place(), runs.folder / "calls"
    code = runs.end(runs.start(out, partial(count_calls, log)))
    if code:
        raise RuntimeError(f"exit code {code} while calls were counted")
    return log.read_text().split()


def kill_at(runs: Runs, number: int, side: str) -> str:
    """Kill a run at a call, finish it, compare; how far it had come."""
    out = runs.new_place()
    code = runs.end(runs.start(out, partial(die_at, number, side)))
    if code != -signal.SIGKILL:
        raise RuntimeError(f"call {number} was never reached: exit code {code}")
    reached = stage(out)
    repeatable = not out.exists() or has_state(out)
    if repeatable:
        runs.finish(out)
    left = runs.check(out)
    if left and (repeatable or not is_empty_state(out, left)):
        raise RuntimeError(f"{left} left behind after a kill {side} call {number}")
    if reached == "published" and repeatable:
        return "published, the state then removed"
    return reached + (", an empty directory left" if left else "")


def is_empty_state(out: Path, left: list[str]) -> bool:
    """Whether what lies beside an output is its state's directory, with its lock at most."""
    state = state_path(out)
    return left == [state.name] and {file.name for file in state.iterdir()} <= {LOCK}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=RECIPES, default="plain")
    parser.add_argument("--stride", type=int, default=1, help="kill at every so-manieth call only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder), options.recipe)
        calls = calls_of_a_run(runs)
        tried: Counter[str] = Counter()
        stages: Counter[str] = Counter()
        for number in range(1, len(calls) + 1, options.stride):
            for side in SIDES:
                stages[kill_at(runs, number, side)] += 1
                tried[calls[number - 1]] += 1
            print(f"call {number} of {len(calls)}, {calls[number - 1]}: equal", flush=True)
    found = ", ".join(f"{count} {name}" for name, count in sorted(stages.items()))
    print(f"{options.recipe}: {stages.total()} kills around {dict(tried)}, all equal afterwards: {found}")


if __name__ == "__main__":
    main()
