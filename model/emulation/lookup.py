"""Exact sums of table lookups on the CPU: a product's terms compiled into a plan for lookup.cpp. NumPy only.

A plan is the table cut into byte planes that fit a processor's registers, and two vectors of constants: a term of the
bytes (a, b) is `values[a, b] + row[a] + column[b]`. The kernel sums the values and the rows; the columns' sums depend
on the operand b alone and are taken once. All of it is arithmetic modulo 2^32, hence exact where a sum fits 32 bits.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model import native
from model.errors import RedcaneError
from model.qnetwork import Product, Requantizer

LEVELS = ("portable", "avx2", "avx512")
ENGINE = "REDCANE_EMULATION"  # the environment variable that forces a level, or "torch"
SLACK = 64  # bytes that the kernel may read beyond operand b
_SMALL = 2**20  # terms that are summed before a second thread is worth its start

Bytes = NDArray[np.uint8]


class _Plan(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("values", "planes", "deltas", "row")),
        ("n_planes", ctypes.c_int32),
        ("folded", ctypes.c_int32),
    )


class _Job(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("a", "b", "init", "out", "a_rows")),
        *((name, ctypes.c_int64) for name in ("groups", "rows", "terms", "lanes", "segments", "a_segment")),
        *((name, ctypes.c_int64) for name in ("a_group", "b_group", "init_group", "out_group", "b_term", "out_row")),
    )


@dataclass(frozen=True)
class Plan:
    """One product's terms as the kernel reads them. `folded`: b is sign and magnitude, its sign a complement."""

    values: NDArray[np.int32]  # (256, 256) [a, b], below 2^(8 planes)
    row: NDArray[np.int32]  # (256,)
    column: NDArray[np.int32]  # (256,)
    planes: Bytes  # (256, planes, entries)
    deltas: Bytes  # the same, every 16 entries xor the 16 before them (within 128)
    folded: bool

    def encode(self, codes: NDArray[np.int16]) -> Bytes:
        """Codes of operand b -> the bytes that the plan wants, with slack behind them: flat."""
        out = np.empty(codes.size + SLACK, np.uint8)
        out[codes.size :] = 0
        codes = np.ascontiguousarray(codes)
        _library().redcane_encode(_pointer(codes), _pointer(out), ctypes.c_int64(codes.size), self.folded)
        return out


