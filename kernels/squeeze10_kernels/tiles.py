"""Which tile a launch uses: a pure function of the sizes and the GPU. Nothing is tuned while serving."""

from dataclasses import dataclass
from typing import Final

BUCKETS: Final = (16, 32, 64, 128, 256)
"""Token counts up to which one tile serves; above the last, weights are decoded and cuBLAS multiplies."""


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


_TILES: Final[dict[int, Tile]] = {
    16: Tile(rows=128, tokens=16, step=256, split=1, cost=2, warps=4, stages=4),
    32: Tile(rows=128, tokens=32, step=256, split=1, cost=3, warps=4, stages=3),
    64: Tile(rows=128, tokens=64, step=128, split=1, cost=4, warps=4, stages=3),
    128: Tile(rows=128, tokens=128, step=128, split=1, cost=4, warps=8, stages=3),
    256: Tile(rows=256, tokens=128, step=64, split=1, cost=4, warps=8, stages=3),
}
"""Not yet measured: starting points by bucket."""

PROGRAMS: Final = 264
"""Programs wanted: two for each of the 132 multiprocessors of an H100 or H200."""
MAX_SPLIT: Final = 16


def bucket_of(M: int) -> int | None:
    """The smallest bucket that holds M tokens; None for more than the largest."""
    return next((bucket for bucket in BUCKETS if bucket >= M), None)


def select_tile(M: int, N: int, K: int, capability: tuple[int, int]) -> Tile | None:
    """The tile for M tokens and a layer `[N, K]`; None where decoding to 16 bits is faster."""
    bucket = bucket_of(M)
    if bucket is None:
        return None
    tile = _TILES[bucket]
    programs = -(-N // tile.rows) * -(-M // tile.tokens)
    split = max(1, min(MAX_SPLIT, round(PROGRAMS / programs), K // 512))
    return Tile(tile.rows, tile.tokens, tile.step, split, tile.cost, tile.warps, tile.stages)
