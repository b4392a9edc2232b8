"""Starting kernels: for real, or only as far as their compilation."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import torch

_COMPILING: Final = ContextVar("squeeze10_compiling", default=False)
_LAUNCHED: Final[dict[tuple[object, ...], tuple[Any, tuple[object, ...]]]] = {}
"""The compiled kernel, which keeps that of the key alive, and its constants in their order."""


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


def start(kernel: Any, grid: tuple[int, int, int], *arguments: Any, **options: Any) -> None:
    """`kernel[grid](...)`; under `only_compiling` what that would compile.

    Triton takes longer to find what it has compiled than many of our kernels run; what was launched before is found
    here, so that neither other values of its globals nor Triton's hooks and knobs for compiling are noticed after that.

    Args:
        kernel: Takes `arguments`, then constants only.
        arguments: Tensors, descriptors, and integers from 0 below 2**63.
        options: All its constants and Triton's options, the same names in the same order at every call.
    """
    if _COMPILING.get():
        kernel.warmup(*arguments, grid=grid, **options)
        return
    key = (id(kernel), *map(_specialized, arguments), *options.values())
    if launched := _LAUNCHED.get(key):
        compiled, constants = launched
        compiled[grid](*arguments, *constants)
    elif compiled := kernel[grid](*arguments, **options):  # None in Triton's interpreter
        _LAUNCHED[key] = compiled, tuple(options[name] for name in kernel.arg_names[len(arguments) :])


def _specialized(argument: Any) -> tuple[object, ...]:
    """What Triton compiles anew for."""
    if isinstance(argument, torch.Tensor):
        return argument.dtype, argument.get_device(), argument.data_ptr() % 16
    if isinstance(argument, int):
        return argument == 1, argument % 16 == 0, argument.bit_length() > 31
    return argument.base.dtype, argument.base.get_device(), *argument.block_shape, argument.layout


def cdiv(a: int, b: int) -> int:
    """Rounded up; Triton's own takes 2 us."""
    return -(-a // b)


def power_of_2(n: int) -> int:
    """The least that is not below n, which is 1 or more."""
    return 1 << (n - 1).bit_length()
