"""What a plan costs on this machine: measured once, and kept in the cache. NumPy only."""

from __future__ import annotations

import json
import platform
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.emulation.lookup import Operand, Shape, library_name, sums
from model.emulation.plan import Plan, plans
from model.errors import RedcaneError
from model.files import digest, read_bounded, write_atomic
from model.multipliers.netlist import cache_folder
from model.qnetwork import Product

_SHAPE = Shape(groups=1, rows=60, terms=1024, lanes=256, out_row=256)
_RUNS = 5
_LARGEST = 2**16  # bytes of a file of costs
MOST_FACTORS = 32  # beyond, no processor multiplies faster than it looks up


def fastest(product: Product, terms: NDArray[np.int32], level: str) -> Plan:
    """The plan of terms (256, 256) that costs least at one of the levels of model.emulation.lookup."""
    known = costs(level)
    most = int(min(MOST_FACTORS, max(known.values()) / known["factor"]))
    return min(plans(product, terms, most), key=lambda plan: cost(plan, known))


def cost(plan: Plan, known: dict[str, float]) -> float:
    """Seconds for each term, by what `costs` has measured."""
    count, rank = plan.shape
    return (known[_planes(count, plan.folded)] if count else 0.0) + rank * known["factor"]


@cache
def costs(level: str) -> dict[str, float]:
    """Seconds of one thread for each term: of one factor ("factor"), and of looking up so many planes.

    Kept in the user's cache by compiled library and processor; a damaged file counts as none.
    """
    file = cache_folder() / "native" / f"costs-{digest(f'{library_name()} {level} {_processor()}'.encode())[:32]}.json"
    wanted = _samples()
    try:
        found = json.loads(read_bounded(file, _LARGEST))
        if found.keys() == wanted.keys() and all(0 < float(value) < 1 for value in found.values()):
            return {name: float(value) for name, value in found.items()}
    except (RedcaneError, OSError, ValueError, TypeError, AttributeError):
        pass
    measured = {name: _measure(plan, level) for name, plan in wanted.items()}
    with suppress(OSError):  # an unwritable cache costs time, nothing else
        write_atomic(file, json.dumps(measured))
    return measured


def _samples() -> dict[str, Plan]:
    """A plan for everything that is measured."""
    rng = np.random.default_rng(0)

    def sample(count: int, folded: bool, rank: int) -> Plan:
        entries = 128 if folded else 256
        planes = rng.integers(0, 256, (256, count, entries)).astype(np.uint8)
        values = rng.integers(0, max(256**count, 1), (256, 256)).astype(np.int32)
        factors = rng.integers(-99, 99, (rank, 256)).astype(np.int16)
        return Plan(values, np.zeros(256, np.int32), np.zeros(256, np.int32), planes, folded, factors, factors)

    lookups = ((1, True), (2, True), (3, True), (1, False), (2, False))
    return {"factor": sample(0, False, 1)} | {_planes(*of): sample(*of, 0) for of in lookups}


def _planes(count: int, folded: bool) -> str:
    return f"{count} planes{', folded' * folded}"


def _measure(plan: Plan, level: str) -> float:
    rng = np.random.default_rng(1)
    a = rng.integers(0, 256, (_SHAPE.rows, _SHAPE.terms)).astype(np.uint8)
    b = Operand(plan, rng.integers(-127, 128, (1, _SHAPE.terms, _SHAPE.lanes)).astype(np.int16))
    rows = np.arange(_SHAPE.rows) * _SHAPE.terms
    out = np.empty((_SHAPE.rows, _SHAPE.lanes), np.int32)
    times = []
    for _ in range(_RUNS):
        start = time.thread_time()
        sums(plan, level, 1, _SHAPE, a, rows, b, b.columns, out)
        times.append(time.thread_time() - start)
    return max(min(times), 1e-9) / (out.size * _SHAPE.terms)


def _processor() -> str:
    """What tells this processor from others that may share the cache."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        return next((line for line in lines if line.startswith("model name")), "")
    except OSError:
        return platform.processor()
