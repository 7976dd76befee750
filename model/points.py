"""Points of the analysis: noise of one magnitude in some operations, measured batch by batch behind a clean prefix.

A *unit* is a point on one batch with one noise seed. Its result, which images are classified right, depends on the
unit alone: neither on what was measured before nor on who measures it.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from model.capsules import lengths
from model.datasets import Split
from model.errors import RedcaneError
from model.files import digest
from model.network import Network
from model.noise import add_noise, noise_key
from model.tape import Noise, Part, Tape

MEMORY = 2 * 2**30
"""Bytes in which a worker keeps clean prefixes beyond those of the batch in hand."""

_IMAGES = 0  # the tape's slot


@dataclass(frozen=True)
class Unit:
    """Noise of magnitude `nm` and average `na` in these operations ("layer.name", sorted), seeded, on one batch."""

    operations: tuple[str, ...]
    nm: float
    na: float
    seed: int
    batch: int


def clean_unit(batch: int) -> Unit:
    """The batch without noise."""
    return Unit((), 0.0, 0.0, 0, batch)


@dataclass(frozen=True)
class Subject:
    """What is analysed: a network (images, tap -> class capsules) on images, cut into batches in their order."""

    network: Network
    split: Split
    batch: int  # images evaluated together: the range R(X) of a tensor is taken over them
    torch: str = torch.__version__

    @property
    def batches(self) -> int:
        """How many batches there are; the last one may be smaller."""
        return -(-len(self.split) // self.batch)

    def size(self, batch: int) -> int:
        """Images in a batch."""
        return min(self.batch, len(self.split) - batch * self.batch)

    @cached_property
    def network_digest(self) -> str:
        """SHA-256 of the architecture and the weights."""
        state = {name: tensor.cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        parts = [digest(tensor.numpy().tobytes()) for tensor in state.values()]
        about = [str(self.network), repr(getattr(self.network, "shape", "")), list(state), self.torch]
        return digest(json.dumps([about, parts]).encode())

    @cached_property
    def data_digest(self) -> str:
        """SHA-256 of the images, the labels, and how they are cut into batches."""
        images, labels = np.ascontiguousarray(self.split.images), np.ascontiguousarray(self.split.labels)
        parts = [digest(images.tobytes()), digest(labels.tobytes()), self.batch]
        return digest(json.dumps(parts).encode())

    @property
    def name(self) -> str:
        """Stands for all of it."""
        return digest(f"{self.network_digest} {self.data_digest}".encode())


class Prober:
    """Measures units of one subject, and remembers clean prefixes within a budget of memory."""

    def __init__(self, subject: Subject, memory: int = MEMORY) -> None:
        self.subject, self.memory = subject, memory
        self.macs = 0  # multiply-accumulates executed so far
        self._tapes: dict[int, Tape] = {}  # by batch size
        self._parts: dict[tuple[int, tuple[str, ...]], Part] = {}
        self._prefixes: dict[tuple[int, int], Tensor] = {}  # by batch and slot

    def measure(self, units: Sequence[Unit]) -> list[bytes]:
        """For every unit, all of one batch: which images are classified right, eight to a byte (np.packbits)."""
        (index,) = {unit.batch for unit in units}
        start, size = index * self.subject.batch, self.subject.size(index)
        images = torch.from_numpy(self.subject.split.images[start : start + size])
        labels = torch.from_numpy(self.subject.split.labels[start : start + size])
        with one_thread():
            if size not in self._tapes:
                self._tapes[size] = Tape(self.subject.network, images)
            tape = self._tapes[size]
            parts = [self._part(tape, size, unit.operations) for unit in units]
            known = self._prefix(tape, index, images, frozenset().union(*(part.needs for part in parts)))
            results = []
            for unit, part in zip(units, parts, strict=True):
                self.macs += part.macs
                capsules = part.run(known, _noise(unit))
                right = lengths(capsules).argmax(dim=1) == labels
                results.append(np.packbits(right.numpy()).tobytes())
        return results

    def _part(self, tape: Tape, size: int, operations: tuple[str, ...]) -> Part:
        if (size, operations) not in self._parts:
            self._parts[size, operations] = tape.behind(operations)
        return self._parts[size, operations]

    def _prefix(self, tape: Tape, batch: int, images: Tensor, slots: frozenset[int]) -> dict[int, Tensor]:
        """The clean tensors of these slots. What had to be computed is remembered if it is worth its memory, and so are
        the products on the way: what is asked for next may begin at one of them.
        """
        known = {slot: tensor for (of, slot), tensor in self._prefixes.items() if of == batch} | {_IMAGES: images}
        missing = slots - known.keys()
        if missing:
            making = tape.making(missing, known)
            self.macs += making.macs
            made = making.compute({slot: known[slot] for slot in making.needs})
            known |= made
            self._prefixes |= {(batch, slot): tensor for slot, tensor in made.items()}
            kept = 0
            for place in sorted(self._prefixes, key=lambda p: (-tape.worth(p[1]), p)):
                kept += self._prefixes[place].nbytes
                if kept > self.memory:
                    kept -= self._prefixes.pop(place).nbytes
        return known


def _noise(unit: Unit) -> Noise:
    def noise(operation: str, iteration: int, x: Tensor, out: Tensor | None) -> Tensor:
        return add_noise(x, unit.nm, unit.na, noise_key(unit.seed, operation, iteration, unit.batch), out)

    return noise


@contextmanager
def one_thread() -> Iterator[None]:
    """On one thread, results do not depend on the number of cores; more cores take more workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Workers(Protocol):
    """Who measures. flows/executors.py has local processes and a Dask cluster."""

    @property
    def count(self) -> int:
        """How many measure at the same time."""
        ...

    def submit(self, units: tuple[Unit, ...]) -> Future[list[bytes]]:
        """Measure units of one batch, as Prober.measure does.

        The future raises concurrent.futures.BrokenExecutor when the worker was lost: submit again.
        """
        ...


class InProcess:
    """Measures at once, here."""

    count = 1

    def __init__(self, subject: Subject, memory: int = MEMORY) -> None:
        self.prober = Prober(subject, memory)

    def submit(self, units: tuple[Unit, ...]) -> Future[list[bytes]]:
        """Measure; an exception is raised here and now."""
        future: Future[list[bytes]] = Future()
        future.set_result(self.prober.measure(units))
        return future


_installed: dict[str, Prober] = {}


def install(subject: Subject, memory: int = MEMORY) -> None:
    """Prepare this process to measure a subject's units. Raises RedcaneError when its torch is another version."""
    if subject.torch != torch.__version__:
        raise RedcaneError(
            f"worker: has torch {torch.__version__}, the analysis was started with {subject.torch}; install the same"
        )
    keep_memory()
    _installed[subject.name] = Prober(subject, memory)


def measure(subject: str, units: tuple[Unit, ...]) -> list[bytes]:
    """Measure units of an installed subject (its name)."""
    return _installed[subject].measure(units)


def keep_memory() -> None:
    """Ask glibc not to give freed memory back: getting large tensors' pages anew costs as much as filling them."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return
    trim_threshold, mmap_max = -1, -4  # malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
