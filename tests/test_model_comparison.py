"""The bound on a loss: what it is without doubt, that it covers, and that copies of an image count once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.comparison import compare
from model.errors import RedcaneError

ALONE = np.arange(1000)


def flags(wrong: range) -> np.ndarray:
    right = np.ones(1000, np.bool_)
    right[list(wrong)] = False
    return right


def test_what_is_counted() -> None:
    loss = compare(flags(range(0, 10)), flags(range(4, 30)), ALONE, 0.5)
    assert (loss.images, loss.lost, loss.gained) == (1000, 20, 4)
    assert loss.points == pytest.approx(1.6) and loss.bound == pytest.approx(1.6)


def test_the_bound_grows_with_confidence_and_with_what_changes_both_ways() -> None:
    calm = [compare(flags(range(0)), flags(range(10)), ALONE, c).bound for c in (0.5, 0.8, 0.9, 0.99)]
    assert calm == sorted(calm) and calm[0] == pytest.approx(1.0) and calm[-1] < 2
    lively = compare(flags(range(100, 150)), flags(range(60)), ALONE, 0.9)
    assert lively.points == pytest.approx(1.0) and lively.bound > calm[2] + 0.2
    same = compare(flags(range(5)), flags(range(5)), ALONE, 0.9)
    assert 0 < same.bound < 0.25, "without a difference in 1,000 images there may still be a small one"


def test_a_bound_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    lost, gained = 0.02, 0.012  # chances, so that 0.8 points are lost in truth
    bounds = []
    for _ in range(2000):
        draw = rng.random(1000)
        bounds.append(compare(draw >= gained, (draw < gained) | (draw >= gained + lost), ALONE, 0.9).bound)
    assert 0.88 < np.mean(np.array(bounds) >= 0.8) < 0.93


def test_copies_of_an_image_are_no_more_evidence() -> None:
    before, after = flags(range(0)), flags(range(10))
    alone, copied = (compare(before, after, groups, 0.9).bound for groups in (ALONE, ALONE // 10))
    assert copied > 1 + 2.5 * (alone - 1), "ten images that are lost together are one accident, not ten"


@given(st.integers(0, 2**32), st.integers(1, 50), st.floats(0.5, 0.999))
def test_the_bound_is_a_number_and_not_below_what_was_measured(seed: int, images: int, confidence: float) -> None:
    rng = np.random.default_rng(seed)
    before, after = rng.random((2, images)) < rng.random()
    loss = compare(before, after, rng.integers(0, images, images), confidence)
    assert loss.bound >= loss.points - 1e-9


@pytest.mark.parametrize("confidence", [0.4, 1.0, float("nan")])
def test_a_confidence_that_is_none(confidence: float) -> None:
    with pytest.raises(RedcaneError, match="confidence"):
        compare(flags(range(1)), flags(range(1)), ALONE, confidence)
