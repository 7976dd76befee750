"""Where things lie: places in the accelerator's memories, and what is loaded into them.

A tensor takes the first gap in the activation memory that is large enough, with the images of the batch one behind the
other, and gives it back when nothing will read it any more; so in external memory, where it does not fit. Weights lie
there in the order of their use.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hw.isa import Target
from hw.parameters import Parameters
from hw.program import Packet, Region
from hw.squash import ENTRIES
from model.qnetwork import Coding


class NoRoom(Exception):
    """The activation memory may not be as large."""


class Space:
    """A memory in which tensors take the first gap that is large enough, at multiples of `unit` bytes."""

    def __init__(self, unit: int, limit: int | None = None) -> None:
        self._unit, self._limit = unit, limit
        self._taken: dict[int, int] = {}  # from where to where
        self.most = 0  # bytes that were ever needed

    def take(self, size: int) -> int:
        """The first byte of a place for so many. Raises NoRoom when it would end beyond the limit."""
        base = 0
        for start, end in sorted(self._taken.items()):
            if start - base >= size:
                break
            base = end
        end = base + -(-size // self._unit) * self._unit
        if self._limit is not None and end > self._limit:
            raise NoRoom
        self._taken[base] = end
        self.most = max(self.most, end)
        return base

    def give_back(self, base: int) -> None:
        """End the place that begins there."""
        del self._taken[base]

    def copy(self) -> Space:
        """The same, to try places in."""
        same = Space(self._unit, self._limit)
        same._taken, same.most = dict(self._taken), self.most
        return same


class Layout:
    """Gives out places for an array of this size, and so finds how large its memories must be: the activation memory at
    most `limit` bytes.
    """

    def __init__(self, parameters: Parameters, limit: int | None = None) -> None:
        self._p = parameters
        self._weights: list[NDArray[np.uint8]] = []  # words (rows, columns)
        self._biases: list[NDArray[np.int32]] = []  # words (columns,)
        self._squash_tables: list[NDArray[np.uint16]] = []
        self._exp_tables: list[NDArray[np.uint16]] = []
        self.chip = Space(4, limit)  # the activation memory
        self.outside = Space(parameters.bus_bits // 8)  # external memory, for tensors that are spilled
        self.vote_words = 1

    def place(self, shape: tuple[int, ...], coding: Coding, pitch: int = 0) -> Region:
        """A place for a tensor of every image of the batch, its rows `pitch` bytes apart or else without a gap.

        Raises NoRoom.
        """
        size = Region(shape, coding, 0, self._p.batch, pitch=pitch).total
        return Region(shape, coding, self.chip.take(size), self._p.batch, pitch=pitch)

    def put(self, region: Region, external: bool) -> Region:
        """A place for a region that has none, on the chip or not. Raises NoRoom."""
        return replace(region, base=(self.outside if external else self.chip).take(region.total), external=external)

    def release(self, *regions: Region) -> None:
        """Give back the places of tensors that nothing will read any more."""
        for region in regions:
            (self.outside if region.external else self.chip).give_back(region.base)

    def reserve_votes(self, words: int) -> None:
        """Votes begin at word 0 of their memory, which holds those of one layer at a time."""
        self.vote_words = max(self.vote_words, words)

    def weights(self, words: NDArray[np.uint8]) -> tuple[int, int]:
        """Put array words (..., rows, columns) behind those that are there; the first one's number and how many they
        are.
        """
        base = sum(len(w) for w in self._weights)
        self._weights.append(words.reshape(-1, self._p.rows, self._p.columns))
        return base, len(self._weights[-1])

    def biases(self, words: NDArray[np.int32]) -> dict[str, int]:
        """Put words (..., columns) into the bias memory, unless all are zero; what a job says of its bias."""
        if not words.any():
            return {"has_bias": 0}
        base = len(self._biases)
        self._biases.extend(words.reshape(-1, self._p.columns))
        return {"has_bias": 1, "bias_base": base}

    def squash_table(self, table: NDArray[np.uint16]) -> int:
        """The page of a table of the squash unit; equal tables share one."""
        return _page(self._squash_tables, table)

    def exp_table(self, table: NDArray[np.uint16]) -> int:
        """The page of a table (256,) of the softmax unit; equal tables share one."""
        return _page(self._exp_tables, table)

    @property
    def bias_words(self) -> int:
        return len(self._biases)

    @property
    def squash_pages(self) -> int:
        """Pages of the squash unit's table; there is one at least."""
        return max(1, len(self._squash_tables))

    @property
    def exp_pages(self) -> int:
        """Pages of the softmax unit's table; there is one at least."""
        return max(1, len(self._exp_tables))

    def weight_bytes(self) -> NDArray[np.uint8]:
        """The content of external memory."""
        return np.concatenate(self._weights).reshape(-1)

    def setup(self) -> list[Packet]:
        """What fills the memories before the first image, the program apart."""
        return [
            Packet(Target.BIAS, 0, np.array(self._biases, np.int32).reshape(-1).view(np.uint32)),
            *(Packet(Target.SQUASH_TABLE, ENTRIES * i, t.astype(np.uint32)) for i, t in enumerate(self._squash_tables)),
            *(Packet(Target.EXP_TABLE, 256 * i, t.astype(np.uint32)) for i, t in enumerate(self._exp_tables)),
        ]


def _page(tables: list[NDArray[np.uint16]], table: NDArray[np.uint16]) -> int:
    for index, known in enumerate(tables):
        if np.array_equal(known, table):
            return index
    tables.append(table)
    return len(tables) - 1
