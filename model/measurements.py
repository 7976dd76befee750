"""Assignments of multipliers, measured by exact emulation on images: each once, and those that fail not to the end."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.comparison import Loss, compare
from model.emulation import Emulator
from model.files import digest, read_bounded
from model.multipliers.product_table import Table
from model.placement import component_of, is_moved, moved
from model.qnetwork import Codes, QNetwork
from model.settling import settled

BATCH = 256
CERTAINTY = 0.999
"""That an assignment whose measurement is broken off would fail with all images."""
MEMORY = 512 * 2**20
"""Bytes of what the last layer reads that are kept, for assignments that differ in that layer alone."""
_MOST_BYTES = 256 * 2**20

Assignment = Mapping[str, str]


class Measurements:
    """Which of N images the integer network classifies right with which multipliers.

    Assignments are of options (model/placement.py).
    """

    def __init__(
        self,
        network: QNetwork,
        tables: Mapping[str, Table],
        codes: Codes,
        labels: NDArray[np.int64],
        groups: NDArray[np.int64] | None = None,
        seed: int = 0,
        path: Path | None = None,
        other: QNetwork | None = None,
        fit: Callable[[QNetwork], QNetwork] = lambda network: network,
    ) -> None:
        """`codes` (N, H, W, C) are the images; those of one number in `groups` (N,) are copies of one another.
        `other` is the same network with magnitudes at the other place, for options that are there. `fit` is what is
        done to a network with its multipliers before it is measured (model/fitting.py), layer by layer.

        Images are taken in a random order. What was measured is kept in the file `path`, which has to belong to this
        network, these images and tables, and this way to fit; a damaged line of it is measured again.
        """
        order = np.random.default_rng(seed).permutation(len(labels))
        self.network, self.other, self.tables, self.path = network, other, tables, path
        self._fit = fit
        self.codes, self.labels = codes[order], labels[order]
        self.groups = (np.arange(len(labels)) if groups is None else groups)[order]
        self.batches = -(-len(labels) // BATCH)
        last = network.layers[-1]
        self._last = {f"{last.name}.{name}" for name in last.products()}
        self._before: OrderedDict[tuple[str, int], dict[str, Tensor]] = OrderedDict()
        self._held = 0
        self._right: dict[tuple[str, int], NDArray[np.bool_]] = {}
        if path is not None and path.exists():
            self._read(path)

    def accuracy(self, assignment: Assignment) -> float:
        """Fraction of the images that are classified right with these multipliers, by "layer.operation"."""
        return float(self._upto(assignment, self.batches).mean())

    def judged(
        self, exact: Assignment, assignment: Assignment, allowed: float, confidence: float
    ) -> tuple[float, float, int | None]:
        """The accuracy of `assignment`, the points that it loses against `exact` at most, and on how many images, as
        `loss` looks at them (None: all).
        """
        if assignment == exact:
            return self.accuracy(exact), 0.0, None
        found = self.loss(exact, assignment, min(allowed, 100.0), confidence)
        if found.images == len(self.labels):
            return self.accuracy(assignment), found.bound, None
        return self.accuracy(exact) - found.points / 100, found.bound, found.images

    def loss(
        self, exact: Assignment, assignment: Assignment, allowed: float, confidence: float,
        progress: Callable[[int], None] = lambda images: None,
    ) -> Loss:  # fmt: skip
        """What `assignment` loses against `exact`.

        On all images, unless fewer show, with CERTAINTY, that it loses more than `allowed` percentage points on all of
        them. `progress` is told how many images were looked at.
        """
        images, limit = len(self.labels), math.floor(allowed / 100 * len(self.labels) + 1e-9)
        emulator: list[Emulator] = []
        before, after = np.zeros(0, np.bool_), np.zeros(0, np.bool_)
        for batch in range(self.batches):
            before = np.concatenate([before, self._batch(exact, batch, [])])
            after = np.concatenate([after, self._batch(assignment, batch, emulator)])
            progress(len(after))
            differences = before.astype(np.int8) - after.astype(np.int8)
            if len(after) < images and settled(differences, images, limit, CERTAINTY) is False:
                break
        return compare(before, after, self.groups[: len(after)], confidence)

    def _upto(self, assignment: Assignment, batches: int) -> NDArray[np.bool_]:
        emulator: list[Emulator] = []
        return np.concatenate([self._batch(assignment, batch, emulator) for batch in range(batches)])

    def _batch(self, assignment: Assignment, batch: int, emulator: list[Emulator]) -> NDArray[np.bool_]:
        """Which images of a batch are right; `emulator` holds that of the assignment once it was needed."""
        key = (_key(assignment), batch)
        if key not in self._right:
            if not emulator:
                emulator.append(Emulator(self._assigned(assignment)))
            part = slice(batch * BATCH, (batch + 1) * BATCH)
            classes = emulator[0].classify_last(self._read_by_last(assignment, batch, emulator[0]))
            self._right[key] = classes == self.labels[part]
            self._write(key)
        return self._right[key]

    def _assigned(self, assignment: Assignment) -> QNetwork:
        """The network with the components of these options, where they are to be."""
        elsewhere = [key for key, chosen in assignment.items() if is_moved(chosen)]
        network = self.network if self.other is None else moved(self.network, self.other, elsewhere)
        return self._fit(network.with_components({k: component_of(o) for k, o in assignment.items()}, self.tables))

    def _read_by_last(self, assignment: Assignment, batch: int, emulator: Emulator) -> dict[str, Tensor]:
        """What the last layer reads of a batch's images."""
        key = (_key({k: name for k, name in assignment.items() if k not in self._last}), batch)
        if key in self._before:
            self._before.move_to_end(key)
            return self._before[key]
        found = emulator.before_last(self.codes[batch * BATCH : (batch + 1) * BATCH])
        self._before[key] = found
        self._held += _bytes(found)
        while self._held > MEMORY and len(self._before) > 1:
            self._held -= _bytes(self._before.popitem(last=False)[1])
        return found

    def _read(self, path: Path) -> None:
        for line in read_bounded(path, _MOST_BYTES).splitlines():
            try:
                key, batch, bits = json.loads(line)
                size = len(self.labels[int(batch) * BATCH : (int(batch) + 1) * BATCH])
                right = np.unpackbits(np.frombuffer(bytes.fromhex(bits), np.uint8), count=size).astype(np.bool_)
                if isinstance(key, str) and 0 <= batch < self.batches and len(right) == size:
                    self._right[key, batch] = right
            except (ValueError, TypeError, RecursionError):  # what was being written when the process was killed
                continue

    def _write(self, key: tuple[str, int]) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="ascii") as file:
                file.write(json.dumps([*key, np.packbits(self._right[key]).tobytes().hex()]) + "\n")


def _key(assignment: Assignment) -> str:
    return digest(json.dumps(sorted(assignment.items())).encode())


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
