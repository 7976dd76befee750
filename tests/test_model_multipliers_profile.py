"""Error profiles: known distributions give known figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model.errors import RedcaneError
from model.multipliers.error_figures import EXACT, RANGE, error_figures
from model.multipliers.library import load_library
from model.multipliers.profile import error_profile, sample_errors
from model.multipliers.profile_plots import plot_noise, plot_operands, plot_profile

TABLE = load_library("embedded").components["mul8u_exact"].table


def test_the_exact_multiplier_has_no_profile() -> None:
    found = error_profile(sample_errors(TABLE, 9), 9)
    assert (found.mean, found.deviation) == (0, 0)
    assert not found.gaussian_like


def test_mean_and_deviation_grow_as_sums_do() -> None:
    truncated = (EXACT & ~0xFF).astype(np.uint16)
    figures = error_figures(truncated)
    for terms in (1, 9, 81):
        found = error_profile(sample_errors(truncated, terms), terms)
        assert found.mean == pytest.approx(-terms * figures.na * RANGE, rel=0.02)
        assert found.deviation == pytest.approx(np.sqrt(terms) * figures.nm * RANGE, rel=0.02)
    assert found.gaussian_like  # the last: a sum of 81
    assert found.ks_distance < 0.01


def test_a_rare_large_error_is_not_gaussian() -> None:
    table = EXACT.astype(np.uint16)
    table[255, 255] = 0
    found = error_profile(sample_errors(table, 1), 1)
    assert found.skew < -10
    assert not found.gaussian_like
    assert found.ks_distance > 0.4


def test_weighted_operands() -> None:
    table = EXACT.astype(np.uint16)
    table[3, 5] += 7
    weights = np.zeros((256, 256))
    weights[3, 5], weights[0, 0] = 1, 3
    sums = sample_errors(table, 4, 20_000, weights=weights)
    assert sums.mean() == pytest.approx(7, rel=0.03)
    assert set(np.unique(sums)) <= {0, 7, 14, 21, 28}


def test_samples_are_repeatable() -> None:
    table = (EXACT & ~0xF).astype(np.uint16)
    assert np.array_equal(sample_errors(table, 9, 100, seed=4), sample_errors(table, 9, 100, seed=4))


@pytest.mark.parametrize("weights", [np.zeros((256, 256)), np.ones((4, 4)), np.full((256, 256), -1.0)])
def test_weights_that_are_none(weights: np.ndarray) -> None:
    with pytest.raises(RedcaneError, match="operand weights"):
        sample_errors(TABLE, 1, 100, weights=weights)


def test_the_plot_is_the_same_every_time(tmp_path: Path) -> None:
    table = (EXACT & ~0xFF).astype(np.uint16)
    errors = {terms: sample_errors(table, terms, 2000) for terms in (1, 9)}
    for name in ("a.svg", "b.svg"):
        plot_profile("cut", errors, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "a.svg").read_text().count("MAC") >= 1


def test_plots_of_operands_and_of_what_they_change(tmp_path: Path) -> None:
    low = np.zeros((256, 256), np.int64)
    low[:16, :4] = 9
    seen = {"all": low, "one": low, "two": low, "never": 0 * low}
    for name, last in (("a", low), ("b", low), ("c", low.T)):
        plot_operands({**seen, "last": last}, tmp_path / f"{name}.svg")
    same, again, exchanged = ((tmp_path / f"{name}.svg").read_bytes() for name in "abc")
    assert same == again != exchanged
    figures = [error_figures(table) for table in ((EXACT & ~0xFF).astype(np.uint16), TABLE)]
    plot_noise(figures, {"one": figures}, tmp_path / "n.svg")
    before = (tmp_path / "n.svg").read_bytes()
    plot_noise(figures, {"one": figures[::-1]}, tmp_path / "n.svg")
    assert (tmp_path / "n.svg").read_bytes() != before
