"""Which tile a launch uses: a pure function of the sizes. Nothing is tuned while serving."""

import math
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Tile:
    """How a launch of the mixed kernel is cut.

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


# By bucket: the tile for up to so many output features. The best of a sweep on an H200 over the layers of LLaMA2-7B
# (deploy/benchmarks/bench_kernels.py --sweep, LOG.md 2026-11-22); few output features need more warps for their rows.
_TILES: Final[dict[int, dict[float, Tile]]] = {
    8: {
        8192: Tile(16, 1, 8, 8, paired=True, unroll=5),
        16384: Tile(32, 1, 4, 8, paired=True, unroll=5),
        math.inf: Tile(64, 1, 4, 8, paired=True, unroll=2),
    },
    16: {8192: Tile(32, 1, 8, 16, paired=True, unroll=1), math.inf: Tile(32, 1, 4, 16, paired=True, unroll=4)},
    32: {8192: Tile(32, 1, 8, 16, paired=True, unroll=1), math.inf: Tile(32, 2, 2, 32, paired=False, unroll=1)},
    64: {8192: Tile(32, 2, 4, 32, paired=False, unroll=1), math.inf: Tile(32, 2, 2, 32, paired=False, unroll=1)},
    128: {8192: Tile(32, 2, 4, 64, paired=False, unroll=1), math.inf: Tile(64, 2, 2, 64, paired=False, unroll=1)},
}
BUCKETS: Final = tuple(_TILES)
"""Token counts up to which one tile serves; above the last, weights are decoded and cuBLAS multiplies."""
WARM_UP_TOKENS: Final = (*BUCKETS, BUCKETS[-1] + 1)
"""One launch with each of these compiles whatever a layer will run."""


def bucket_of(M: int) -> int | None:
    """The smallest bucket that holds M tokens; None for more than the largest."""
    return next((bucket for bucket in BUCKETS if bucket >= M), None)


def select_tile(M: int, N: int) -> Tile | None:
    """The tile for M tokens and N output features; None where decoding to 16 bits is faster.

    It is one tile for all M of a bucket, so that `WARM_UP_TOKENS` reaches all.
    """
    bucket = bucket_of(M)
    return None if bucket is None else next(tile for most, tile in _TILES[bucket].items() if most >= N)
