"""kill -9 at renames, flushes and removals: a few of them here, every one in `make soak`."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_killed_runs_end_with_the_same_bytes() -> None:
    """In a process of its own: a fork of this one would inherit torch's threads as they stand."""
    script = ROOT / "deploy" / "soak" / "kill_boundaries.py"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"}

    run = subprocess.run(
        [sys.executable, script, "--stride", "24"], env=environment, capture_output=True, text=True, check=False
    )

    assert run.returncode == 0, run.stderr[-2000:]
    assert "plain: 4 kills around" in run.stdout, run.stdout
