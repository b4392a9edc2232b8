"""Which kernel and tile a launch uses: a pure function of the sizes and the GPU. Nothing is tuned while serving."""

import functools
import math
from dataclasses import dataclass, replace
from typing import Final

import torch


@dataclass(frozen=True, slots=True)
class Gpu:
    """What decides about kernels and tiles.

    Attributes:
        capability: CUDA compute capability, (8, 0) at least.
        multiprocessors: Programs that run side by side, if a multiprocessor holds one.
    """

    capability: tuple[int, int]
    multiprocessors: int

    @property
    def hopper(self) -> bool:
        """Has `wgmma`, which later ones have not."""
        return self.capability[0] == 9

    @property
    def pdl(self) -> bool:
        """Has programmatic dependent launch: `griddepcontrol`."""
        return self.capability >= (9, 0)


H200: Final = Gpu((9, 0), multiprocessors=132)


@functools.cache
def gpu_of(device: torch.device) -> Gpu:
    properties = torch.cuda.get_device_properties(device)
    return Gpu((properties.major, properties.minor), properties.multi_processor_count)


@dataclass(frozen=True, slots=True)
class Tile:
    """How a launch of `mixed_gemm` is cut.

    Attributes:
        rows: Output features of a warp, a multiple of 16.
        groups: Warps of a program side by side, each with its rows.
        slices: Warps of a program that share rows, each with its units of the input channels.
        tokens: Tokens of a program, a multiple of 8.
        paired: A binary and a salient unit in every step of one loop, rather than two loops.
        unroll: Loop steps whose loads may be in flight together.
    """

    rows: int
    groups: int
    slices: int
    tokens: int
    paired: bool
    unroll: int


