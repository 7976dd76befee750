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

from model.emulation.lookup import Operand, Shape, Summed, library_name, sums
from model.emulation.plan import Plan, plans, table_plan
from model.errors import RedcaneError
from model.files import digest, read_bounded, write_atomic
from model.multipliers.netlist import cache_folder
from model.qnetwork import Product

_SHORT = 32  # terms: sums of fewer are measured as sums of 8, the class capsules' votes
_EVEN = {"portable": 0.55, "avx2": 0.3, "avx512": 0.55}
"""The share of active terms at which picking them out takes as long as looking all up: measured on Zen 5."""
_FACTORS = 4  # measured at once
_RUNS = 8
_NOTHING = "nothing"
_LARGEST = 2**16  # bytes of a file of costs
MOST_FACTORS = 32  # beyond, no processor multiplies faster than it looks up


_made: dict[tuple[Product, str, str, bool], Plan] = {}
_tables: dict[tuple[Product, str], Plan] = {}
_MOST_MADE = 128  # of up to some 400 KB


def fastest(product: Product, terms: NDArray[np.int32], level: str, length: int) -> Plan:
    """The plan of terms (256, 256) that costs least in sums of so many, at a level of model.emulation.lookup.

    The last ones are kept: fine-tuning asks for the same ones at every step.
    """
    key = (product, digest(terms.tobytes()), level, length < _SHORT)
    if key not in _made:
        known = costs(level, length < _SHORT)
        most = int(min(MOST_FACTORS, max(known.values()) / known["factor"]))
        if len(_made) >= _MOST_MADE:
            _made.clear()
        _made[key] = min(plans(product, terms, most), key=lambda plan: cost(plan, known))
    return _made[key]


def for_few(
    product: Product, terms: NDArray[np.int32], plan: Plan, level: str, length: int
) -> tuple[Plan, float] | None:
    """The plan of terms whose a is mostly idle, and the share of others below which it costs less than `plan`.

    None where there is no idle a, and for short sums: what is done once for each takes longer than their terms.
    """
    if length < _SHORT:
        return None
    table = plan
    if plan.shape[1]:  # it has factors
        key = (product, digest(terms.tobytes()))
        if key not in _tables:
            if len(_tables) >= _MOST_MADE:
                _tables.clear()
            _tables[key] = table_plan(product, terms)
        table = _tables[key]
    if table.idle < 0:
        return None
    if table is plan:
        return table, _EVEN[level]
    known = costs(level, short=False)
    return table, _EVEN[level] * min(1.0, cost(plan, known) / cost(table, known))


def cost(plan: Plan, known: dict[str, float]) -> float:
    """Seconds for each term beyond what all plans take, by what `costs` has measured."""
    count, rank = plan.shape
    lookups = known[_planes(count, plan.folded)] if count else 0.0
    return lookups + rank * known["factor"] + (known["signs"] if plan.differ else 0.0)


@cache
def costs(level: str, short: bool) -> dict[str, float]:
    """Seconds of one thread for each term of a short or a long sum, beyond those of a sum of nothing: of one factor, of
    so many planes, of the signs.

    Kept in the user's cache by compiled library and processor; a damaged file counts as none.
    """
    key = digest(f"{library_name()} {level} {short} {_processor()}".encode())
    file = cache_folder() / "native" / f"costs-{key[:32]}.json"
    samples = _samples()
    try:
        found = json.loads(read_bounded(file, _LARGEST))
        if found.keys() == samples.keys() - {_NOTHING} and all(0 < float(value) < 1 for value in found.values()):
            return {name: float(value) for name, value in found.items()}
    except (RedcaneError, OSError, ValueError, TypeError, AttributeError):
        pass
    seconds = _measure(samples, level, short)
    nothing = seconds.pop(_NOTHING)  # to begin a sum and to write it, which for short ones is not little
    measured = {name: max(value - nothing, 1e-15) for name, value in seconds.items()}
    measured["factor"] /= _FACTORS
    with suppress(OSError):  # an unwritable cache costs time, nothing else
        write_atomic(file, json.dumps(measured))
    return measured


def _samples() -> dict[str, Plan]:
    """A plan for everything that is measured."""
    rng = np.random.default_rng(0)

    def sample(count: int, folded: bool, rank: int, differ: int = 0) -> Plan:
        entries = 128 if folded else 256
        planes = rng.integers(0, 256, (256, count, entries)).astype(np.uint8)
        values = rng.integers(0, max(256**count, 1), (256, 256)).astype(np.uint16)
        factors = rng.integers(-99, 99, (rank, 256)).astype(np.int16)
        return Plan(values, np.zeros(256, np.int32), np.zeros(256, np.int32), planes, folded, factors, factors, differ)

    lookups = ((1, True), (2, True), (1, False), (2, False))
    others = {
        _NOTHING: sample(0, False, 0), "factor": sample(0, False, _FACTORS), "signs": sample(0, True, 0, 1)
    }  # fmt: skip
    return others | {_planes(*of): sample(*of, 0) for of in lookups}


def _planes(count: int, folded: bool) -> str:
    return f"{count} planes{', folded' * folded}"


def _measure(samples: dict[str, Plan], level: str, short: bool) -> dict[str, float]:
    """Seconds of one thread for each term, of every plan; they take turns, since a machine is slow for a while."""
    groups, rows, terms, lanes = (64, 16, 8, 160) if short else (1, 60, 1024, 256)
    shape = Shape(
        groups=groups, rows=rows, terms=terms, lanes=lanes, out_row=lanes,
        a_group=rows * terms, init_group=lanes, out_group=rows * lanes,
    )  # fmt: skip
    rng = np.random.default_rng(1)
    a = rng.integers(0, 256, (groups, rows, terms)).astype(np.uint8)
    codes = rng.integers(-127, 128, (groups, terms, lanes)).astype(np.int16)
    operands = {name: Operand.of_weights(plan, codes) for name, plan in samples.items()}
    begins = np.arange(rows) * terms
    out = np.empty((groups, rows, lanes), np.int32)
    times = dict.fromkeys(samples, np.inf)
    for _ in range(_RUNS):
        for name, plan in samples.items():
            start = time.thread_time()
            sums(Summed(plan, operands[name], operands[name].columns), level, 1, shape, a, begins, out)
            times[name] = min(times[name], time.thread_time() - start)
    return {name: seconds / (out.size * terms) for name, seconds in times.items()}


def _processor() -> str:
    """What tells this processor from others that may share the cache."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        return next((line for line in lines if line.startswith("model name")), "")
    except OSError:
        return platform.processor()
