"""When a part of a measurement settles what the whole of it would say.

A point of the analysis asks whether noise costs more right classifications, over all pairs of an image and a noise
seed, than the tolerance allows: whether the sum of the differences d = (right without noise) - (right with noise),
each -1, 0 or 1, stays within a limit. The pairs come in a random order, so that those that are still out are like
those that are there, and two bets are kept: one against "the sum is above the limit", one against "it is within".
Each is fair or losing if what it bets against is true; then it ever multiplies its stake by 1 / (1 - confidence) with a
chance of 1 - confidence at most, however often one looks (Ville's inequality). So a bet that does settles the question.
The bets know that pairs are drawn without replacement (Waudby-Smith and Ramdas, "Estimating means of bounded random
variables by betting", JRSS B 2023, Sec. 4). What is certain, because too few pairs are left to change it, settles too.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_STAKES = ((0.98, 0.5), (0.5, 0.2), (0.25, 0.1), (0.125, 0.1), (0.0625, 0.1))
"""How boldly, and with which share of the stake: boldly is best where nothing changes, timidly where much does."""

Differences = NDArray[np.int8]


def settled(differences: Differences, total: int, limit: int, confidence: float) -> bool | None:
    """Whether the sum over all `total` pairs stays within `limit`, as told by the first pairs' differences.

    None while that is open. At least at `confidence` the answer is that of the whole measurement, and with all pairs,
    or with a confidence of 1, it always is.
    """
    found, rest = int(differences.sum(dtype=np.int64)), total - len(differences)
    if found + rest <= limit:
        return True
    if found - rest > limit:
        return False
    if confidence >= 1:
        return None
    wealth = -math.log1p(-confidence)
    if _fortune(-differences, total, -(limit + 1))[-1] >= wealth:
        return True
    if _fortune(differences, total, limit)[-1] >= wealth:
        return False
    return None


def pairs_to_settle(differences: Differences, total: int, limit: int, confidence: float) -> int:
    """How many more pairs it takes at least to settle "within": so many if none of them shows a difference."""
    if confidence >= 1:
        return total - len(differences)
    calm = np.concatenate([differences, np.zeros(total - len(differences), np.int8)])
    rich = _fortune(-calm, total, -(limit + 1)) >= -math.log1p(-confidence)
    return max(1, (int(rich.argmax()) + 1 if rich.any() else total) - len(differences))


def _fortune(d: Differences, total: int, most: int) -> NDArray[np.float64]:
    """Log of the most that bets against "the sum of all is at most `most`" were ever worth, pair by pair."""
    if not len(d):
        return np.zeros(1)
    before = np.concatenate([[0], np.cumsum(d[:-1], dtype=np.int64)])
    mean = (most - before) / (total - np.arange(len(d)))  # of the pairs that are out, at most, if that is so
    impossible = mean < -1
    mean = np.clip(mean, -1, 1)
    logs = []
    for boldness, share in _STAKES:
        bet = np.minimum(boldness, 0.98 / (1 + mean + 1e-12))  # never all of it: d - mean is -1 - mean at least
        logs.append(math.log(share) + np.cumsum(np.log1p(bet * (d - mean))))
    worth = np.logaddexp.reduce(logs, axis=0)
    worth[impossible] = np.inf
    return np.maximum.accumulate(worth)
