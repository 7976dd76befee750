"""Plans: a product's terms as the compiled kernel sums them fastest. NumPy only.

A plan takes a term of the bytes (a, b) apart, exactly:

    term[a, b] = values[a, b] + row[a] + column[b] + the sum over r of u[r, a] * v[r, b]
                 + differ, where both operands have signs and those of a and b differ

`values` are cut into byte planes that fit a processor's registers and are looked up; the factors are multiplied. The
kernel sums the values, the products and the rows, and counts signs; the columns' sums depend on operand b alone and are
taken once. Where most of what a has is zeros, only the others' terms are looked up: what the values of an `idle` a come
to is known beforehand. All is arithmetic modulo 2^32, hence exact where a sum fits 32 bits.
The same terms have several plans:

- `table`: all is looked up, in one plane or two;
- `error`: an exact product, and what the multiplier errs by is looked up in one plane;
- `factors`: nothing is looked up; an exact multiplier has one factor, several real ones have few.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from model.emulation.factors import Factors, factorise
from model.emulation.terms import code_values, exact_terms
from model.errors import RedcaneError
from model.qnetwork import Product

FACTOR_BITS = 16  # of a factor in the kernel

Terms = NDArray[np.int32]


@dataclass(frozen=True)
class Plan:
    """One product's terms as the kernel reads them. `folded`: b is sign and magnitude, its sign a complement."""

    values: NDArray[np.uint16]  # (256, 256) [a, b], below 2^(8 planes)
    row: NDArray[np.int32]  # (256,)
    column: NDArray[np.int32]  # (256,), of the byte that the plan wants of b
    planes: NDArray[np.uint8]  # (256, planes, entries)
    folded: bool
    u: NDArray[np.int16]  # (R, 256), of the byte of a
    v: NDArray[np.int16]  # (R, 256), of the byte of b in two's complement
    differ: int = 0
    idle: int = -1
    """The byte of a's zero, if there are no factors and its values are alike for all b of a sign; else -1."""

    @property
    def shape(self) -> tuple[int, int]:
        """How many planes are looked up, and how many factors multiplied, for a term."""
        return self.planes.shape[1], len(self.u)

    @cached_property
    def turned(self) -> NDArray[np.uint16]:
        """The values [b, a]."""
        return np.ascontiguousarray(self.values.T)


def table_plan(product: Product, terms: Terms) -> Plan:
    """The plan of (256, 256) terms of operand bytes [a, b] (model.emulation.terms.term_table) that only looks up.

    Raises RedcaneError when no byte planes can hold the terms.
    """
    plan = _plan(product, terms.astype(np.int64), None, 2)
    if plan is None:
        raise RedcaneError(f"{product.component}: its terms do not fit the planes of a table")
    return plan


def plans(product: Product, terms: Terms, most: int) -> list[Plan]:
    """Every plan of the terms: `table`, `error` where the errors fit a byte, `factors` where there are at most so many.

    Raises RedcaneError like `table_plan`.
    """
    exact = exact_terms(product)
    found = [table_plan(product, terms)]
    one, several = factorise(exact, exact, FACTOR_BITS, 1), factorise(terms, exact, FACTOR_BITS, most)
    for factors, planes in ((one, 1), (several, 0)):
        if factors is not None and (factors.scale == 1).all():
            plan = _plan(product, terms - factors.terms(), factors, planes)
            found += [] if plan is None else [plan]
    return found


def _plan(product: Product, rest: NDArray[np.int64], factors: Factors | None, most: int) -> Plan | None:
    """The plan of the factors, and of the rest by look-ups in at most so many planes; None where it takes more."""
    folded = product.format == "sign-magnitude" and product.b.kind == "signed"
    row, column, differ = np.zeros(256, np.int64), np.zeros(256, np.int64), 0
    if folded and product.a.kind == "signed":  # -x = ~x + a constant: where signs differ
        a = code_values(product.a)
        magnitudes = rest[np.abs(a), :128]
        column[:], widest = magnitudes.min(), np.ptp(magnitudes)
        values = magnitudes - magnitudes.min()
        top = 2 ** (8 * _bytes(int(widest))) - 1
        values = np.where(a[:, None] < 0, top - values, values)
        values = np.concatenate([values, top - values], axis=1)
        differ = int(-2 * magnitudes.min() - top)
    elif folded:  # where b is negative
        lowest, widest = rest[:, :128].min(), np.ptp(rest[:, :128])
        values = rest[:, :128] - lowest
        top = 2 ** (8 * _bytes(int(widest))) - 1
        values = np.concatenate([values, top - values], axis=1)
        column[:128], column[128:] = lowest, -lowest - top
    else:
        slopes = [slope * np.arange(256) for slope in {0, -product.a.zero_point}]
        column = min(slopes, key=lambda column: np.ptp(rest - column, axis=1).max())
        row = (rest - column).min(axis=1)
        values = rest - column - row[:, None]
        widest = values.max()
    count, entries = _bytes(int(widest)), 128 if folded else 256
    if count > most:
        return None
    if factors is not None:
        row, column = row + factors.row, column + factors.column[_two_s_complement(folded)]
    zero = product.a.zero_point
    idle = factors is None and np.ptp(values[zero, :entries]) == 0
    planes = np.stack([(values[:, :entries] >> 8 * i) & 255 for i in range(2)], axis=1).astype(np.uint8)[:, :count]
    none = np.zeros((0, 256), np.int64)
    return Plan(
        values.astype(np.uint16), row.astype(np.int32), column.astype(np.int32),
        np.ascontiguousarray(planes), folded,
        (none if factors is None else factors.u).astype(np.int16),
        (none if factors is None else factors.v).astype(np.int16),
        differ, zero if idle else -1,
    )  # fmt: skip


def _bytes(largest: int) -> int:
    """How many bytes hold numbers up to the largest."""
    return -(-largest.bit_length() // 8)


def _two_s_complement(folded: bool) -> NDArray[np.int64]:
    """The byte in two's complement of every byte that a plan wants of b."""
    byte = np.arange(256)
    return np.where(byte < 128, byte, (128 - byte) & 255) if folded else byte
