"""A kernel compiled for other arguments must not be launched: it would read past ends or at wrong alignments."""

from collections.abc import Callable
from typing import Any

import torch
import triton

from squeeze10_kernels.launching import _specialized, cdiv, power_of_2, start

INTEGERS = (0, 1, 2, 15, 16, 17, 4096, 4097, 2**31 - 1, 2**31 - 16, 2**31, 2**31 + 16)
MEMORY = torch.zeros(64, dtype=torch.int16)
TENSORS = [MEMORY[at:].view(dtype) for at in (0, 1, 2, 8) for dtype in (torch.int16, torch.float16, torch.bfloat16)]


def test_what_triton_tells_apart_is_told_apart() -> None:
    from triton._C.libtriton import native_specialize_impl
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend

    backend = make_backend(GPUTarget("cuda", 90, 32))
    arguments = [*INTEGERS, *TENSORS]
    by_triton = [native_specialize_impl(backend, argument, False, True, True) for argument in arguments]
    ours = [_specialized(argument) for argument in arguments]
    assert len(set(by_triton)) > 8
    for theirs, mine in zip(by_triton, ours, strict=True):
        assert {other for other, key in zip(by_triton, ours, strict=True) if key == mine} == {theirs}


def test_a_descriptor_is_told_apart_by_its_block() -> None:
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    x, keys = torch.zeros(128, 128, dtype=torch.bfloat16), set()
    for tokens in (16, 32):
        layout = gl.NVMMASharedLayout.get_default_for([tokens, 64], gl.bfloat16)
        keys.add(_specialized(TensorDescriptor(x, [128, 128], [128, 1], [tokens, 64], layout)))
    assert len(keys) == 2


class Recorder:
    """Stands for a kernel, and for what it compiles to."""

    arg_names = ("x", "M", "BLOCK", "PDL")

    def __init__(self) -> None:
        self.compiled: list[tuple[object, ...]] = []
        self.launched: list[tuple[object, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        def launch(*arguments: object, **options: object) -> object:
            if options:
                self.compiled.append((grid, *arguments, *options.values()))
                return self
            return self.launched.append((grid, *arguments))

        return launch


def test_a_second_launch_has_its_own_arguments_and_the_first_ones_constants_in_order() -> None:
    kernel, other = Recorder(), MEMORY[8:]
    start(kernel, (4, 1, 1), MEMORY, 32, PDL=False, num_warps=4, BLOCK=64)
    start(kernel, (5, 1, 1), other, 48, PDL=False, num_warps=4, BLOCK=64)
    start(kernel, (5, 1, 1), other, 48, PDL=False, num_warps=8, BLOCK=64)
    assert kernel.compiled == [((4, 1, 1), MEMORY, 32, False, 4, 64), ((5, 1, 1), other, 48, False, 8, 64)]
    assert kernel.launched == [((5, 1, 1), other, 48, 64, False)]


def test_sizes_are_those_of_triton() -> None:
    for n in (1, 2, 3, 16, 17, 1000):
        assert power_of_2(n) == triton.next_power_of_2(n)
        assert [cdiv(n, b) for b in (1, 7, 16)] == [triton.cdiv(n, b) for b in (1, 7, 16)]
