"""Error profiles: the error of one multiplication, and of sums of 9 and 81, and whether it is like a Gaussian.

ReD-CaNe paper, Sec. III-B and Fig. 6: a 3 x 3 kernel adds up 9 products and a 9 x 9 kernel 81. The error here is the
paper's Eq. 2, P' - P. A profile counts as *Gaussian-like* when |skew| < 1 and |excess kurtosis| < 2; the
Kolmogorov-Smirnov distance to the fitted Gaussian is told beside it, since the paper does not say by which rule it
counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats  # type: ignore[import-untyped]  # it has no stubs

from model.errors import RedcaneError
from model.multipliers.error_figures import products_and_errors
from model.multipliers.product_table import Table

TERMS = (1, 9, 81)
SAMPLES = 100_000
SKEW_LIMIT = 1.0
KURTOSIS_LIMIT = 2.0

# Table IV of the paper: NA and NM with uniform operands, and with the operands of its DeepCaps on CIFAR-10.
TABLE_IV: dict[str, tuple[float, float, float, float]] = {
    "mul8u_1JFF": (0.0000, 0.0000, 0.0000, 0.0000),
    "mul8u_14VP": (0.0000, 0.0001, 0.0000, 0.0001),
    "mul8u_GS2": (0.0004, 0.0017, 0.0001, 0.0013),
    "mul8u_CK5": (0.0000, 0.0002, 0.0000, 0.0002),
    "mul8u_7C1": (0.0011, 0.0033, 0.0007, 0.0026),
    "mul8u_96D": (0.0035, 0.0077, 0.0020, 0.0051),
    "mul8u_2HH": (-0.0001, 0.0007, -0.0001, 0.0007),
    "mul8u_NGR": (0.0001, 0.0008, 0.0002, 0.0009),
    "mul8u_19DB": (0.0010, 0.0019, 0.0010, 0.0021),
    "mul8u_DM1": (0.0003, 0.0025, 0.0005, 0.0025),
    "mul8u_12N4": (0.0018, 0.0054, 0.0019, 0.0056),
    "mul8u_1AGV": (0.0027, 0.0080, 0.0026, 0.0117),
    "mul8u_YX7": (0.0484, 0.0741, 0.0268, 0.0347),
    "mul8u_JV3": (0.0021, 0.0267, -0.0028, 0.0301),
    "mul8u_QKX": (0.0509, 0.0736, 0.0293, 0.0350),
}


@dataclass(frozen=True)
class ErrorProfile:
    """The error of a sum of `terms` products over samples of operands; a Gaussian of this mean and deviation is its
    fit.
    """

    terms: int
    samples: int
    mean: float
    deviation: float
    skew: float
    excess_kurtosis: float
    ks_distance: float  # largest distance between the distribution and its fit, 0 ... 1

    @property
    def gaussian_like(self) -> bool:
        """The rule of this module; an error that is always the same is no Gaussian."""
        return self.deviation > 0 and abs(self.skew) < SKEW_LIMIT and abs(self.excess_kurtosis) < KURTOSIS_LIMIT


def sample_errors(
    table: Table,
    terms: int,
    samples: int = SAMPLES,
    seed: int = 0,
    weights: ArrayLike | None = None,
) -> NDArray[np.int64]:
    """Errors P' - P of `samples` sums of `terms` products of a table, [256, 256] as [a, b].

    Operand pairs are drawn uniformly, or as often as `weights` [256, 256] say. Raises RedcaneError for less than one
    term, fewer than eight samples, or weights that are no distribution.
    """
    if terms < 1 or samples < 8:
        raise RedcaneError("an error profile takes at least one term and eight samples")
    random = np.random.default_rng(seed)
    errors = -products_and_errors(table)[1].reshape(-1)
    if weights is None:
        return errors[random.integers(0, 65536, (terms, samples))].sum(axis=0)
    share = np.asarray(weights, np.float64).reshape(-1)
    if share.shape != (65536,) or not np.isfinite(share).all() or (share < 0).any() or share.sum() <= 0:
        raise RedcaneError("operand weights should be 256 x 256 counts that are not all zero")
    return errors[random.choice(65536, (terms, samples), p=share / share.sum())].sum(axis=0)


def error_profile(sums: NDArray[np.int64], terms: int) -> ErrorProfile:
    """The profile of sampled errors (`sample_errors`) of sums of `terms` products."""
    samples = len(sums)
    mean, deviation = float(sums.mean()), float(sums.std())
    if deviation == 0:
        return ErrorProfile(terms, samples, mean, 0.0, 0.0, 0.0, 1.0)
    # Errors are whole numbers with ties: the distance is taken on both sides of each step.
    values, counts = np.unique(sums, return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)[:-1]]) / samples
    above = np.cumsum(counts) / samples
    fit = stats.norm.cdf(values, mean, deviation)
    distance = float(np.maximum(np.abs(fit - below), np.abs(fit - above)).max())
    skew, kurtosis = float(stats.skew(sums)), float(stats.kurtosis(sums))
    return ErrorProfile(terms, samples, mean, deviation, skew, kurtosis, distance)

