"""Runs of `squeeze10 quantize` that are killed, and what they leave: for `kill_quantize.py` and `kill_boundaries.py`.

A run is a fork of a process that has imported everything, so that its time is the quantizer's and not Python's start.
"""

import os
import random
import string
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from tiny_model import SMALL, digests, write_tiny_model

from squeeze10_quantizer import cli, quantize

TUNED: Final = [
    "--samples", "4", "--context", "16", "--pbar", "--fias", "--device", "cpu", "--head-bits", "4",
    "--tune", "distill", "--tune-steps", "4", "--distill-tokens", "8000",
]  # fmt: skip
"""With text of 2000 letters: 62 windows of 16 tokens are a step, 8 steps."""
RECIPES: Final = {"plain": SMALL, "tuned": TUNED}


class Runs:
    """A tiny model, a recipe, and the sums of what an undisturbed run writes.

    Attributes:
        folder: Where all runs write.
        undisturbed: SHA-256 of every file.
    """

    def __init__(self, folder: Path, recipe: str) -> None:
        torch.set_num_threads(1)  # a fork does not inherit threads
        self.folder = folder
        self.model = write_tiny_model(folder / "model")
        text = folder / "letters.txt"
        text.write_text("".join(random.Random(0).choices(string.ascii_letters, k=2000)))
        self.options = [*RECIPES[recipe], "--calibration", str(text)]
        self.count = 0
        out = self.new_place()
        self.finish(out)
        self.undisturbed = digests(out)

    def new_place(self) -> Path:
        """An output in a directory of its own."""
        self.count += 1
        place = self.folder / f"run-{self.count}"
        place.mkdir()
        return place / "out"

    def start(self, out: Path, prepare: Callable[[], None] = lambda: None) -> int:
        """A run's process id; `prepare` is called in it first."""
        process = os.fork()
        if process:
            return process
        code = 1
        try:
            log = os.open(out.parent / "stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, sys.stderr.fileno())
            os.dup2(log, sys.stdout.fileno())
            quantize.SHOW_STEPS, quantize.SAVE_SECONDS = 1, 0.0  # every step of a distillation is kept
            prepare()
            code = cli.main(["quantize", str(self.model), str(out), *self.options])
        finally:
            os._exit(code)

    def signal(self, process: int, number: int) -> int:
        """Signal a run, which may have ended, and wait for it."""
        os.kill(process, number)
        return self.end(process)

    def end(self, process: int) -> int:
        """Wait for a run: its exit code, or its signal's number below zero."""
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

    def finish(self, out: Path) -> None:
        """Run undisturbed; a failure of its own raises."""
        code = self.end(self.start(out))
        if code:
            raise RuntimeError(f"exit code {code}: {(out.parent / 'stderr').read_text()[-2000:]}")

    def check(self, out: Path) -> list[str]:
        """Raise unless the output is that of the undisturbed run; what lies beside it."""
        if digests(out) != self.undisturbed:
            raise RuntimeError(f"{out} differs from the undisturbed output")
        return sorted(path.name for path in out.parent.iterdir() if path.name not in (out.name, "stderr"))


def stage(out: Path) -> str:
    """How far a run came, by what it left."""
    if out.exists():
        return "published"
    state = out.with_name(f"{out.name}.partial")
    if (state / "output").exists():
        return "writing the output"
    if list(state.glob("distilled-*")):
        return "distilled layers kept"
    if (state / "distillation.safetensors").exists():
        return "distilling"
    return f"{len(list(state.glob('layer-*')))} layers kept"
