"""Starting kernels: for real, or only as far as their compilation."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

_COMPILING: Final = ContextVar("squeeze10_compiling", default=False)


@contextmanager
def only_compiling() -> Iterator[None]:
    """Inside, in this thread, `start` compiles and leaves results as they are.

    Triton loads a kernel when it is first launched, and a thread that finds one in its cache meanwhile launches nothing
    and raises: threads may compile side by side, not launch.
    """
    before = _COMPILING.set(True)
    try:
        yield
    finally:
        _COMPILING.reset(before)


def start(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """`kernel[grid](...)`; under `only_compiling` what that would compile."""
    if _COMPILING.get():
        kernel.warmup(*arguments, grid=grid, **options)
    else:
        kernel[grid](*arguments, **options)
