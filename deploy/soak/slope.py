"""Whether a series of measurements grows.

The first third is warm-up: caches fill, allocators take their arenas. What is left is cut into blocks, and a line is
fitted to the blocks' means: samples beside each other are alike, and would make a line look surer than it is.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

BLOCKS: Final = 12
WARM_UP: Final = 1 / 3
MIN_SAMPLES: Final = 4 * BLOCKS
"""At equal distances: two and more in each block after warm-up."""
CONFIDENCE: Final = 2.23
"""Student's t, 95 % on both sides, for 10 degrees of freedom: 12 means less a line's two numbers."""


@dataclass(frozen=True)
class Slope:
    """A least-squares line: its slope and the slope's standard error, both per second."""

    value: float
    error: float

    def exceeds(self, allowance: float) -> bool:
        """Whether the slope is above the allowance beyond doubt of 95 %."""
        return self.value - CONFIDENCE * self.error > allowance


def fit_slope(seconds: list[float], values: list[float]) -> Slope:
    """The slope after warm-up, of `MIN_SAMPLES` and more at about equal distances."""
    first = seconds[0] + WARM_UP * (seconds[-1] - seconds[0])
    kept = [(at, value) for at, value in zip(seconds, values, strict=True) if at >= first]
    assert len(kept) >= BLOCKS
    x, y = (np.array([block.mean() for block in np.array_split(np.array(part), BLOCKS)]) for part in zip(*kept))  # noqa: B905
    x = x - x.mean()
    value = (x @ y) / (x @ x)
    residual = y - y.mean() - value * x
    return Slope(float(value), float(np.sqrt(residual @ residual / (BLOCKS - 2) / (x @ x))))
