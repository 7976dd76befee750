"""The error of an approximate multiplier as numbers, for uniform operands or for those that a layer really sees.

With P = a * b (of two's complement numbers for a table of type int16) and P' the approximate product, the noise
magnitude and average of the ReD-CaNe paper (Sec. III-B) are NM = std(P - P') / R and NA = mean(P - P') / R with
R = 65535. Its Eq. 2 writes the other sign for NA; this one and this R are what its Table IV holds. NM is the deviation
about the mean, not about zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model.errors import RedcaneError
from model.multipliers.product_table import Table, exact_table, is_signed

RANGE = 65535
"""R, the range of a 16-bit product."""

EXACT = exact_table(signed=False).astype(np.int64)
"""The exact products of unsigned operands, int64 [256, 256], indexed [a, b]."""


@dataclass(frozen=True)
class ErrorFigures:
    """Error figures over a distribution of operands; absolute ones are in units of the product's last bit."""

    na: float
    """Noise average, mean(P - P') / 65535; positive where products come out too small."""
    nm: float
    """Noise magnitude, standard deviation of P - P' about its mean, over 65535."""
    mae: float
    """Mean absolute error."""
    wce: int
    """Worst-case error: the largest |P - P'| of the operand pairs that occur."""
    ep: float
    """Error probability, 0 to 1."""
    mre: float
    """Mean relative error |P - P'| / |P| over the pairs with P other than 0, as EvoApproxLib states it."""

    @property
    def mae_percent(self) -> float:
        """MAE in percent of R + 1 = 65536, as EvoApproxLib states it."""
        return 100 * self.mae / (RANGE + 1)

    @property
    def wce_percent(self) -> float:
        """WCE in percent of 65536."""
        return 100 * self.wce / (RANGE + 1)

    @property
    def ep_percent(self) -> float:
        """EP in percent."""
        return 100 * self.ep


def joint_weights(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Weights [256, 256] of the pairs of two independent operands from the weights [256] of each."""
    return np.multiply.outer(_weights(a, (256,)), _weights(b, (256,)))


def products_and_errors(table: Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """P and P - P' of a product table, int64 [256, 256]."""
    exact = exact_table(is_signed(table)).astype(np.int64)
    return exact, exact - table.astype(np.int64)


def error_figures(table: Table, weights: ArrayLike | None = None, negated: ArrayLike | None = None) -> ErrorFigures:
    """The error figures of a product table, [256, 256] as [a, b].

    `weights` [256, 256] say how often each operand pair occurs (counts will do); without them all occur alike. In the
    sign-magnitude format `weights` count the pairs whose product is added and `negated` those whose product is
    subtracted: the error of the latter has the other sign, which NA and NM see. Raises RedcaneError for weights of
    another shape, negative or not finite ones, and for weights that are all zero.
    """
    exact, error = products_and_errors(table)
    added = np.ones((256, 256)) if weights is None else _weights(weights, (256, 256))
    subtracted = np.zeros((256, 256)) if negated is None else _weights(negated, (256, 256))
    both = added + subtracted
    total = both.sum()
    if not 0 < total < np.inf:
        raise RedcaneError("the operand weights are all zero or too large to add up: count some operands first")
    mean = float(((added - subtracted) * error).sum() / total)
    deviation = added * np.square(error - mean) + subtracted * np.square(error + mean)
    magnitude = np.abs(error)
    relative = np.where(exact != 0, magnitude / np.maximum(np.abs(exact), 1), 0)
    return ErrorFigures(
        na=mean / RANGE,
        nm=float(np.sqrt(deviation.sum() / total)) / RANGE,
        mae=float((both * magnitude).sum() / total),
        wce=int(magnitude[both > 0].max()),
        ep=float(both[error != 0].sum() / total),
        mre=float((both * relative).sum() / max(both[exact != 0].sum(), np.finfo(float).tiny)),
    )


def _weights(weights: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float64]:
    array = np.asarray(weights, dtype=np.float64)
    if array.shape != shape:
        raise RedcaneError(f"operand weights have the shape {list(array.shape)} instead of {list(shape)}")
    if not np.isfinite(array).all() or (array < 0).any():
        raise RedcaneError("operand weights must be finite and not negative")
    return array
