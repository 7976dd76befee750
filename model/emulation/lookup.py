"""The compiled kernel, lookup.cpp: exact sums of a plan's terms (plan.py) on the CPU. NumPy only."""

from __future__ import annotations

import ctypes
import os
import warnings
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model import native
from model.emulation.plan import Plan
from model.errors import RedcaneError
from model.qnetwork import Requantizer, Routed, Squash

LEVELS = ("portable", "avx2", "avx512")
ENGINE = "REDCANE_EMULATION"  # the environment variable that forces a level, "torch" or, on a GPU, "cuda"
GPU = "cuda"  # its value that is a device
VECTOR = 64  # lanes at a time
SLACK = VECTOR  # bytes that the kernel may read beyond operand b's
_SMALL = 2**20  # terms that are summed before a second thread is worth its start

Bytes = NDArray[np.uint8]
Sums = NDArray[np.int32] | NDArray[np.int16]


class _Plan(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("values", "planes", "turned", "row", "u")),
        *((name, ctypes.c_int32) for name in ("n_planes", "folded", "rank", "differ", "idle")),
    )


class _Requantizer(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in ("multiplier", "shift", "zero_point", "low", "high", "floats"))


class _Job(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("a", "b", "w", "signs", "init", "out", "codes", "unit", "a_rows")),
        *((name, ctypes.c_int64) for name in ("groups", "rows", "terms", "lanes", "segments", "a_segment")),
        *((name, ctypes.c_int64) for name in ("a_group", "b_group", "w_group", "signs_group")),
        *((name, ctypes.c_int64) for name in ("init_group", "out_group", "b_term", "out_row")),
    )


@cache
def _library() -> ctypes.CDLL:
    return native.load(Path(__file__).with_suffix(".cpp"))


def library_name() -> str:
    """The compiled library's, which tells its source, compiler and options. Raises RedcaneError like native.load."""
    return Path(_library()._name).name


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
    """The level to use on the CPU: `wanted`, else what `$REDCANE_EMULATION` says, else the best; None is torch.

    Raises RedcaneError for a name that is none, and for a level that this machine does not have.
    """
    wanted = wanted or os.environ.get(ENGINE) or None
    if wanted == "torch":
        return None
    if wanted == GPU:  # of what is computed on the CPU nevertheless
        wanted = None
    if wanted is not None and wanted not in LEVELS:
        raise RedcaneError(f"{ENGINE}: {wanted!r} is none of torch, {GPU}, {', '.join(LEVELS)}")
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
    out_row: int
    a_group: int = 0
    init_group: int = 0
    out_group: int = 0
    segments: int = 1
    a_segment: int = 0


