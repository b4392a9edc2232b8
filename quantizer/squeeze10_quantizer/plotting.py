"""Whether there is matplotlib, the extra `bench`; without it there are tables, and a sentence on what is missing."""

import sys
from importlib import import_module


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    try:
        import_module("matplotlib.figure")
    except ImportError:
        return False
    return True


def say_no_plots() -> None:
    """Say what to install."""
    print("No plots: matplotlib is missing; run: pip install 'squeeze10-vllm[bench]'.", file=sys.stderr)
