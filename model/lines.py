"""What a multiplier's products with the codes of weights are, over the operands that the terms of a sum meet: lines.

The products with one code lie about a line, with a slope that is not the code, an offset that is not zero, and noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.emulation.terms import term_table
from model.multipliers.product_table import Table
from model.qunits import Codes, Coding, Product
from model.rounding import carried, second_moments

SHARED = 0.01
"""How much the operands of all terms together count in one term's lines: what few windows tell is not trusted."""

Reals = NDArray[np.float64]


@dataclass(frozen=True)
class Lines:
    """The lines of a multiplier: slope, mean product and noise about the line, in units of codes, of each term (K) and
    code (W); the grid on which weights are rounded.
    """

    slopes: Reals  # (K, W), or (1, W) for all terms
    products: Reals  # likewise
    noise: Reals  # likewise; mean squared
    spread: Reals  # (K,): of what is read, by which an error of a slope counts
    lowest: int  # of the codes

    def best(self, term: int, weights: Reals, left: float) -> tuple[Codes, Reals]:
        """See model.rounding.Grid. Those whose slope's error and noise leave least of the sums' squared error; of
        equals, the smallest in magnitude.
        """
        chosen = self._by_magnitude[self._errors(term, weights, left).argmin(axis=1)]
        return (chosen + self.lowest).astype(np.int16), self.slopes[self._row(term), chosen]

    def least(self, term: int, weights: Reals, left: float) -> float:
        """The mean over weights (O,) of what the best codes leave of the sums' squared error."""
        least = self._errors(term, weights, left).min(axis=1) + left * weights**2
        return float(least.clip(0).mean())

    def _row(self, term: int) -> int:
        return min(term, len(self.slopes) - 1)

    @cached_property
    def _by_magnitude(self) -> NDArray[np.intp]:
        """The codes, as places in their order, by growing magnitude."""
        return np.argsort(np.abs(np.arange(self.slopes.shape[1]) + self.lowest), kind="stable")

    def _errors(self, term: int, weights: Reals, left: float) -> Reals:
        """left (weight - slope)^2 + noise of weights (O,) and the codes by magnitude, less what all codes of a weight
        have in common: as few passes over (O, W) numbers as can be, for most of the time of a fit goes here.
        """
        slopes, noise = (of[self._row(term), self._by_magnitude] for of in (self.slopes, self.noise))
        errors: Reals = np.multiply.outer(weights, -2 * left * slopes)
        errors += left * slopes**2 + noise
        return errors

    def means(self, codes: Codes) -> Reals:
        """The mean products (O, K) with weights of these codes (O, K)."""
        return self.products[np.arange(codes.shape[1]), codes - self.lowest]


class Terms:
    """What K terms of a sum read, in N windows: values are codes less the zero point."""

    def __init__(self, counts: NDArray[np.int64], a: Coding, upper: Reals | None = None) -> None:
        """`counts` (K, V) tells how often each value is read, from the lowest code's; `upper` is that of
        model.rounding.compensated.
        """
        self._counts, self.upper = counts, upper
        self._values = np.arange(a.lo, a.hi + 1, dtype=np.float64) - a.zero_point
        self.means: Reals = counts @ self._values / counts.sum(axis=1)

    @classmethod
    def of_windows(cls, read: Iterable[Tensor], a: Coding, offsets: bool) -> Terms:
        """Of windows (N, K); with `offsets` what they have in common makes no error."""
        lowest, count = a.lo - a.zero_point, a.hi - a.lo + 1
        counts = np.zeros(0, np.int64)

        def counted() -> Iterator[Tensor]:
            nonlocal counts
            for some in read:
                terms = some.shape[1]
                places = some.numpy().astype(np.int64) - lowest + np.arange(terms) * count
                found = np.bincount(places.reshape(-1), minlength=terms * count)
                counts = counts + found if len(counts) else found
                yield some

        moments = second_moments(counted())
        found = cls(counts.reshape(-1, count), a)
        found.upper = carried(moments - np.outer(found.means, found.means) if offsets else moments)
        return found

    @classmethod
    def together(cls, read: Codes, a: Coding) -> Terms:
        """Of terms that all read these codes, less the zero point."""
        values = read.reshape(-1).astype(np.int64) - (a.lo - a.zero_point)
        return cls(np.bincount(values, minlength=a.hi - a.lo + 1)[None], a)

    def lines(self, product: Product, table: Table, offsets: bool) -> Lines:
        """The lines of a multiplier in a product; without `offsets`, through zero."""
        a, b = product.a, product.b
        codes = np.arange(b.lo, b.hi + 1)
        terms = term_table(product, table)[np.ix_(np.arange(a.lo, a.hi + 1) & 255, codes & 255)] / product.unit
        own, every = self._counts / self._counts.sum(axis=1, keepdims=True), self._counts.sum(axis=0)
        shares = (own + SHARED * every / every.sum()) / (1 + SHARED)  # how often each value is read (K, V)
        both, spread = (shares * self._values) @ terms, shares @ self._values**2
        if offsets:
            first = shares @ self._values
            both, spread = both - first[:, None] * (shares @ terms), spread - first**2
        slopes = both / np.where(spread > 0, spread, np.inf)[:, None]
        noise = shares @ terms**2 - slopes**2 * spread[:, None] - ((shares @ terms) ** 2 if offsets else 0)
        return Lines(slopes, own @ terms, noise.clip(0), spread, b.lo)


def common_gain(weights: list[Reals], lines: list[Lines], b: Coding) -> float:
    """What slopes have in common: by what they multiply weights (O, K), in units of codes, in the sense of least
    squares.
    """
    both = power = 0.0
    for part, of in zip(weights, lines, strict=True):
        values = np.clip(np.floor(part + 0.5).astype(np.int64), b.lo - b.zero_point, b.hi - b.zero_point)
        terms = np.minimum(np.arange(part.shape[1]), len(of.slopes) - 1)
        slopes = of.slopes[terms, values + b.zero_point - of.lowest]
        both += float((of.spread[terms] * values * slopes).sum())
        power += float((of.spread[terms] * values * values).sum())
    return both / power if power else 0.0
