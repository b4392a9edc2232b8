"""The `squeeze10` command, as benchmarks call it."""

import subprocess
import sys


def squeeze10(*arguments: str) -> str:
    """Run one command and return what it printed; progress and messages stay on the terminal."""
    command = [sys.executable, "-m", "squeeze10_quantizer.cli", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
