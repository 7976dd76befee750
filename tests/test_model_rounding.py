"""Weights rounded for their sums: second moments against a plain count, errors against those of the nearest codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.qunits import Coding
from model.rounding import WINDOWS, EvenGrid, carried, compensated, rounded_kernel, second_moments, windows

SIGNED, AFFINE = Coding("signed", 0.01), Coding("affine", 0.01, 90)


def correlated(rows: int, terms: int, rng: np.random.Generator) -> np.ndarray:
    """Whole numbers from 0 to 255, neighbours close to each other, as pixels are."""
    walk = rng.normal(0, 8, (rows, terms)).cumsum(axis=1) + rng.uniform(40, 215, (rows, 1))
    return np.clip(np.round(walk), 0, 255)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_moments_are_those_of_all_windows(data: st.DataObject) -> None:
    n, channels, stride, padding = (data.draw(st.integers(*of)) for of in ((1, 3), (1, 3), (1, 2), (0, 2)))
    kernel = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    height, width = data.draw(st.integers(3, 6)), data.draw(st.integers(3, 6))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    values = rng.choice([-255, -1, 0, 7, 255], (n, channels, height, width))
    padded = np.pad(values, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    total, count = 0, 0
    for y in range(0, padded.shape[2] - kernel[0] + 1, stride):
        for x in range(0, padded.shape[3] - kernel[1] + 1, stride):
            rows = padded[:, :, y : y + kernel[0], x : x + kernel[1]].reshape(n, -1)
            total, count = total + rows.T @ rows, count + n
    np.testing.assert_array_equal(second_moments(windows(values, kernel, stride, padding)), total / count)


def test_moments_of_many_windows_are_exact_on_any_number_of_threads() -> None:
    values = np.random.default_rng(0).choice([0, 254, 255], (700, 2, 8, 8))  # more windows than are looked at
    assert WINDOWS < 700 * 36
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(second_moments(windows(values, (3, 3), 1, 0)))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(*found)
    every = np.lib.stride_tricks.sliding_window_view(values, (3, 3), axis=(2, 3)).transpose(0, 2, 3, 1, 4, 5)
    rows = every.reshape(-1, 18).astype(np.int64)
    assert np.abs(found[0] / (rows.T @ rows / len(rows)) - 1).max() < 0.02


@pytest.mark.parametrize(("images", "side"), [(700, 10), (2048, 28), (164, 34)])
def test_windows_of_every_place_are_looked_at(images: int, side: int) -> None:
    """Alike often, however the places of an image and the windows that are left out divide each other."""
    places = np.arange((side - 2) ** 2).reshape(1, 1, side - 2, side - 2) % 251
    maps = np.repeat(places.astype(np.int16), images, axis=0)
    seen = torch.cat(list(windows(maps, (1, 1), 1, 0))).numpy()
    assert WINDOWS / 2 < len(seen) <= WINDOWS * 1.01
    share = np.bincount(seen.astype(np.int64).reshape(-1), minlength=251) / len(seen)
    np.testing.assert_allclose(share, np.bincount(places.reshape(-1), minlength=251) / places.size, atol=0.002)


@pytest.mark.parametrize("coding", [SIGNED, AFFINE])
def test_sums_of_what_goes_together_have_far_less_error(coding: Coding) -> None:
    rng = np.random.default_rng(1)
    x, unseen = correlated(4000, 100, rng), correlated(2000, 100, rng)
    weights = rng.normal(0, 0.3, (16, 100))
    errors = []
    for codes in (coding.encode(weights), compensated(weights, EvenGrid(coding), carried(x.T @ x / len(x)))):
        assert codes.dtype == np.int16 and codes.min() >= coding.lo and codes.max() <= coding.hi
        errors.append(np.sqrt((((coding.decode(codes) - weights) @ unseen.T) ** 2).mean()))
    assert errors[1] < errors[0] / 4


def test_what_is_unrelated_is_rounded_to_the_nearest_code() -> None:
    weights = np.random.default_rng(2).normal(0, 0.5, (8, 130))
    for coding in (SIGNED, AFFINE):
        for moments in (np.eye(130), np.diag(np.arange(130.0)), np.zeros((130, 130))):
            codes = compensated(weights, EvenGrid(coding), carried(moments))
            np.testing.assert_array_equal(codes, coding.encode(weights))


def test_what_saturates_is_made_up_for() -> None:
    x = correlated(3000, 12, np.random.default_rng(3))
    weights = np.full((1, 12), 0.5)
    weights[0, 5] = 2.0  # of at most 1.27
    codes = compensated(weights, EvenGrid(SIGNED), carried(x.T @ x / len(x)))
    assert codes[0, 5] == 127 and codes[0, 6:].sum() > 50 * 6 + 50, "those to come take over"
    nearest, made_up = (np.abs((SIGNED.decode(c) - weights) @ x.T).mean() for c in (SIGNED.encode(weights), codes))
    assert made_up < nearest / 4


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_kernels_of_any_shape(data: st.DataObject) -> None:
    """Codes of the kernel's shape, within a few steps; parts of a sum beyond TERMS are rounded by themselves."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    out, channels, edge = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 140)), data.draw(st.integers(1, 3))
    stride, padding = data.draw(st.integers(1, 2)), data.draw(st.integers(0, 1))
    weight = rng.normal(0, 0.3, (out, channels, edge, edge))
    values = rng.integers(-127, 128, (data.draw(st.integers(1, 3)), channels, 4, 5))
    codes = rounded_kernel(weight, SIGNED, values, stride, padding)
    assert codes.shape == weight.shape and codes.dtype == np.int16 and np.abs(codes).max() <= 127
    assert np.abs(codes - SIGNED.encode(weight)).mean() < 20
