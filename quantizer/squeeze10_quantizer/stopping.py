"""SIGTERM lets what is in work be finished and kept; a second one, and Ctrl-C, stop at once."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

STDERR: Final = 2
NOTICE: Final = b"\nsqueeze10: stopping as soon as what is in work is kept; a second SIGTERM stops at once.\n"


@contextmanager
def deferred_sigterm() -> Iterator[Callable[[], bool]]:
    """Within the block, in the main thread, the first SIGTERM is only noted.

    Yields:
        Whether it came: then who asks keeps what is finished and leaves the block, which ends in `KeyboardInterrupt`.
    """
    asked = False

    def note(_: int, __: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        os.write(STDERR, NOTICE)  # print may be what is interrupted

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGTERM, before)
    if asked:
        raise KeyboardInterrupt
