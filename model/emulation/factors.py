"""A table of terms as a sum of a few products of small integers, exactly: what an integer matrix product can compute.

The errors of approximate multipliers are regular, and often their table has a small rank. Its rows then lie in a
lattice of few dimensions, and a reduced basis of it (Lenstra, Lenstra and Lovasz 1982) has short vectors: integers that
fit the operands of an integer matrix product, where factors in real numbers would have to be rounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import gcd, log2, prod

import flint
import numpy as np
from numpy.typing import NDArray

from model.files import digest

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Factors:
    """term[a, b] = row[a] + column[b] + the sum over r of scale[r] * u[r, a] * v[r, b], for bytes a and b."""

    scale: Integers  # (R,)
    u: Integers  # (R, 256)
    v: Integers  # (R, 256)
    row: Integers  # (256,)
    column: Integers  # (256,)

    def terms(self) -> Integers:
        """What they are factors of (256, 256)."""
        return self.row[:, None] + self.column + (self.scale[:, None] * self.u).T @ self.v

    @property
    def rank(self) -> int:
        """R, the number of products that a term takes."""
        return len(self.scale)


Pieces = list[tuple[int, Integers, Integers]]
"""Scale, u (256,) and v (256,) of products whose sum is a table's terms, but for a function of a and one of b."""

_known: dict[str, Pieces | None] = {}
_MOST_KNOWN = 4096
_QUICK = 64  # dimensions that a lattice of any rows is reduced in within a second or two
_PRIME = 2147483629


def factorise(terms: NDArray[np.int32], exact: NDArray[np.int32], bits: int, most: int) -> Factors | None:
    """Factors of `bits` bits, signed, of terms [a, b] (256, 256); None where there would be more than `most`.

    `exact` are the terms of the exact multiplier: with their product apart the other factors are smaller, most often.
    What was found is kept, by content, while the process lives, and serves terms that differ from these by a function
    of a and one of b alone: those of all zero points.
    """
    inner, of_exact = _inner(terms), _inner(exact)
    key = digest(inner.tobytes() + of_exact.tobytes() + bytes((bits, most)))
    if key not in _known:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[key] = _factorise(inner, of_exact, bits, most)
    pieces = _known[key]
    if pieces is None:
        return None
    scale = np.array([piece[0] for piece in pieces], np.int64)
    u, v = (np.array([piece[i] for piece in pieces], np.int64).reshape(-1, 256) for i in (1, 2))
    rest = terms - (scale[:, None] * u).T @ v
    factors = Factors(scale, u, v, rest[:, 0], rest[0] - rest[0, 0])
    assert np.array_equal(factors.terms(), terms), "the factors are not the table's"
    return factors


def _inner(terms: NDArray[np.int32]) -> Integers:
    """Terms less a function of a and one of b, so that those of byte 0 are zero."""
    wide = terms.astype(np.int64)
    return wide - wide[:1] - wide[:, :1] + wide[0, 0]


def _factorise(terms: Integers, exact: Integers, bits: int, most: int) -> Pieces | None:
    together, alone, errors = (
        _lattice(of, bits, count) for of, count in ((terms, most), (exact, 1), (terms - exact, most - 1))
    )
    candidates = [together, None if alone is None or errors is None else alone + errors]
    split = [[piece for u, v in pairs for piece in _pieces(u, v, bits)] for pairs in candidates if pairs is not None]
    pieces = min(split, key=len, default=None)
    return None if pieces is None or len(pieces) > most else pieces


def _lattice(inner: Integers, bits: int, most: int) -> list[tuple[Integers, Integers]] | None:
    """Pairs (u, v) whose outer products sum to terms that are zero at byte 0, as are the pairs; None if over `most`."""
    rows = np.unique(inner, axis=0)
    matrix = flint.fmpz_mat(rows.tolist())
    rank = matrix.rank()
    if rank > most or (rank > _QUICK and _likely_pieces(rows, rank, bits) > most):
        return None
    reduced = np.array([[int(entry) for entry in row] for row in matrix.lll().tolist()], np.int64)
    basis = reduced[reduced.any(axis=1)]
    coordinates = np.rint(inner @ np.linalg.pinv(basis)).astype(np.int64)
    return list(zip(coordinates.T, basis, strict=True))


def _likely_pieces(rows: Integers, rank: int, bits: int) -> int:
    """How many factors of so many bits the rows of a table may take, by the volume of their lattice.

    A table without structure would keep LLL busy for minutes, to no avail. Reduced vectors are as long as the volume
    tells, to its rank-th root, and the rows' coordinates are what they are longer. The volume divides the determinant
    of any combinations of the rows, in as many independent columns: most likely, it is what two of them have in common.
    """
    entries = [int(entry) % _PRIME for entry in rows.ravel()]
    echelon, _ = flint.nmod_mat(len(rows), rows.shape[1], entries, _PRIME).rref()
    columns = [next(j for j in range(rows.shape[1]) if int(echelon[i, j])) for i in range(rank)]
    rng, volume = np.random.default_rng(0), 0
    for _ in range(2):
        combined = rng.integers(0, 2, (rank, len(rows))) @ rows[:, columns]
        volume = gcd(volume, abs(int(flint.fmpz_mat(combined.tolist()).det())))
    if not volume:  # an unlucky draw tells nothing
        return rank
    length = log2(volume) / rank
    widths = length - log2(rank) / 2, log2(np.abs(rows).max()) - length
    return rank * prod(max(1, round(width / bits)) for width in widths)


def _pieces(u: Integers, v: Integers, bits: int) -> Pieces:
    """The outer product of u and v in factors of so many bits, each with a scale, but for functions of a and b alone.

    A common divisor is taken out of a factor, and a constant off it; one that is still too wide is cut into digits.
    """
    (by_u, u), (by_v, v) = _primitive(u), _primitive(v)
    scale = by_u * by_v
    if scale * int(np.ptp(u)) < 2**bits:  # no scale is simpler
        scale, u = 1, u * scale
    elif scale * int(np.ptp(v)) < 2**bits:
        scale, v = 1, v * scale
    return [(scale * m * n, p, q) for (m, p), (n, q) in product(_digits(u, bits), _digits(v, bits))]


def _primitive(vector: Integers) -> tuple[int, Integers]:
    """The greatest common divisor of a vector, and the vector without it."""
    divisor = max(int(np.gcd.reduce(vector)), 1)
    return divisor, vector // divisor


def _digits(vector: Integers, bits: int) -> list[tuple[int, Integers]]:
    """Signed digits of so many bits with their weights, the least first; their sum is the vector less a constant."""
    top = 2 ** (bits - 1)
    if not _fits(vector, top):
        vector = vector - (vector.max() + vector.min() + 1) // 2
    if _fits(vector, top):
        return [(1, vector)]
    low = (vector + top) % (2 * top) - top
    return [(1, low), *((weight << bits, digit) for weight, digit in _digits((vector - low) >> bits, bits))]


def _fits(vector: Integers, top: int) -> bool:
    return bool(vector.min() >= -top and vector.max() < top)
