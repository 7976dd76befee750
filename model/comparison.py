"""How much accuracy a change of a network costs, and how sure that is: both on the same images, image by image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from model.errors import RedcaneError


@dataclass(frozen=True)
class Loss:
    """What a network loses against another one on the same images."""

    images: int  # that both were measured on
    lost: int  # images that the other classifies right and this one wrong
    gained: int  # the other way round
    bound: float  # percentage points that it loses at most, at the confidence that was asked for

    @property
    def points(self) -> float:
        """Percentage points lost, as measured."""
        return 100 * (self.lost - self.gained) / self.images


def compare(
    before: NDArray[np.bool_], after: NDArray[np.bool_], groups: NDArray[np.int64], confidence: float
) -> Loss:
    """The loss from which images (N,) are classified right `before` and `after`.

    Images of one number in `groups` (N,), an image and its moved copies, count as one draw. The one-sided bound is
    Wald's for paired proportions with one more image on either side (Bonett and Price, "Adjusted Wald confidence
    interval for a difference of binomial proportions based on paired data", 2012), so that a few images without a
    difference prove nothing; at a confidence of 0.5 it is what was measured.

    Raises RedcaneError for a confidence that is not from 0.5 to below 1.
    """
    if not 0.5 <= confidence < 1:
        raise RedcaneError(f"the confidence is {confidence:g}: give a number from 0.5 to below 1")
    difference = before.astype(np.int64) - after
    total, images = int(difference.sum()), len(difference)
    by_group = np.bincount(groups, weights=difference)
    spread = math.sqrt(float(np.square(by_group).sum()) + 2 - total**2 / (images + 2)) / (images + 2)
    bound = total / images + NormalDist().inv_cdf(confidence) * spread
    return Loss(images, int((difference > 0).sum()), int((difference < 0).sum()), 100 * bound)
