"""Which kernels a layer compiles and runs when it is loaded: all of the first of a size, one of every other."""

from collections.abc import Callable

import pytest
import torch
from random_layers import random_problem

from squeeze10_kernels import WeightFormat
from squeeze10_kernels.launching import start
from squeeze10_kernels.reference import mixed_linear_reference
from squeeze10_vllm import linear
from squeeze10_vllm.config import Squeeze10Config
from squeeze10_vllm.linear import Squeeze10LinearMethod

K, COUNTS = 520, [1, 8, 300]


class Kernel:
    """Notes how many tokens it was compiled for, and launched with."""

    def __init__(self) -> None:
        self.compiled: list[int] = []
        self.launched: list[int] = []

    def warmup(self, tokens: int, *, grid: tuple[int, ...]) -> None:
        self.compiled.append(tokens)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[[int], None]:
        return self.launched.append


class Recorded(Squeeze10LinearMethod):
    """Gives what the layer means, and starts a kernel for it."""

    def multiply(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        start(self.kernel, (1, 1, 1), len(x))
        return mixed_linear_reference(x, self.layer)

    def __init__(self, config: Squeeze10Config, N: int) -> None:
        super().__init__(config, ("model.layers.0.mlp.down_proj",))
        self.layer, self.packed, _ = random_problem(1, N, K, 0.2, torch.bfloat16)
        self.rows, self.width, self.salient_channels, self.dtype = [N], K, int(self.layer.salient.sum()), torch.bfloat16
        self.kernel = Kernel()

    def loaded(self) -> Kernel:
        module = torch.nn.Module()
        names = {"qweight": self.packed.words, "scales": self.packed.scales}
        for name, tensor in (
            names | {"channels": self.packed.channels, "channel_scales": self.packed.channel_scales}
        ).items():
            module.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))
        self.compile_kernels(module)
        return self.kernel


def test_all_kernels_of_a_size_run_once_and_every_layer_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 128 layers and a dozen kernels each, running all for every layer took most of a minute.

    Threads only compile: Triton raises where one launches what another loads.
    """
    checked: list[int] = []
    spot_check = linear.spot_check

    def counted(y: torch.Tensor, *rest: object) -> None:
        checked.append(len(y))
        spot_check(y, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(linear, "spot_check", counted)
    monkeypatch.setattr(linear, "gpu_of", lambda device: None)
    monkeypatch.setattr(linear, "warm_up_tokens", lambda N, K, gpu: COUNTS)
    config = Squeeze10Config(WeightFormat())

    for N, new in ((48, True), (48, False), (64, True)):
        kernel = Recorded(config, N).loaded()
        assert sorted(kernel.compiled) == (COUNTS if new else [])
        assert kernel.launched == (COUNTS if new else COUNTS[:1])
    assert checked == [*COUNTS, COUNTS[0], *COUNTS]
