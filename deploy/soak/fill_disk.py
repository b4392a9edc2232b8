"""Quantize onto a disk of every size from too small to just enough, then with room, and compare the results.

    PYTHONPATH=tests unshare --map-root-user --mount python deploy/soak/fill_disk.py [--step 16]

The disk is a tmpfs: `unshare` lets a plain user mount one, and takes it away when the script ends. Every run on a full
disk must end with exit code 74 and without OUT; the same command must finish with the same bytes once there is room.
"""

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tiny_model import SMALL, digests, write_tiny_model

QUANTIZE = [sys.executable, "-m", "squeeze10_quantizer.cli", "quantize"]
IO_ERROR = 74


def mount(disk: Path, kibibytes: int, *options: str) -> None:
    """Mount a tmpfs of a size, or give the mounted one another size."""
    flags = ",".join((f"size={kibibytes}k", *options))
    subprocess.run(["mount", "-t", "tmpfs", "-o", flags, "tmpfs", str(disk)], check=True)


def quantize(model: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """One run."""
    return subprocess.run([*QUANTIZE, str(model), str(out), *SMALL], capture_output=True, text=True, check=False)


def stage(out: Path) -> str:
    """How far a run came that stopped."""
    state = out.with_name("out.partial")
    layers = len(list(state.glob("layer-*"))) if state.is_dir() else 0
    return f"{layers} layers kept"


def fill(model: Path, disk: Path, kibibytes: int, whole: dict[str, str]) -> str | None:
    """Run on a disk of that size, then on a large one; the stage that failed, or None if there was room."""
    mount(disk, kibibytes)
    try:
        out = disk / "out"
        result = quantize(model, out)
        if result.returncode == 0:
            return None
        if result.returncode != IO_ERROR or out.exists() or "Traceback" in result.stderr:
            raise RuntimeError(f"{kibibytes} KiB: exit code {result.returncode}: {result.stderr[-600:]}")
        reached = stage(out)
        mount(disk, 10_000, "remount")
        if quantize(model, out).returncode or digests(out) != whole:
            raise RuntimeError(f"{kibibytes} KiB: the run that went on from {reached} does not give the same bytes")
        return reached
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", type=int, default=16, help="KiB between two sizes")
    parser.add_argument("--first", type=int, default=4, help="KiB of the smallest disk")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, disk = write_tiny_model(Path(folder, "model")), Path(folder, "disk")
        disk.mkdir()
        undisturbed = Path(folder, "out")
        if quantize(model, undisturbed).returncode:
            raise RuntimeError("the undisturbed run failed")
        whole = digests(undisturbed)
        reached: Counter[str] = Counter()
        size = options.first
        while (failed := fill(model, disk, size, whole)) is not None:
            reached[failed] += 1
            print(f"{size} KiB: full with {failed}, then the same bytes", flush=True)
            size += options.step
    print(f"{reached.total()} full disks, {size} KiB suffice: {dict(reached)}")


if __name__ == "__main__":
    main()
