"""`OUT.partial`, the state of an unfinished run beside its output: for one process at a time, and one set of inputs.

A process that is killed leaves a state that the next one takes up: files appear by a rename, the lock ends with its
holder, and what the killed one was still writing is removed. Killed after it published the output, it leaves a state
that the same command removes.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from squeeze10_kernels import BadInput
from squeeze10_kernels.checkpoint import read_json
from squeeze10_quantizer.directory import lock, refuse_existing, replaced, write_json

SPILL_PREFIX: Final = "activations-"
"""Of the directories, inside that of the state, which hold the calibration activations of a running process."""
IDENTITY: Final = "state.json"
LOCK: Final = "lock"
STAGING: Final = "output"
"""Of the directory, inside that of the state, in which the output is written before it is published."""


class StateDirectory:
    """What is finished, kept until the output is whole.

    Attributes:
        path: The directory, of `state_directory`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def staging(self) -> Path:
        """Where the output is written before it is published."""
        return self.path / STAGING

    def remove(self) -> None:
        """Delete the directory, once the output is published.

        What is kept goes first: files without the identity they belong to would be taken for those of another run.
        """
        for entry in self.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name not in (IDENTITY, LOCK):
                entry.unlink()
        (self.path / IDENTITY).unlink()
        shutil.rmtree(self.path)


def state_path(out: Path) -> Path:
    """Where the state of a run into `out` lies."""
    return out.with_name(f"{out.name}.partial")


def has_state(out: Path) -> bool:
    """Whether a state lies beside `out` that says whose it is."""
    return (state_path(out) / IDENTITY).is_file()


def was_published(out: Path) -> bool:
    """Whether `out` stands beside its state; `BadInput` if it stands alone, since nothing is overwritten."""
    published = out.exists() and has_state(out)
    if not published:
        refuse_existing(out)
    return published


def remove_leftover(out: Path, identity: dict[str, Any], difference_from_output: Callable[[], str]) -> None:
    """Remove the state of a run that was killed after it published `out`.

    Args:
        difference_from_output: Why `out` is not what a run with this identity publishes; empty if it is.

    Raises:
        BadInput: The state is not of this run or in use, or `out` is not its whole output; nothing is removed then.
    """
    path = state_path(out)
    with lock(path / LOCK):
        found = changes(read_json(path / IDENTITY), identity)
        if found:
            raise BadInput(
                f"{out} exists already and is not overwritten, and {path} is the state of a run with {found}; "
                "repeat that run's command to be rid of the state, or choose another name."
            )
        found = difference_from_output()
        if found:
            raise BadInput(
                f"{out} exists already and is not overwritten, and is not the whole output of the run whose state is "
                f"{path} ({found}); remove {out} to go on from that state, or choose another name."
            )
        StateDirectory(path).remove()


@contextmanager
def state_directory(out: Path, identity: dict[str, Any]) -> Iterator[Path]:
    """The directory of a run into `out`, new or of an earlier run with the same identity, for this process alone.

    Raises:
        BadInput: An earlier run had another identity, or is not over.
    """
    path = state_path(out)
    path.mkdir(parents=True, exist_ok=True)
    with lock(path / LOCK):
        state = path / IDENTITY
        if state.is_file():
            refuse_difference(path, read_json(state), identity)
        else:
            with replaced(state) as file:
                write_json(file, identity)
        for unfinished in (*path.glob(f"{SPILL_PREFIX}*"), path / STAGING):
            if unfinished.exists():
                shutil.rmtree(unfinished)
        yield path


def refuse_difference(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise `BadInput` naming what changed since the interrupted run."""
    found = changes(before, now)
    if found:
        raise BadInput(
            f"{path} holds an interrupted run with {found}; "
            "repeat that run's command to finish it, or remove the directory to start anew."
        )


def changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """How the identity of this run differs from what another wrote as JSON, in words; empty if it does not."""
    now = json.loads(json.dumps(now))
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    return "; ".join(f"another {key} ({difference(before.get(key), now.get(key))})" for key in changed)


def difference(before: Any, now: Any) -> str:
    """Two values; of objects only the entries that differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        return ", ".join(f"{key}: {difference(before.get(key), now.get(key))}" for key in keys)
    return f"{before!r}, now {now!r}"
