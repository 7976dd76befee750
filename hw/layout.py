"""Where things lie: places in the accelerator's memories, and what is loaded into them.

Tensors get fixed places in the activation memory, one after the other, each with the images of the batch one behind the
other. Weights lie in external memory in the order of their use.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hw.isa import Target
from hw.parameters import Parameters
from hw.program import Packet, Region, to_bytes, words32
from model.qnetwork import Coding


class Layout:
    """Gives out places for an array of this size, and so finds how large its memories must be."""

    def __init__(self, parameters: Parameters) -> None:
        self._p = parameters
        self._weights: list[NDArray[np.uint8]] = []  # words (rows, columns)
        self._biases: list[NDArray[np.int32]] = []  # words (columns,)
        self._squash_tables: list[NDArray[np.uint16]] = []
        self._exp_tables: list[NDArray[np.uint16]] = []
        self._borders: list[Packet] = []
        self.activation_bytes = 0
        self.vote_words = 1

    def place(self, shape: tuple[int, ...], coding: Coding, border: int = 0) -> Region:
        """A tensor of every image of the batch, with a border that holds the code of zero from the start."""
        region = Region(shape, coding, self.activation_bytes, self._p.batch, border=border)
        self.activation_bytes += -(-region.total // 4) * 4
        if border:
            zero = to_bytes(coding, np.full(region.total, coding.zero_point, np.int16))
            self._borders.append(Packet(Target.ACTIVATIONS, region.base, words32(zero)))
        return region

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

    def biases(self, words: NDArray[np.int32]) -> int:
        """Put words (..., columns) into the bias memory; the first one's number."""
        base = len(self._biases)
        self._biases.extend(words.reshape(-1, self._p.columns))
        return base

    def squash_table(self, table: NDArray[np.uint16]) -> int:
        """The page of a table (512,) of the squash unit; equal tables share one."""
        return _page(self._squash_tables, table)

    def exp_table(self, table: NDArray[np.uint16]) -> int:
        """The page of a table (256,) of the softmax unit; equal tables share one."""
        return _page(self._exp_tables, table)

    @property
    def bias_words(self) -> int:
        return len(self._biases)

    @property
    def pages(self) -> int:
        """Pages that the larger of the two kinds of tables takes."""
        return max(len(self._squash_tables), len(self._exp_tables))

    def weight_bytes(self) -> NDArray[np.uint8]:
        """The content of external memory."""
        return np.concatenate(self._weights).reshape(-1)

    def setup(self) -> list[Packet]:
        """What fills the memories before the first image, the program apart."""
        return [
            Packet(Target.BIAS, 0, np.array(self._biases, np.int32).reshape(-1).view(np.uint32)),
            *self._borders,
            *(Packet(Target.SQUASH_TABLE, 512 * i, t.astype(np.uint32)) for i, t in enumerate(self._squash_tables)),
            *(Packet(Target.EXP_TABLE, 256 * i, t.astype(np.uint32)) for i, t in enumerate(self._exp_tables)),
        ]


def _page(tables: list[NDArray[np.uint16]], table: NDArray[np.uint16]) -> int:
    for index, known in enumerate(tables):
        if np.array_equal(known, table):
            return index
    tables.append(table)
    return len(tables) - 1
