"""Cold layers of LLaMA2-7B and the time of a launch."""

import dataclasses
import statistics
from collections.abc import Callable

import torch

from squeeze10_kernels.kernel_layout import PackedLinear, to_kernel_layout
from squeeze10_kernels.linear import QuantizedLinear
from squeeze10_kernels.reference import decode_rows

LAYERS = {
    "qkv": (12288, 4096, 832),
    "o": (4096, 4096, 832),
    "gate_up": (22016, 4096, 832),
    "down": (4096, 11008, 2176),
}
"""Output features, input features, salient channels."""
COLD_BYTES = 140 << 20
"""More than twice the 60 MB of an H200's L2."""


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A layer, its cold copies, and its weights in bf16."""

    name: str
    packed: PackedLinear
    copies: list[PackedLinear]
    weights: torch.Tensor  # [N, K] fp32, before channel scales
    channel_scales: torch.Tensor

    @property
    def packed_bytes(self) -> int:
        return self.packed.words.nbytes + self.packed.scales.nbytes


def make_problem(name: str) -> Problem:
    N, K, S = LAYERS[name]
    salient = torch.zeros(K, dtype=torch.bool, device="cuda")
    salient[torch.randperm(K, device="cuda")[:S]] = True
    codes = torch.randint(0, 16, (N, K), dtype=torch.uint8, device="cuda")
    codes = torch.where(salient, codes, codes & 1)
    scales = (torch.randn(N, 3, device="cuda") * torch.tensor([0.02, 0.004, 0.004], device="cuda")).half()
    layer = QuantizedLinear(codes, salient, scales, (torch.randn(K, device="cuda") * 0.2).exp().half())
    packed = to_kernel_layout(layer)
    copies = [
        dataclasses.replace(packed, words=packed.words.clone()) for _ in range(-(-COLD_BYTES // packed.words.nbytes))
    ]
    return Problem(name, packed, copies, decode_rows(layer), layer.channel_scales)


def time_launches(launches: list[Callable[[], object]], replays: int) -> tuple[float, float, float]:
    """Median, p20 and p80 microseconds of one launch; the launches run one after another in a graph."""
    stream = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        launches[0]()
        stream.synchronize()
        graph.capture_begin()  # torch.cuda.graph would collect garbage and empty the cache before each
        for launch in launches:
            launch()
        graph.capture_end()
    torch.cuda.synchronize()
    times = []
    for _ in range(replays + 2):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(launches))
    cuts = statistics.quantiles(times[2:], n=5)
    return statistics.median(times[2:]), cuts[0], cuts[3]


def relative_error(y: torch.Tensor, expected: torch.Tensor) -> float:
    return float((y.float() - expected).norm() / expected.norm())
