"""Which tile a launch uses: a pure function of the sizes. Nothing is tuned while serving."""

from dataclasses import dataclass, replace
from typing import Final

MAX_SPLIT: Final = 8


@dataclass(frozen=True, slots=True)
class Tile:
    """How a launch of the mixed kernel is cut.

    Attributes:
        rows: Output features of a program; on a GPU a multiple of 64, for weights go to `wgmma` from registers.
        tokens: Tokens of a program.
        step: Binary channels of a loop step: 64, 128 or 256.
        split: Programs that share an output tile and sum in a fixed order.
        cost: Time of a binary unit over that of a salient one; where `split` cuts.
        warps: Warps of a program; a multiple of 4 on a GPU.
        stages: Loop steps in flight.
    """

    rows: int
    tokens: int
    step: int
    split: int
    cost: int
    warps: int
    stages: int


# Bucket to its tile and the programs that `split` may fill. H200, layers of LLaMA-7B: 16 is the best of a sweep, the
# others are measured starting points. No tile with a step of 64 and 8 warps: its results differ from run to run
# (LOG.md, 2026-11-22). Add one only after `test_repeated_launches_give_the_same_bits`.
_TILES: Final[dict[int, tuple[Tile, int]]] = {
    16: (Tile(rows=64, tokens=16, step=256, split=1, cost=2, warps=4, stages=4), 576),
    32: (Tile(rows=128, tokens=32, step=256, split=1, cost=3, warps=4, stages=3), 344),
    64: (Tile(rows=128, tokens=64, step=128, split=1, cost=4, warps=4, stages=3), 344),
    128: (Tile(rows=128, tokens=128, step=128, split=1, cost=4, warps=8, stages=3), 344),
}
BUCKETS: Final = tuple(_TILES)
"""Token counts up to which one tile serves; above the last, weights are decoded and cuBLAS multiplies."""
WARM_UP_TOKENS: Final = (*BUCKETS, BUCKETS[-1] + 1)
"""One launch with each of these compiles whatever a layer will run."""


def bucket_of(M: int) -> int | None:
    """The smallest bucket that holds M tokens; None for more than the largest."""
    return next((bucket for bucket in BUCKETS if bucket >= M), None)


def select_tile(M: int, N: int, K: int) -> Tile | None:
    """The tile for M tokens and a layer `[N, K]`; None where decoding to 16 bits is faster.

    It is one tile for all M of a bucket, so that `WARM_UP_TOKENS` reaches all.
    """
    bucket = bucket_of(M)
    if bucket is None:
        return None
    tile, programs = _TILES[bucket]
    output_tiles = -(-N // tile.rows) * -(-bucket // tile.tokens)
    return replace(tile, split=max(1, min(MAX_SPLIT, programs // output_tiles, K // 512)))
