"""Searches for critical noise magnitudes, and the loop that has the units that they ask for measured.

A search is a generator: it yields the units that it wants next and is sent what all units so far came to. Which units
it asks for depends on results only, never on who measures or in what order, so the outcome, and the store, are the same
for any number of workers.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from model.errors import RedcaneError
from model.points import Subject, Unit, Workers, clean_unit
from model.settling import pairs_to_settle, settled
from model.store import Store

_TASK = 9  # units of a batch that are measured behind one clean prefix, and lost together with a worker
_LOSSES = 5  # workers that a task may cost before it is given up

Results = dict[Unit, NDArray[np.int8]]
"""Of every unit, its images: 1 where classified right."""


@dataclass(frozen=True)
class Measured:
    """What is known of one noise magnitude in some operations."""

    nm: float
    accuracies: tuple[float, ...]  # per seed; of a part of the pairs, the clean accuracy less the change seen in them
    pairs: int  # of an image and a seed, measured
    lost: int  # right classifications among them that noise cost
    within: bool  # whether the mean accuracy over the seeds stays within the tolerance of the clean one


Search = Generator[list[Unit], None, list[Measured]]


@dataclass(frozen=True)
class Sweep:
    """What the searches share: the subject's batches and seeds, the question, and what was measured so far."""

    subject: Subject
    seeds: tuple[int, ...]
    na: float
    tolerance_points: float
    confidence: float
    results: Results

    @property
    def total(self) -> int:
        """Pairs of an image and a seed: what a whole measurement of a point takes."""
        return len(self.subject.split) * len(self.seeds)

    @property
    def limit(self) -> int:
        """So many more wrong classifications, over all pairs, are within the tolerance."""
        return math.floor((self.tolerance_points + 1e-9) / 100 * self.total)

    def units(self, operations: tuple[str, ...], nm: float) -> list[Unit]:
        """All units of a point, in the order in which they are measured: every image once before any a second time.

        The first batch has the first seed, the second batch the second one, and so on, so that what was measured tells
        of all seeds alike.
        """
        batches, seeds = self.subject.batches, self.seeds
        return [
            Unit(operations, nm, self.na, seeds[(batch + turn) % len(seeds)], batch)
            for turn in range(len(seeds))
            for batch in range(batches)
        ]

    def difference(self, unit: Unit) -> NDArray[np.int8]:
        """(Right without noise) - (right with noise), image by image."""
        return self.results[clean_unit(unit.batch)] - self.results[unit]

    def exhaustively(self, operations: tuple[str, ...], magnitudes: Sequence[float]) -> Search:
        """Measure every magnitude wholly."""
        wanted = {nm: self.units(operations, nm) for nm in magnitudes if self._noisy(nm)}
        yield [unit for units in wanted.values() for unit in units]
        return [self._measured(nm, wanted.get(nm, [])) for nm in magnitudes]

    def adaptively(self, operations: tuple[str, ...], magnitudes: Sequence[float]) -> Search:
        """Find the largest magnitude that is within the tolerance together with all smaller ones, by bisection.

        Every magnitude on the way is measured until it is settled. Bisection takes the accuracy to fall as noise grows.
        Where a magnitude is within the tolerance by little (only its whole measurement could tell, and it takes up more
        than half), the next smaller one is not taken on trust, but measured as well.
        """
        ordered = sorted(nm for nm in magnitudes if self._noisy(nm))
        found = {nm: self._measured(nm, []) for nm in magnitudes if not self._noisy(nm)}
        within, beyond = -1, len(ordered)
        costs = (self._settling_units(), 1)
        while within + 1 < beyond:
            place = within + _probe(beyond - within - 1, *costs)
            point = found[ordered[place]] = yield from self._point(operations, ordered[place])
            within, beyond = (place, beyond) if point.within else (within, place)
            while within + 1 == beyond and within > 0 and self._narrow(found[ordered[within]]):
                below = ordered[within - 1]
                if below not in found:
                    found[below] = yield from self._point(operations, below)
                if found[below].within:
                    break
                within, beyond = -1, within - 1
        return [found[nm] for nm in magnitudes if nm in found]

    def _point(self, operations: tuple[str, ...], nm: float) -> Generator[list[Unit], None, Measured]:
        """Measure until settled: batch by batch while it looks beyond the tolerance, else all at once that it takes."""
        units = self.units(operations, nm)
        count, open_question = 1, True
        while open_question:
            yield units[:count]
            seen = np.concatenate([self.difference(unit) for unit in units[:count]])
            question = (seen, self.total, self.limit, self.confidence)
            open_question = settled(*question) is None
            if open_question:
                beyond = int(seen.sum(dtype=np.int64)) * self.total > self.limit * len(seen)
                more, done = 1 if beyond else pairs_to_settle(*question), 0
                while done < more and count < len(units):
                    done += self.subject.size(units[count].batch)
                    count += 1
        return self._measured(nm, units[:count])

    def _measured(self, nm: float, units: Sequence[Unit]) -> Measured:
        clean = np.concatenate([self.results[clean_unit(batch)] for batch in range(self.subject.batches)])
        by_seed: dict[int, list[NDArray[np.int8]]] = {}
        for unit in units:
            by_seed.setdefault(unit.seed, []).append(self.difference(unit))
        right, images = int(clean.sum(dtype=np.int64)), len(clean)
        changes = [np.concatenate(by_seed[seed]) if seed in by_seed else None for seed in self.seeds]
        if not units:  # no noise: nothing changes
            return Measured(nm, (right / images,) * len(self.seeds), self.total, 0, True)
        accuracies = tuple(
            (right * len(d) - int(d.sum(dtype=np.int64)) * images) / (images * len(d)) for d in changes if d is not None
        )
        ordered = np.concatenate([self.difference(unit) for unit in units])
        verdict = settled(ordered, self.total, self.limit, self.confidence)
        assert verdict is not None, "a point is measured until it is settled"
        return Measured(nm, accuracies, len(ordered), int(ordered.sum(dtype=np.int64)), verdict)

    def _noisy(self, nm: float) -> bool:
        return nm != 0 or self.na != 0

    def _narrow(self, point: Measured) -> bool:
        return point.pairs == self.total and 2 * point.lost > self.limit

    def _settling_units(self) -> int:
        """What it takes to see that a magnitude changes nothing."""
        none = np.zeros(0, np.int8)
        return -(-pairs_to_settle(none, self.total, self.limit, self.confidence) // self.subject.batch)


@cache
def _probe(unknown: int, within_cost: int, beyond_cost: int) -> int:
    """Which of so many unknown magnitudes (1: the smallest) to measure next, for the least expected cost.

    Each place where the accuracy may leave the tolerance is equally likely. A magnitude beyond it is told after a
    batch, one within it takes many; so the best bisection leans to large magnitudes.
    """
    return min(range(1, unknown + 1), key=lambda place: (_cost(unknown, place, within_cost, beyond_cost), place))


@cache
def _cost(unknown: int, place: int, within_cost: int, beyond_cost: int) -> float:
    def rest(count: int) -> float:
        return _cost(count, _probe(count, within_cost, beyond_cost), within_cost, beyond_cost) if count else 0.0

    beyond = place / (unknown + 1)
    return beyond * (beyond_cost + rest(place - 1)) + (1 - beyond) * (within_cost + rest(unknown - place))


def run(
    searches: Mapping[str, Search],
    subject: Subject,
    workers: Workers,
    store: Store,
    results: Results,
    progress: Callable[[int, int], None],
) -> dict[str, list[Measured]]:
    """Have the searches' units measured until all searches are through; their outcomes, by name.

    Every result is in the store before anything is built on it: who kills this process, or a worker, loses no more than
    the units that are being measured. `progress(measured, wanted)` counts units. Raises RedcaneError when workers keep
    dying.
    """
    loop = _Loop(subject, workers, store, results, progress)
    return loop.run(dict(searches))


class _Loop:
    def __init__(
        self, subject: Subject, workers: Workers, store: Store, results: Results, progress: Callable[[int, int], None]
    ) -> None:
        self.subject, self.workers, self.store, self.results, self.progress = subject, workers, store, results, progress
        self.queue: deque[tuple[Unit, ...]] = deque()
        self.pending: dict[Future[list[bytes]], tuple[Unit, ...]] = {}
        self.asked: set[Unit] = set()
        self.losses: dict[tuple[Unit, ...], int] = {}

    def run(self, searches: dict[str, Search]) -> dict[str, list[Measured]]:
        outcomes: dict[str, list[Measured]] = {}
        waiting: dict[str, list[Unit]] = {name: [] for name in searches}
        while searches:
            for name in [n for n in searches if all(unit in self.results for unit in waiting[n])]:
                try:
                    waiting[name] = next(searches[name])
                    self._ask(waiting[name])
                except StopIteration as done:
                    outcomes[name] = done.value
                    del searches[name]
            self.queue = deque(sorted(self.queue, key=lambda task: task[0].batch))  # to share clean prefixes
            if not any(all(unit in self.results for unit in waiting[n]) for n in searches):
                self._wait()
        return {name: outcomes[name] for name in waiting}

    def _ask(self, units: list[Unit]) -> None:
        """Queue what is neither known nor asked for, batch by batch, so that clean prefixes are shared."""
        new = [unit for unit in dict.fromkeys(units) if unit not in self.results and unit not in self.asked]
        for unit, packed in self.store.find(self.subject, new).items():
            self._learn(unit, packed)
        new = [unit for unit in new if unit not in self.results]
        by_batch: dict[int, list[Unit]] = {}
        for unit in new:
            by_batch.setdefault(unit.batch, []).append(unit)
        for batch in by_batch.values():
            self.queue += [tuple(batch[i : i + _TASK]) for i in range(0, len(batch), _TASK)]
        self.asked |= set(new)

    def _wait(self) -> None:
        """Keep the workers busy until some unit is measured."""
        while self.queue and len(self.pending) < 2 * self.workers.count - 1:
            task = self.queue.popleft()
            self.pending[self.workers.submit(task)] = task
        for future in wait(self.pending, return_when=FIRST_COMPLETED).done:
            task = self.pending.pop(future)
            try:
                found = dict(zip(task, future.result(), strict=True))
            except BrokenExecutor as error:
                self.losses[task] = self.losses.get(task, 0) + 1
                if self.losses[task] == _LOSSES:
                    raise RedcaneError(
                        f"analysis: {_LOSSES} workers died while they measured the same points ({error}); they may be "
                        "short of memory: take fewer workers, or a smaller analyze.batch"
                    ) from None
                self.queue.appendleft(task)
                continue
            self.store.add(self.subject, found)
            for unit, packed in found.items():
                self._learn(unit, packed)
        self.progress(len(self.results), len(self.asked | self.results.keys()))

    def _learn(self, unit: Unit, packed: bytes) -> None:
        size = self.subject.size(unit.batch)
        self.results[unit] = np.unpackbits(np.frombuffer(packed, np.uint8), count=size).astype(np.int8)
