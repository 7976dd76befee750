"""How many threads a network is worth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

SMALL = 500_000
"""Parameters below which a network runs on one thread.

The operations of a small network are shorter than the meeting of two threads: on busy cores the second thread slows
them down by an order of magnitude. On one thread its results do not depend on the number of cores either.
"""


@contextmanager
def worthwhile_threads(network: nn.Module) -> Iterator[None]:
    """One thread for a small network, torch's own choice for others; restored afterwards."""
    before = torch.get_num_threads()
    if sum(parameter.numel() for parameter in network.parameters()) < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
