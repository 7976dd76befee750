"""Multipliers made smaller by evolution while their error stays within limits: Cartesian genetic programming.

A (1+4) evolution strategy with up to 3 mutations starts from an exact multiplier and minimises what the active gates
cost, in transistors or in cell area, as in V. Mrazek et al., "EvoApprox8b", DATE 2017. The error is computed over all
65,536 operand pairs. An offspring that costs as much as its parent takes its place, so that the search can drift.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model.errors import RedcaneError
from model.files import digest, read_bounded, write_atomic
from model.multipliers.chromosome import Chromosome, Measure, array_multiplier
from model.multipliers.error_figures import EXACT, RANGE, joint_weights
from model.multipliers.kernel import SOURCE, Kernel, SumLimits, flat, unflat

FULL = RANGE + 1
LARGEST_WEIGHT = (1 << 12) - 1
MOST_EVALUATIONS = 10**12
_OFFSPRING = 4
_SLICE_SECONDS = 0.3
_CHECKPOINT_SECONDS = 10.0
_MOST_CHECKPOINT_BYTES = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What the error P' - P of a result may be at most, in percent of 65536 unless said otherwise; None: any. All
    given ones hold.

    The weighted figures are over the operand pairs as they occur (the weights of `evolve`), the others over all pairs
    alike. Raises RedcaneError where a limit is no percentage, or none is given.
    """

    mae: float | None = None
    """Mean absolute error."""
    wce: float | None = None
    """Worst case: the largest absolute error."""
    std: float | None = None
    """Standard deviation about the mean."""
    bias: float | None = None
    """Absolute value of the mean error. Over sums of K products the bias adds up with K, the deviation with sqrt(K)."""
    weighted_mae: float | None = None
    weighted_bias: float | None = None
    noise: float | None = None
    """Root mean square of P - g P' over that of P, operand pairs as they occur, g the gain that makes it
    least; in percent of the latter.

    A gain that all products share hardly changes a class; MAE counts it as an error.
    """
    zero: bool = False
    """No limit on an error: products with a zero operand must be zero. Half of a network's operands are, and a product
    of them that is not is added to every sum and switches with the sign in the sign-magnitude format."""

    def figures(self) -> dict[str, float]:
        """The limits that are given, by name."""
        return {name: value for name, value in asdict(self).items() if name != "zero" and value is not None}

    def __post_init__(self) -> None:
        for name, value in self.figures().items():
            if not (math.isfinite(value) and 0 <= value <= 100):
                raise RedcaneError(f"the limit {name} is {value:g}: give a percentage of 65536 from 0 to 100")
        if not self.figures().keys() & {"mae", "wce", "std", "weighted_mae", "noise"}:
            raise RedcaneError(
                "evolution needs a limit on the error: give at least one of mae, wce, std, weighted_mae, noise"
            )

    def __str__(self) -> str:
        limits = [f"{name} <= {value:g} %" for name, value in self.figures().items()]
        return ", ".join([*limits, "zero times anything is zero"] if self.zero else limits)


@dataclass(frozen=True)
class Progress:
    """How far an evolution is."""

    evaluations: int
    of: int
    cost: int
    """Transistors or area of the active gates, before synthesis."""
    seconds_left: float


def pair_weights(a: ArrayLike, b: ArrayLike | None = None) -> NDArray[np.int32]:
    """Weights of the operand pairs as the search takes them: integers from 0 to 4095, int32 [256, 256] as [a, b].

    Either `a` [256, 256] says how often each pair occurs, or `a` [256] and `b` [256] how often each operand takes each
    value, independently. The largest becomes 4095 and the rest are rounded, those that occur at all to 1 at least.
    Raises RedcaneError for other shapes and for weights that are negative, not finite, or all zero.
    """
    weights = np.asarray(a, np.float64) if b is None else joint_weights(a, b)
    if weights.shape != (256, 256) or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise RedcaneError("operand weights are [256, 256], finite, not negative and not all zero")
    scaled = np.rint(weights / weights.max() * LARGEST_WEIGHT)
    return np.where(weights > weights.max() * 1e-6, np.maximum(scaled, 1), 0).astype(np.int32)