def compile_plan(product: Product, terms: NDArray[np.int32]) -> Plan:
    """The plan of the (256, 256) terms of operand bytes [a, b] (model.emulation.terms.term_table)."""
    column = np.zeros(256, np.int64)
    wide = terms.astype(np.int64)
    folded = product.format == "sign-magnitude" and product.b.kind == "signed"
    if folded:
        positive = wide[:, :128]
        if product.a.kind != "signed":
            offset, bits = 0, 16
        elif np.abs(positive).max() < 2**15:
            offset, bits = 2**15, 16
        else:
            offset, bits = 2**23, 24
        top = 2**bits - 1
        values = np.concatenate([positive + offset, top - (positive + offset)], axis=1)
        row = np.full(256, -offset)
        column[128:] = 2 * offset - top
    else:
        bits = 16
        if product.format == "affine":
            column = -product.a.zero_point * np.arange(256)
        row = (wide - column).min(axis=1)
        values = wide - column - row[:, None]
    if values.min() < 0 or values.max() >= 2**bits:
        raise RedcaneError(f"{product.component}: its terms do not fit {bits} bits")
    entries = 128 if folded else 256
    planes = np.stack([(values[:, :entries] >> 8 * i) & 255 for i in range(bits // 8)], axis=1).astype(np.uint8)
    parts = planes.reshape(256, bits // 8, -1, 8, 16)
    deltas = parts.copy()
    deltas[..., 1:, :] ^= parts[..., :-1, :]
    return Plan(
        values.astype(np.int32), row.astype(np.int32), column.astype(np.int32), planes,
        deltas.reshape(planes.shape), folded,
    )  # fmt: skip


@cache
def _library() -> ctypes.CDLL:
    return native.load(Path(__file__).with_suffix(".cpp"))


@cache
def best_level() -> str | None:
    """The fastest of LEVELS on this machine; None, and a warning, when the kernel cannot be compiled."""
    try:
        return LEVELS[_library().redcane_level()]
    except RedcaneError as error:
        text = f"the emulation runs on torch alone, some thirty times slower: {error}"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
        return None


def choose(wanted: str | None = None) -> str | None:
    """The level to use: `wanted`, else what `$REDCANE_EMULATION` says, else the best; None is torch.

    Raises RedcaneError for a name that is none, and for a level that this machine does not have.
    """
    wanted = wanted or os.environ.get(ENGINE) or None
    if wanted == "torch":
        return None
    if wanted is not None and wanted not in LEVELS:
        raise RedcaneError(f"{ENGINE}: {wanted!r} is none of torch, {', '.join(LEVELS)}")
    best = best_level()
    if wanted is not None and (best is None or LEVELS.index(wanted) > LEVELS.index(best)):
        raise RedcaneError(f"{ENGINE}: this machine has no {wanted}, its best is {best or 'torch'}")
    return wanted or best


@dataclass(frozen=True)
class Shape:
    """The sums of `groups`, each of `rows` sums over `terms` for every lane; strides count elements.

    A row of operand a is `segments` runs of terms / segments bytes, `a_segment` apart.
    """

    groups: int
    rows: int
    terms: int
    lanes: int
    b_term: int
    out_row: int
    a_group: int = 0
    b_group: int = 0
    init_group: int = 0
    out_group: int = 0
    segments: int = 1
    a_segment: int = 0


def sums(
    plan: Plan, level: str, threads: int, shape: Shape,
    a: Bytes, a_rows: NDArray[np.int64], b: Bytes, init: NDArray[np.int32], out: NDArray[np.int32],
) -> None:  # fmt: skip
    """out = init + the sums of values and rows. Nothing is checked here: the caller's shapes must be right."""
    job = _Job(
        *(_pointer(array) for array in (a, b, init, out, a_rows)),
        *(shape.groups, shape.rows, shape.terms, shape.lanes, shape.segments, shape.a_segment),
        *(shape.a_group, shape.b_group, shape.init_group, shape.out_group, shape.b_term, shape.out_row),
    )
    tables = (_pointer(plan.values), _pointer(plan.planes), _pointer(plan.deltas))
    given = _Plan(*tables, _pointer(plan.row) if plan.row.any() else None, plan.planes.shape[1], plan.folded)
    small = shape.groups * shape.rows * shape.terms * shape.lanes < _SMALL
    _library().redcane_sums(
        ctypes.byref(given), ctypes.byref(job), ctypes.c_int32(LEVELS.index(level)),
        ctypes.c_int32(1 if small else threads),
    )  # fmt: skip


def column_sums(plan: Plan, b: Bytes, groups: int, terms: int, lanes: int, b_group: int, b_term: int) -> NDArray:
    """What the columns add to the sums of operand b (groups, terms, lanes): int32 (groups, lanes)."""
    out = np.zeros((groups, lanes), np.int32)
    if plan.column.any():
        pointers = (_pointer(plan.column), _pointer(b), _pointer(out))
        _library().redcane_columns(*pointers, *map(ctypes.c_int64, (groups, terms, lanes, b_group, b_term)))
    return out


def requantize(unit: Requantizer, sums: NDArray[np.int32], threads: int) -> NDArray[np.int16]:
    """Accumulators -> codes of the same shape (docs/numerics.md, Requantisation)."""
    sums = np.ascontiguousarray(sums)
    out = np.empty(sums.shape, np.int16)
    unit_constants = (unit.multiplier, unit.shift, unit.zero_point, unit.lo, unit.hi)
    sizes = map(ctypes.c_int64, (sums.size, *unit_constants))
    _library().redcane_requantize(_pointer(sums), _pointer(out), *sizes, ctypes.c_int32(threads))
    return out


def _pointer(array: NDArray[Any]) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)
