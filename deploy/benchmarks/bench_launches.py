"""What launching a layer costs the host: microseconds until the kernels are on their way, gather included.

    PYTHONPATH=kernels python deploy/benchmarks/bench_launches.py [--tokens 1 16 512]

The fastest of some rounds, in which nothing waits for the GPU. Where there is none, a stand-in for Triton's driver
launches nothing, and all but the driver's own call is timed.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import CompiledKernel

from squeeze10_kernels.kernel_layout import PackedLinear, to_kernel_layout
from squeeze10_kernels.linear import QuantizedLinear
from squeeze10_kernels.mixed_linear import launch
from squeeze10_kernels.tiles import H200, gpu_of, select_tile

LAYERS = {"o": (4096, 4096, 816), "down": (4096, 11008, 2200), "head of 8 bits": (32000, 8192, 8192)}
"""Output features, input features, salient channels, of LLaMA2-7B."""
ROUNDS, LAUNCHES = 9, 100


class StandIn:
    """Triton's driver, as far as a launch asks it."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def launch_nothing() -> None:
    """From here on."""
    triton.runtime.driver.set_active(StandIn())
    CompiledKernel._init_handles = lambda kernel: setattr(kernel, "_run", lambda *arguments: None)


def empty_layer(N: int, K: int, S: int, device: torch.device) -> PackedLinear:
    codes, salient = torch.zeros(N, K, dtype=torch.uint8, device=device), torch.arange(K, device=device) < S
    scales = torch.zeros(N, 3, dtype=torch.float16, device=device)
    ones = torch.ones(K, dtype=torch.float16, device=device)
    return to_kernel_layout(QuantizedLinear(codes, salient, scales, ones))


def host_time(run: Callable[[], object]) -> float:
    """Microseconds of one call."""
    times = []
    for _ in range(ROUNDS):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(LAUNCHES):
            run()
        times.append((time.perf_counter() - start) / LAUNCHES * 1e6)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 512])
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = gpu_of(device) if device.type == "cuda" else H200
    if device.type == "cpu":
        launch_nothing()
    where = torch.cuda.get_device_name() if device.type == "cuda" else "no GPU"
    print(f"{where}, torch {torch.__version__}, Triton {triton.__version__}")
    for name, (N, K, S) in LAYERS.items():
        packed = empty_layer(N, K, S, device)
        for tokens in arguments.tokens:
            x, tile = torch.zeros(tokens, K, dtype=torch.bfloat16, device=device), select_tile(tokens, N, K, gpu)
            each = host_time(partial(launch, x, packed, None, tile, pdl=gpu.pdl))
            print(f"{name}, {tokens} tokens: {each:.1f} us", flush=True)


if __name__ == "__main__":
    main()
