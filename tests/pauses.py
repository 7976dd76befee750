"""Back-pressure for cocotbext-axi's models."""

import random
from collections.abc import Iterator


def pauses(seed: int, share: float) -> Iterator[bool]:
    """Cycle by cycle, whether a stream's side holds back: bursts of both, `share` of the time in all."""
    choose = random.Random(seed)
    while True:
        yield from [choose.random() < share] * choose.randint(1, 6)