class Operand:
    """Bytes of operand b (groups, terms, lanes), which look up, and what else a plan reads: factors, and signs."""

    def __init__(self, plan: Plan, bytes_of_b: Bytes, shape: tuple[int, int, int], threads: int = 1) -> None:
        groups, terms, lanes = shape
        self.lanes, self.terms, self.bytes, self._threads = lanes, terms, bytes_of_b, threads
        self.columns = np.zeros((groups, lanes), np.int32)
        """What the plan's columns add to the sums."""
        if plan.column.any():
            self.columns = self._sums_of(plan.column, groups)
        self.pairs = np.zeros((groups, 0), np.int16)
        self.signs = np.zeros(groups * (-(-terms // 8) if plan.differ else 0) * lanes + SLACK, np.uint8)
        if plan.differ:
            signs = (_pointer(self.bytes), _pointer(self.signs))
            _library().redcane_signs(*signs, *map(ctypes.c_int64, shape), ctypes.c_int32(threads))

    @classmethod
    def of_weights(cls, plan: Plan, codes: NDArray[np.int16]) -> Operand:
        """Of codes (groups, terms, lanes)."""
        groups, terms, lanes = codes.shape
        count, rank = plan.shape
        codes = np.ascontiguousarray(codes)
        operand = cls(plan, _bytes_of_b(plan, codes, 1), codes.shape)
        if not count:
            operand.bytes = np.zeros(0, np.uint8)
        if rank:
            operand.pairs = np.zeros((groups, -(-lanes // VECTOR), rank, -(-terms // 2), VECTOR, 2), np.int16)
            factors = (_pointer(codes), _pointer(plan.v), _pointer(operand.pairs))
            _library().redcane_pairs(*factors, *map(ctypes.c_int64, (groups, terms, lanes, rank)))
        return operand

    @classmethod
    def of_votes(cls, plan: Plan, codes: NDArray[np.int16], turned: bool, threads: int) -> Operand:
        """Of votes (N, I, J, D): N * J groups, I terms of D lanes or, `turned`, D of I. The plan has no factors."""
        count, inputs, classes, dim = codes.shape
        found = _bytes_of_b(plan, np.ascontiguousarray(codes), threads)
        out = np.empty_like(found)
        sizes, how = map(ctypes.c_int64, codes.shape), map(ctypes.c_int32, (turned, threads))
        _library().redcane_votes(_pointer(found), _pointer(out), *sizes, *how)
        return cls(plan, out, (count * classes, *((dim, inputs) if turned else (inputs, dim))), threads)

    def idle(self, plan: Plan) -> NDArray[np.int32]:
        """What all values of an idle a add to the sums (groups, lanes), for a plan that has such an a."""
        return self._sums_of(plan.values[plan.idle].astype(np.int32), len(self.columns))

    def _sums_of(self, column: NDArray[np.int32], groups: int) -> NDArray[np.int32]:
        """The sums (groups, lanes) over all terms of what each byte has in a column (256,), modulo 2^32."""
        out = np.empty((groups, self.lanes), np.int32)
        arrays = (_pointer(column), _pointer(self.bytes), _pointer(out))
        sizes = map(ctypes.c_int64, (groups, self.terms, self.lanes))
        _library().redcane_columns(*arrays, *sizes, ctypes.c_int32(self._threads))
        return out


def _bytes_of_b(plan: Plan, codes: NDArray[np.int16], threads: int) -> Bytes:
    """Flat, and then some."""
    out = np.empty(codes.size + SLACK, np.uint8)
    how = map(ctypes.c_int32, (plan.folded, threads))
    _library().redcane_b(_pointer(codes), _pointer(out), ctypes.c_int64(codes.size), *how)
    return out


@dataclass(frozen=True)
class Summed:
    """A way to take sums: a plan, operand b laid out for it, and what the sums (groups, lanes) begin with."""

    plan: Plan
    b: Operand
    init: NDArray[np.int32]

    @cached_property
    def given(self) -> _Plan:
        """The plan as the kernel is given it."""
        of, (count, rank) = self.plan, self.plan.shape
        tables = (_pointer(of.values), _pointer(of.planes), _pointer(of.turned))
        row = _pointer(of.row) if of.row.any() else None
        return _Plan(*tables, row, _pointer(of.u), count, of.folded, rank, of.differ, of.idle)

    @cached_property
    def pointers(self) -> tuple[ctypes.c_void_p, ...]:
        """To operand b's parts, and to the sums' beginnings."""
        return tuple(_pointer(array) for array in (self.b.bytes, self.b.pairs, self.b.signs, self.init))


class Few(NamedTuple):
    """The way where few terms are active: where their share is below `share`."""

    way: Summed
    share: float


def sums(
    way: Summed, level: str, threads: int, shape: Shape, a: Bytes, a_rows: NDArray[np.int64], out: Sums,
    unit: Requantizer | None = None, few: Few | None = None,
) -> None:  # fmt: skip
    """out = init + the sums of values, products and rows (int32), or the codes that `unit` makes of them (int16).

    With `few`, terms that are idle are left out where that is faster. Nothing is checked: the caller's shapes must be
    right.
    """
    codes = _requantizer(unit) if unit else None

    b_group = way.b.terms * way.b.lanes if shape.groups > 1 else 0
    numbers = (
        *(shape.groups, shape.rows, shape.terms, shape.lanes, shape.segments, shape.a_segment),
        *(shape.a_group, b_group, way.b.pairs[0].size, -(-way.b.terms // 8) * way.b.lanes),
        *(shape.init_group, shape.out_group, way.b.lanes, shape.out_row),
    )
    results = (None, _pointer(out), ctypes.addressof(codes)) if codes else (_pointer(out), None, None)
    of_a, of_rows = _pointer(a), _pointer(a_rows)
    job = _Job(of_a, *way.pointers, *results, of_rows, *numbers)
    few_job = _Job(of_a, *few.way.pointers, *results, of_rows, *numbers) if few else None
    small = shape.groups * shape.rows * shape.terms * shape.lanes < _SMALL
    _library().redcane_sums(
        ctypes.byref(way.given), ctypes.byref(job),
        ctypes.byref(few.way.given) if few else None, ctypes.byref(few_job) if few_job else None,
        ctypes.c_double(few.share if few else 0.0),
        ctypes.c_int32(LEVELS.index(level)), ctypes.c_int32(1 if small else threads),
    )  # fmt: skip


def requantize(unit: Requantizer, sums: NDArray[np.int32], level: str, threads: int) -> NDArray[np.int16]:
    """Accumulators -> codes of the same shape (docs/numerics.md, Requantisation)."""
    sums = np.ascontiguousarray(sums)
    out = np.empty(sums.shape, np.int16)
    numbers = (ctypes.c_int64(sums.size), ctypes.c_int32(LEVELS.index(level)), ctypes.c_int32(threads))
    _library().redcane_requantize(ctypes.byref(_requantizer(unit)), _pointer(sums), _pointer(out), *numbers)
    return out


def bytes_of(
    codes: NDArray[np.int16], threads: int, same: Bytes | None = None, pad: int = 0, zero: int = 0
) -> Bytes:
    """Bytes of operand a's codes (N, H, W, C), with `pad` rows and columns of `zero` around: (N, H + 2 pad, ...).

    Each byte is what `same` (256,) has for it, if that is given.
    """
    codes = np.ascontiguousarray(codes)
    n, height, width, channels = codes.shape
    out = np.empty((n, height + 2 * pad, width + 2 * pad, channels), np.uint8)
    numbers = map(ctypes.c_int64, (n, height, width * channels, pad, pad * channels))
    given = None if same is None else _pointer(same)
    _library().redcane_a(
        _pointer(codes), _pointer(out), *numbers, ctypes.c_uint8(zero), given, ctypes.c_int32(threads)
    )  # fmt: skip
    return out


def softmax(layer: Routed, logits: NDArray[np.int16], threads: int) -> NDArray[np.int16]:
    """Coupling coefficients (N, J, I) of logits (N, J, I) (docs/numerics.md, Softmax)."""
    logits = np.ascontiguousarray(logits)
    out, table = np.empty_like(logits), np.ascontiguousarray(layer.exp_table, np.uint16)
    shape, one = map(ctypes.c_int64, logits.shape), ctypes.c_int64(layer.weighted_sum.a.hi)
    _library().redcane_softmax(_pointer(logits), _pointer(out), *shape, _pointer(table), one, ctypes.c_int32(threads))
    return out


def _requantizer(unit: Requantizer) -> _Requantizer:
    return _Requantizer(unit.multiplier, unit.shift, unit.zero_point, unit.lo, unit.hi, unit.floats)


def squash(unit: Squash, codes: NDArray[np.int16], threads: int) -> NDArray[np.int16]:
    """`float` codes (..., D) -> codes of the squashed capsules (docs/numerics.md, Squash)."""
    codes = np.ascontiguousarray(codes)
    dim, out = codes.shape[-1], np.empty_like(codes)
    constants = map(ctypes.c_int64, (unit.shift, unit.out.zero_point, unit.out.lo, unit.out.hi))
    _library().redcane_squash(
        _pointer(codes), _pointer(out), ctypes.c_int64(codes.size // dim), ctypes.c_int64(dim), _pointer(unit.table),
        *constants, ctypes.c_int32(threads),
    )  # fmt: skip
    return out


def _pointer(array: NDArray[Any]) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)
