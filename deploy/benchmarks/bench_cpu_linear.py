"""Milliseconds of a linear layer on the CPU: packed int4, decoding, and plain bf16 and fp32 (mask columns).

PYTHONPATH=kernels python deploy/benchmarks/bench_cpu_linear.py
"""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from squeeze10_kernels import QuantizedLinear, WeightFormat, pack_linear
from squeeze10_kernels import cpu_linear as int4
from squeeze10_kernels.dense_linear import channel_order, columns_linear

SHAPES = ((960, 576), (3072, 576), (4096, 4096))
TOKENS = (1, 16, 256)


def milliseconds(call: Callable[[], object], seconds: float = 1.0) -> float:
    """The fastest of as many calls as fit."""
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best * 1e3


def measure(N: int, K: int, tokens: int) -> list[float]:
    salient = torch.arange(K) < WeightFormat().salient_channels(K)
    codes = torch.where(salient, torch.randint(0, 16, (N, K)), torch.randint(0, 2, (N, K))).to(torch.uint8)
    scales, channel_scales = (torch.rand(N, 3) / 50).half(), torch.ones(K).half()
    packed = pack_linear(QuantizedLinear(codes, salient, scales, channel_scales), WeightFormat())
    order = channel_order(salient)
    parts = int4.repack_columns(packed["qweight"], packed["qweight_salient"], order)
    x, weight = torch.randn(tokens, K, dtype=torch.bfloat16), torch.randn(N, K)
    x_fp32, weight_bf16 = x.float(), weight.bfloat16()
    on_disk = (packed["qweight"], packed["qweight_salient"], scales, channel_scales, order)

    def packed_int4() -> torch.Tensor:
        return int4.int4_columns_linear(
            x, parts[0], parts[1], scales, channel_scales, parts[2], salient_channels=int(salient.sum()), bias=None
        )

    return [
        milliseconds(packed_int4),
        milliseconds(lambda: columns_linear(x, *on_disk, None)),
        milliseconds(lambda: F.linear(x, weight_bf16)),
        milliseconds(lambda: F.linear(x_fp32, weight)),
    ]


def main() -> None:
    print("shape, tokens: plugin's int4 layout (int4 up to 128 tokens, decoded above), 1.6 bits decoded, bf16, fp32")
    for N, K in SHAPES:
        for tokens in TOKENS:
            print(f"{N} x {K}, {tokens}:", " ".join(f"{ms:.2f}" for ms in measure(N, K, tokens)), flush=True)


if __name__ == "__main__":
    main()