@dataclass(frozen=True, slots=True)
class WgmmaTile:
    """How a launch of `wgmma_gemm` is cut.

    Attributes:
        rows: Output features of a program, a multiple of 16 for every warp.
        tokens: Tokens of a program.
        chunks: Input channels fetched at once, in 64: 1, 2 or 4.
        stages: Fetches in flight.
        ahead: Binary units whose words are loaded ahead.
        early: The words of the first four salient units are loaded before all others, which costs registers.
        warps: That multiply, a multiple of 4. There are four more, of which one fetches.
        registers: Of a thread, at launch; those that multiply take over most of those that fetch.
        split: Programs that share the input channels of a tile; chosen by `select_tile`.
    """

    rows: int
    tokens: int
    chunks: int
    stages: int
    ahead: int
    early: bool
    warps: int
    registers: int
    split: int = 1

    @property
    def shared_bytes(self) -> int:
        """Activations in flight."""
        return self.stages * self.chunks * 64 * self.tokens * 2

    @property
    def on_multiprocessor(self) -> int:
        """Programs that a multiprocessor holds at once, by registers and shared memory."""
        threads = (self.warps + 4) * 32
        return min(65536 // (threads * self.registers), (227 << 10) // (self.shared_bytes + (5 << 10)))

    def tiles(self, M: int, N: int) -> int:
        return -(-N // self.rows) * -(-M // self.tokens)


# The best of sweeps over the layers of LLaMA2-7B: mma on an H200 on 2026-11-22 and on an H100 on 2026-11-24, wgmma on
# an H200 on 2026-11-23 and 2026-11-24; up to 8 tokens also of LLaMA2-70B and LLaMA3-8B, on an H200 on 2026-12-01
# (LOG.md). Few output features need more warps for their rows. Other GPUs take the mma tiles as they are, unswept.
FEW_TOKENS: Final = 8
_FEW_NARROW: Final[dict[float, Tile]] = {3072: Tile(16, 1, 8, 8, paired=True, unroll=5)}
_FEW: Final[dict[float, dict[float, Tile]]] = {  # by most input features, then by most output features
    6144: {
        5120: Tile(16, 1, 8, 8, paired=True, unroll=5),
        8192: Tile(16, 1, 4, 8, paired=True, unroll=5),
        16384: Tile(32, 1, 4, 8, paired=True, unroll=5),
    },
    10240: {8192: Tile(32, 1, 8, 8, paired=True, unroll=3), 16384: Tile(32, 1, 4, 8, paired=True, unroll=6)},
    12288: {8192: Tile(16, 1, 8, 8, paired=True, unroll=5), 16384: Tile(32, 1, 4, 8, paired=True, unroll=5)},
    math.inf: {8192: Tile(32, 1, 8, 8, paired=True, unroll=6), 16384: Tile(32, 1, 4, 8, paired=True, unroll=5)},
}
_FEW_WIDE: Final[dict[float, Tile]] = {  # for more output features
    32768: Tile(32, 2, 2, 8, paired=True, unroll=5),
    math.inf: Tile(64, 1, 4, 8, paired=True, unroll=2),
}
# by bucket of tokens, then by most output features
_MMA: Final[dict[int, dict[float, Tile]]] = {
    16: {8192: Tile(32, 1, 8, 16, paired=True, unroll=1), math.inf: Tile(32, 1, 4, 16, paired=True, unroll=4)},
    32: {8192: Tile(32, 1, 8, 16, paired=True, unroll=1), math.inf: Tile(32, 2, 2, 32, paired=False, unroll=1)},
    64: {8192: Tile(32, 2, 4, 32, paired=False, unroll=1), math.inf: Tile(32, 2, 2, 32, paired=False, unroll=1)},
    128: {8192: Tile(32, 2, 4, 64, paired=False, unroll=1), math.inf: Tile(64, 2, 2, 64, paired=False, unroll=1)},
}
_HOPPER: Final[dict[float, dict[float, Tile | WgmmaTile]]] = {
    16: {math.inf: WgmmaTile(64, 16, chunks=4, stages=4, ahead=3, early=True, warps=4, registers=80)},
    32: {math.inf: WgmmaTile(64, 32, chunks=4, stages=3, ahead=3, early=True, warps=4, registers=80)},
    64: {
        16384: WgmmaTile(64, 64, chunks=4, stages=3, ahead=3, early=True, warps=4, registers=128),
        math.inf: WgmmaTile(64, 64, chunks=4, stages=2, ahead=3, early=True, warps=4, registers=80),
    },
    128: {
        8192: WgmmaTile(64, 128, chunks=4, stages=3, ahead=3, early=True, warps=4, registers=248),
        math.inf: WgmmaTile(64, 64, chunks=4, stages=2, ahead=2, early=True, warps=4, registers=80),
    },
    256: {
        8192: WgmmaTile(64, 128, chunks=4, stages=3, ahead=3, early=True, warps=4, registers=248),
        16384: WgmmaTile(64, 64, chunks=4, stages=2, ahead=2, early=True, warps=4, registers=80),
        math.inf: WgmmaTile(128, 128, chunks=4, stages=3, ahead=2, early=False, warps=8, registers=168),
    },
    512: {
        16384: WgmmaTile(128, 128, chunks=4, stages=3, ahead=2, early=False, warps=8, registers=168),
        math.inf: WgmmaTile(128, 256, chunks=1, stages=5, ahead=2, early=False, warps=8, registers=168),
    },
    math.inf: {math.inf: WgmmaTile(128, 256, chunks=1, stages=5, ahead=2, early=False, warps=8, registers=168)},
}
MMA_BUCKETS: Final = (FEW_TOKENS, *_MMA)
"""Token counts up to which one tile serves off Hopper; above the last, weights are decoded and cuBLAS multiplies."""
HOPPER_BUCKETS: Final = (FEW_TOKENS, *_HOPPER)


@functools.lru_cache(maxsize=1 << 14)
def select_tile(M: int, N: int, K: int, gpu: Gpu) -> Tile | WgmmaTile | None:
    """The tile for M tokens, N output and K input features; None where decoding to 16 bits is faster."""
    if M <= FEW_TOKENS:
        tiles = next(tiles for most, tiles in _FEW.items() if most >= K)
        return next(tile for most, tile in (_FEW_NARROW | tiles | _FEW_WIDE).items() if most >= N)
    table: dict[float, dict[float, Tile | WgmmaTile]] = _HOPPER if gpu.hopper else _MMA  # type: ignore[assignment]
    bucket = next((bucket for bucket in table if bucket >= M), None)
    if bucket is None:
        return None
    tile = next(tile for most, tile in table[bucket].items() if most >= N)
    return tile if isinstance(tile, Tile) else _split(tile, M, N, K, gpu)


def _split(tile: WgmmaTile, M: int, N: int, K: int, gpu: Gpu) -> WgmmaTile:
    """As many programs as run side by side, at most 8 for a tile, each with at least 1024 channels."""
    room = gpu.multiprocessors * tile.on_multiprocessor // tile.tiles(M, N)
    return replace(tile, split=max(1, min(room, K // 1024, 8)))


def warm_up_tokens(N: int, K: int, gpu: Gpu) -> list[int]:
    """One launch with each of these compiles whatever a layer will run.

    Within a bucket only the split may change, and only while there are fewer tiles than programs side by side.
    """
    if not gpu.hopper:
        return [*MMA_BUCKETS, MMA_BUCKETS[-1] + 1, 513]  # the gather has a variant for more than 512
    tokens = [*map(int, HOPPER_BUCKETS[:-1]), 513]  # of every bucket one, since the gather has variants too
    seen = {select_tile(M, N, K, gpu) for M in tokens}
    for M in range(8, 128 * gpu.multiprocessors + 16, 8):
        tile = select_tile(M, N, K, gpu)
        if tile not in seen:
            seen.add(tile)
            tokens.append(M)
    return tokens
