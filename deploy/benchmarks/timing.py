"""Cold layers of LLaMA models, the time of a launch, and the CSV of times."""

import csv
import dataclasses
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
import triton

from squeeze10_kernels.format import WeightFormat
from squeeze10_kernels.kernel_layout import PackedLinear, to_kernel_layout
from squeeze10_kernels.linear import QuantizedLinear
from squeeze10_kernels.reference import decode_rows

Shape = tuple[int, int, int]
"""Output features, input features, salient channels."""
FORMAT = WeightFormat(chunks=8)
"""What `squeeze10 quantize` chooses for the linears of all of `MODELS`."""
HEAD = (
    "gpu", "driver", "torch", "triton", "commit", "layer", "N", "K", "tokens", "what", "tile", "us", "us_p20", "us_p80",
    "GB_per_s", "copy_share", "error",
)  # fmt: skip
LEAST_LAUNCHES = 40
COLD_BYTES = 140 << 20
"""More than twice the 60 MB of an H200's L2."""


def fused_linears(hidden: int, intermediate: int, kv: int) -> dict[str, Shape]:
    """The linears of a decoder layer as vLLM fuses them; `kv`: output features of k_proj."""
    sizes = {
        "qkv": (hidden + 2 * kv, hidden),
        "o": (hidden, hidden),
        "gate_up": (2 * intermediate, hidden),
        "down": (hidden, intermediate),
    }
    return {name: (N, K, FORMAT.salient_channels(K)) for name, (N, K) in sizes.items()}


VOCABULARIES = {"llama2": 32000, "llama3": 128256}
MODELS = {
    "llama2-7b": fused_linears(4096, 11008, 4096),
    "llama2-13b": fused_linears(5120, 13824, 5120),
    "llama2-70b": fused_linears(8192, 28672, 1024),
    "llama3-8b": fused_linears(4096, 14336, 1024),
    # lm_heads of LLaMA2-7B and LLaMA3-8B; with 8 bits twice the channels, so that cuBLAS has twice its work
    "heads": {f"{name}-{bits}": (N, bits * 1024, bits * 1024) for name, N in VOCABULARIES.items() for bits in (4, 8)},
}


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A layer, its cold copies, and its weights before they were packed."""

    name: str
    packed: PackedLinear
    copies: list[PackedLinear]
    weights: torch.Tensor  # [N, K] fp32, before channel scales
    channel_scales: torch.Tensor

    @property
    def packed_bytes(self) -> int:
        tensors = (self.packed.words, self.packed.scales, self.packed.channels, self.packed.channel_scales)
        return sum(tensor.nbytes for tensor in tensors)


def make_problem(name: str, shape: Shape) -> Problem:
    N, K, S = shape
    salient = torch.zeros(K, dtype=torch.bool, device="cuda")
    salient[torch.randperm(K, device="cuda")[:S]] = True
    codes = torch.randint(0, 16, (N, K), dtype=torch.uint8, device="cuda")
    codes = torch.where(salient, codes, codes & 1)
    scales = (torch.randn(N, 3, device="cuda") * torch.tensor([0.02, 0.004, 0.004], device="cuda")).half()
    layer = QuantizedLinear(codes, salient, scales, (torch.randn(K, device="cuda") * 0.2).exp().half())
    packed = to_kernel_layout(layer)
    copies = [clone(packed) for _ in range(cold_copies(packed.words.nbytes))]
    return Problem(name, packed, copies, decode_rows(layer), layer.channel_scales)


def clone(packed: PackedLinear) -> PackedLinear:
    """All tensors anew: in a model every layer reads its own scales and channels from memory."""
    tensors = {name: getattr(packed, name).clone() for name in ("words", "scales", "channels", "channel_scales")}
    return dataclasses.replace(packed, **tensors)


def cold_copies(size: int) -> int:
    """Copies of `size` bytes through which launches must rotate to read none from the cache; 2 at least."""
    return max(2, -(-COLD_BYTES // size))


def time_launches(launches: list[Callable[[], object]], replays: int) -> tuple[float, float, float]:
    """Median, p20 and p80 microseconds of one launch; the launches run one after another in a graph.

    They are repeated until there are `LEAST_LAUNCHES`, so that the start of the graph costs everyone the same.
    """
    launches = launches * -(-LEAST_LAUNCHES // len(launches))
    stream = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        launches[0]()
        stream.synchronize()
        graph.capture_begin()  # torch.cuda.graph would collect garbage and empty the cache before each
        try:
            for launch in launches:
                launch()
        finally:
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


class Results:
    """A CSV of times on this GPU; every row is on disk at once."""

    def __init__(self, out: Path, commit: str) -> None:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
        self.context = (torch.cuda.get_device_name(), driver, torch.__version__, triton.__version__, commit)
        self.file = out.open("w", newline="")
        self.writer = csv.writer(self.file)
        self.writer.writerow(HEAD)
        big = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(big)
        self.copy_rate = 2 * big.nbytes / time_launches([lambda: target.copy_(big)], 10)[0] / 1e3  # GB/s
        print(f"{self.context}, copy {self.copy_rate:.0f} GB/s", flush=True)

    def record(
        self, layer: str, N: int, K: int, tokens: int, what: str, times: tuple[float, float, float], *,
        moved: int = 0, tile: str = "", error: float = 0.0,
    ) -> None:  # fmt: skip
        """One row. `times`: of `time_launches`; `moved`: bytes that a launch must read or write."""
        rate = moved / times[0] / 1e3
        numbers = [f"{value:.2f}" for value in times] + [f"{rate:.0f}", f"{rate / self.copy_rate:.3f}", f"{error:.2e}"]
        self.writer.writerow([*self.context, layer, N, K, tokens, what, tile, *numbers])
        self.file.flush()
