"""Time and memory of every refusal: each fault of the corpus, by each of its readers, in a process of its own.

    PYTHONPATH=tests python deploy/soak/measure_refusals.py

Processes are forked after everything is imported, so that what is measured is the refusal. None may take more than
2 s or 200 MiB; the script names the slowest and the largest.
"""

import json
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from faults.readers import command
from faults.spoiling import FAULTS, sound_checkpoints
from faults.test_malformed import spoiled

from squeeze10_kernels import BadInput, WeightFormat
from squeeze10_quantizer import export_dense, inspection, loading, perplexity, tasks
from squeeze10_quantizer.cli import BAD_DATA, main
from squeeze10_vllm.config import Squeeze10Config

IMPORTED = (export_dense, inspection, loading, perplexity, tasks)
"""What the commands import when they run."""
MAX_SECONDS = 2.0
MAX_BYTES = 200 * 2**20


def peak_bytes() -> int:
    """The most memory that this process has held since its peak was reset."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def refuse(reader: str, path: Path, place: Path) -> int:
    """Exit code of a reader."""
    if reader != "plugin":
        return main(command(reader, path, place))
    try:
        Squeeze10Config(WeightFormat()).maybe_update_config(str(path))
    except BadInput:
        return BAD_DATA
    return 0


def measure(reader: str, path: Path, place: Path) -> dict[str, Any]:
    """Exit code, seconds and bytes of one refusal in a forked process."""
    result = place / "result.json"
    result.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        Path("/proc/self/clear_refs").write_text("5")
        before, start = peak_bytes(), time.monotonic()
        code = refuse(reader, path, place)
        seconds, size = time.monotonic() - start, peak_bytes() - before
        result.write_text(json.dumps({"code": code, "seconds": seconds, "bytes": size}))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status or not result.is_file():
        raise RuntimeError(f"{path} by {reader}: the process ended with status {status}")
    measured: dict[str, Any] = json.loads(result.read_text())
    return measured


def measure_all() -> None:
    torch.set_num_threads(1)  # others would not outlive the fork, and its child would wait for them for ever
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        sound = sound_checkpoints(Path(folder, "sound"))
        for name, fault in FAULTS.items():
            place = Path(folder, "place")
            place.mkdir()
            path = spoiled(name, sound, place)
            rows += [{"fault": name, "reader": reader, **measure(reader, path, place)} for reader in fault.readers]
            shutil.rmtree(place)
    slowest, largest = (max(rows, key=lambda row, key=key: row[key]) for key in ("seconds", "bytes"))  # type: ignore[misc]
    print(f"{len(FAULTS)} faults, {len(rows)} refusals")
    print(f"slowest: {slowest['seconds']:.2f} s, {slowest['fault']} by {slowest['reader']}")
    print(f"largest: {largest['bytes'] / 2**20:.0f} MiB, {largest['fault']} by {largest['reader']}")
    accepted = [row for row in rows if row["code"] != BAD_DATA]
    if accepted or slowest["seconds"] > MAX_SECONDS or largest["bytes"] > MAX_BYTES:
        sys.exit(f"beyond {MAX_SECONDS} s or {MAX_BYTES} bytes, or accepted: {accepted}")


if __name__ == "__main__":
    measure_all()