def evolve(limits: Limits, seed: int, evaluations: int, weights: NDArray[np.int32] | None = None,
           start: Chromosome | None = None, checkpoint: Path | None = None,
           progress: Callable[[Progress], None] = lambda _: None, measure: Measure = "transistors") -> Chromosome:
    """The smallest circuit found within `limits` after so many `evaluations` (offspring, rounded up to fours).

    `weights` (see `pair_weights`) are needed where a weighted limit is given. The search begins at `start`, the exact
    array multiplier unless given, and minimises `measure`. The same arguments give the same circuit on every machine.
    `checkpoint` names a file that is written every few seconds and when the search is stopped (KeyboardInterrupt); with
    the same arguments, it goes on from there to the same result, or further where `evaluations` has grown.

    Raises RedcaneError where an argument makes no sense, where `start` already breaks the limits, where the checkpoint
    is damaged or belongs to other arguments, and where g++ is missing.
    """
    if not 0 <= seed < 1 << 63 or not 1 <= evaluations <= MOST_EVALUATIONS:
        raise RedcaneError(f"evolution takes a seed of 0 or more and 1 to {MOST_EVALUATIONS} evaluations")
    weighted = bool(limits.figures().keys() & {"weighted_mae", "weighted_bias", "noise"})
    if weighted != (weights is not None):
        raise RedcaneError("weighted limits and the operands' weights go together: give both or neither")
    begin = array_multiplier() if start is None else start
    kernel = Kernel(_sums(limits, weights), weights, measure)
    if kernel.cost(begin) is None:
        raise RedcaneError(f"the circuit to start from does not keep the limits ({limits}): start from an exact one")
    state = _State.fresh(begin, seed)
    identity = digest(repr((limits, seed, measure, flat(begin).tolist())).encode() + SOURCE.read_bytes()
                      + (b"" if weights is None else weights.astype("<i4").tobytes()))
    if checkpoint is not None and checkpoint.exists():
        state = _State.load(checkpoint, identity)
    generations = -(-evaluations // _OFFSPRING)
    first, began = state.generations, time.monotonic()
    saved, step = began, 200
    try:
        while state.generations < generations:
            before = time.monotonic()
            chunk = min(step, generations - state.generations)
            genes, random = state.genes.copy(), state.random.copy()
            cost = kernel.evolve(genes, random, chunk, np.zeros(1, np.int64))
            state = _State(genes, random, state.generations + chunk)
            now = time.monotonic()
            step = max(50, min(2 * step, int(chunk * _SLICE_SECONDS / max(now - before, 1e-6))))
            left = (generations - state.generations) * (now - began) / (state.generations - first)
            progress(Progress(_OFFSPRING * state.generations, _OFFSPRING * generations, cost, left))
            if checkpoint is not None and now > saved + _CHECKPOINT_SECONDS:
                state.save(checkpoint, identity)
                saved = now
    finally:
        if checkpoint is not None:
            state.save(checkpoint, identity)
    result = unflat(state.genes)
    if kernel.cost(result) is None or not np.array_equal(kernel.products(result), result.table()):
        raise RedcaneError("the result of the evolution does not keep its limits: delete its checkpoint and try again")
    return result


@dataclass
class _State:
    """All that a search needs to go on."""

    genes: NDArray[np.int32]
    random: NDArray[np.uint64]
    generations: int = 0

    @classmethod
    def fresh(cls, start: Chromosome, seed: int) -> _State:
        return cls(flat(start), np.array([seed], np.uint64))

    def save(self, path: Path, identity: str) -> None:
        content = io.BytesIO()
        np.savez(content, genes=self.genes, random=self.random, generations=self.generations, identity=identity)
        write_atomic(path, content.getvalue())

    @classmethod
    def load(cls, path: Path, identity: str) -> _State:
        try:
            with np.load(io.BytesIO(read_bounded(path, _MOST_CHECKPOINT_BYTES)), allow_pickle=False) as arrays:
                genes, random = arrays["genes"].astype(np.int32), arrays["random"].astype(np.uint64)
                generations, found = int(arrays["generations"]), str(arrays["identity"])
            unflat(genes)
            if random.shape != (1,) or generations < 0:
                raise ValueError
        except (ValueError, KeyError, TypeError, EOFError, OSError, RedcaneError, MemoryError):
            raise RedcaneError(f"{path}: not a checkpoint of an evolution: delete it to begin anew") from None
        except Exception as error:  # zipfile and zlib have many of their own
            if type(error).__module__ not in ("zipfile", "zlib", "struct"):
                raise
            raise RedcaneError(f"{path}: a damaged checkpoint: delete it to begin anew") from None
        if found != identity:
            raise RedcaneError(f"{path}: the checkpoint of an evolution with other limits, seed, start or operands: "
                               "delete it, or name another file")
        return cls(genes, random, generations)


def _sums(limits: Limits, weights: NDArray[np.int32] | None) -> SumLimits:
    """The limits as sums over all pairs: percent of 65536, times the number of pairs or their weight."""
    def total(percent: float | None, count: int) -> int:
        # the nudge keeps a limit that was printed and read again from cutting off what it was printed for
        return -1 if percent is None else math.floor(percent / 100 * FULL * count * (1 + 1e-12))

    pairs = EXACT.size
    weight = 0 if weights is None else int(weights.sum())
    noise = -1.0
    if limits.noise is not None and weights is not None:
        noise = (limits.noise / 100) ** 2 * float((weights * EXACT**2).sum()) * (1 + 1e-12)
    variance, square = -1.0, -1
    if limits.std is not None:
        variance = (limits.std / 100 * FULL * pairs) ** 2 * (1 + 1e-12)
        means = [mean for mean in (limits.bias, limits.mae, limits.wce) if mean is not None]
        if means:  # E^2 is the variance and the squared mean, which these bound
            square = math.floor((limits.std**2 + min(means) ** 2) * (FULL / 100) ** 2 * pairs * (1 + 1e-12))
    return SumLimits(absolute=total(limits.mae, pairs), worst=total(limits.wce, 1), square=square,
                     bias=total(limits.bias, pairs), weighted=total(limits.weighted_mae, weight),
                     weighted_bias=total(limits.weighted_bias, weight), zero=int(limits.zero),
                     variance=variance, noise=noise)
