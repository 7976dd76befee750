"""The compiled kernel of the evolution, `cgp.cpp`: built at its first use (model/native.py)."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model import native
from model.errors import RedcaneError
from model.multipliers.chromosome import FUNCTIONS, Chromosome, Measure

SOURCE = Path(__file__).parent / "cgp.cpp"
TUNING = "-march=native"
_PAIRS = 1 << 16


class SumLimits(ctypes.Structure):
    """What the sums over all 65,536 operand pairs may reach, as the kernel takes it; -1: no limit. See cgp.cpp.

    `zero` is no sum: above 0 it demands that products with a zero operand are zero.
    """

    _fields_ = [(name, ctypes.c_int64) for name in ("absolute", "worst", "square", "bias", "weighted", "weighted_bias")]
    _fields_ += [("zero", ctypes.c_int64), ("variance", ctypes.c_double), ("noise", ctypes.c_double)]


class Kernel:
    """The limits and operands of one evolution, prepared for evaluation; a chromosome's arrays are passed each time."""

    def __init__(self, limits: SumLimits, weights: NDArray[np.int32] | None = None,
                 measure: Measure = "transistors", tuning: str = TUNING) -> None:
        """`weights` int32 [256, 256] as [a, b], not negative, for the weighted sums; `measure` is what gates cost;
        `tuning` is the compiler's option for a processor.
        """
        self._library = _load(tuning)
        if weights is None:
            # A stride that is coprime to 65,536 mixes the pairs: every part of them is a sample of all.
            order = (np.arange(_PAIRS) * 40503 % _PAIRS).astype(np.uint16)
        else:
            weights = np.ascontiguousarray(weights, np.int32).reshape(_PAIRS)
            order = np.argsort(-weights.astype(np.int64), kind="stable").astype(np.uint16)
        truth = np.array([f.truth for f in FUNCTIONS], np.uint8)
        costs = np.array([getattr(f, measure) for f in FUNCTIONS], np.int32)
        self._problem = ctypes.c_void_p(self._library.problem_new(
            ctypes.byref(limits), len(FUNCTIONS), _pointer(truth), _pointer(costs), _pointer(order),
            None if weights is None else _pointer(weights)))

    def __del__(self) -> None:
        if hasattr(self, "_problem"):
            self._library.problem_free(self._problem)

    def products(self, chromosome: Chromosome) -> NDArray[np.uint16]:
        """The product table, uint16 [256, 256] as [a, b]."""
        table = np.zeros(_PAIRS, np.uint16)
        genes = flat(chromosome)
        self._library.products(self._problem, len(chromosome.nodes), _pointer(genes), _pointer(table))
        return table.reshape(256, 256)

    def cost(self, chromosome: Chromosome) -> int | None:
        """The transistors or area of the active nodes where the chromosome keeps the limits, else None."""
        genes = flat(chromosome)
        cost = int(self._library.cost(self._problem, len(chromosome.nodes), _pointer(genes)))
        return None if cost < 0 else cost

    def evolve(self, genes: NDArray[np.int32], random: NDArray[np.uint64], generations: int,
               simulated: NDArray[np.int64]) -> int:
        """Run generations of four offspring on `genes` (see `flat`), which must keep the limits, and return the cost.

        Changes all three arrays: the genes become the best found, `random` uint64 [1] is the generator's state,
        `simulated` int64 [1] grows by the number of offspring whose error was computed.
        """
        nodes = (len(genes) - 16) // 3
        return int(self._library.evolve(self._problem, nodes, _pointer(genes), _pointer(random),
                                        ctypes.c_int64(generations), _pointer(simulated)))


def flat(chromosome: Chromosome) -> NDArray[np.int32]:
    """The genes as the kernel takes them: int32 [3 N + 16], the nodes', then the outputs'."""
    return np.ascontiguousarray(np.concatenate([chromosome.nodes.reshape(-1), chromosome.outputs]), np.int32)


def unflat(genes: NDArray[np.int32]) -> Chromosome:
    """The chromosome of flat genes; RedcaneError where they are none."""
    if genes.ndim != 1 or len(genes) < 19 or (len(genes) - 16) % 3:
        raise RedcaneError(f"{genes.size} numbers are not the genes of a circuit")
    return Chromosome(genes[:-16].reshape(-1, 3).copy(), genes[-16:].copy())


def _pointer(array: NDArray[Any]) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


@functools.cache
def _load(tuning: str) -> ctypes.CDLL:
    library = native.load(SOURCE, tuning)
    library.problem_new.restype = ctypes.c_void_p
    library.problem_free.restype = None
    library.products.restype = None
    library.cost.restype = library.evolve.restype = ctypes.c_int64
    return library
