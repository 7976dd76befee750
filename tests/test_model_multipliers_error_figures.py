"""Error figures against their definitions, the paper's Table IV and the published figures."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import RedcaneError
from model.multipliers.error_figures import EXACT, error_figures, joint_weights
from model.multipliers.product_table import table_digest

# NA and NM for uniform operands, Table IV of the paper.
TABLE_IV = {
    "1JFF": (0.0000, 0.0000), "14VP": (0.0000, 0.0001), "GS2": (0.0004, 0.0017), "CK5": (0.0000, 0.0002),
    "7C1": (0.0011, 0.0033), "96D": (0.0035, 0.0077), "2HH": (-0.0001, 0.0007), "NGR": (0.0001, 0.0008),
    "19DB": (0.0010, 0.0019), "DM1": (0.0003, 0.0025), "12N4": (0.0018, 0.0054), "1AGV": (0.0027, 0.0080),
    "YX7": (0.0484, 0.0741), "JV3": (0.0021, 0.0267), "QKX": (0.0509, 0.0736),
}


@pytest.fixture(scope="module")
def evoapprox() -> Path:
    folder = Path(os.environ.get("REDCANE_DATA", "")) / "evoapprox"
    if not os.environ.get("REDCANE_DATA") or not (folder / "tables-v1.0.npz").is_file():
        pytest.skip("EvoApproxLib's tables are not at hand: $REDCANE_DATA/evoapprox/tables-v1.0.npz")
    return folder


def test_table_iv_of_the_paper_to_four_decimals(evoapprox: Path) -> None:
    with np.load(evoapprox / "tables-v1.0.npz", allow_pickle=False) as tables:
        ours = {name: error_figures(tables[f"mul8u_{name}"]) for name in TABLE_IV}
    assert {name: (f"{f.na:.4f}".replace("-0.0000", "0.0000"), f"{f.nm:.4f}") for name, f in ours.items()} == {
        name: (f"{na:.4f}", f"{nm:.4f}") for name, (na, nm) in TABLE_IV.items()}


def test_the_figures_of_all_36_circuits(evoapprox: Path) -> None:
    known = json.loads((evoapprox / "metrics.json").read_text())["circuits"]
    with np.load(evoapprox / "tables-v1.0.npz", allow_pickle=False) as tables:
        assert len(tables.files) == 36
        for name in tables.files:
            ours, theirs = error_figures(tables[name]), known[name]
            assert ours.na == pytest.approx(theirs["NA_paper"], rel=1e-4, abs=1e-9), name
            assert ours.nm == pytest.approx(theirs["NM"], rel=1e-4, abs=1e-9), name
            assert ours.mae == pytest.approx(theirs["mae"], rel=1e-4), name
            assert ours.wce == theirs["wce"], name
            assert ours.ep_percent == pytest.approx(theirs["ep"], abs=1e-3), name
            assert 100 * ours.mre == pytest.approx(theirs["mre_nz"], rel=1e-4), name


def test_the_exact_table_has_no_error() -> None:
    figures = error_figures(EXACT.astype(np.uint16))
    assert (figures.na, figures.nm, figures.mae, figures.wce, figures.ep, figures.mre) == (0, 0, 0, 0, 0, 0)


def test_the_figures_by_hand() -> None:
    table = EXACT.astype(np.uint16)
    table[3, 5] -= 5  # P - P' = 5 of P = 15
    table[0, 9] += 2
    f = error_figures(table)
    assert f.mae == pytest.approx(7 / 65536)
    assert f.na == pytest.approx(3 / 65536 / 65535)
    assert f.nm == pytest.approx(np.sqrt(29 / 65536 - (3 / 65536) ** 2) / 65535)
    assert (f.wce, f.ep) == (5, 2 / 65536)
    assert f.mre == pytest.approx(5 / 15 / (255 * 255))
    assert f.wce_percent == pytest.approx(100 * 5 / 65536)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), pairs=st.integers(1, 200))
def test_weights_are_counts_of_operand_pairs(seed: int, pairs: int) -> None:
    random = np.random.default_rng(seed)
    table = random.integers(0, 65536, (256, 256)).astype(np.uint16)
    a, b = random.integers(0, 256, (2, pairs))
    minus = random.integers(0, 2, pairs).astype(bool)
    counts = np.zeros((2, 256, 256))
    np.add.at(counts, (minus.astype(int), a, b), 1)
    error = np.where(minus, -1, 1) * (a * b - table[a, b].astype(int))

    f = error_figures(table, counts[0], negated=counts[1])
    assert f.na == pytest.approx(error.mean() / 65535)
    assert f.nm == pytest.approx(error.std() / 65535, rel=1e-6, abs=1e-9)
    assert f.mae == pytest.approx(np.abs(error).mean())
    assert f.wce == np.abs(error).max()
    assert f.ep == pytest.approx((error != 0).mean())


def test_marginals_make_joint_weights() -> None:
    a, b = np.arange(256), np.arange(256)[::-1]
    weights = joint_weights(a, b)
    assert weights.shape == (256, 256)
    assert weights[3, 5] == 3 * 250


@pytest.mark.parametrize(("weights", "told"), [
    (np.ones(256), "shape"), (np.zeros((256, 256)), "all zero"), (np.full((256, 256), np.nan), "finite"),
    (-np.ones((256, 256)), "negative"), (np.full((256, 256), 1e308), "too large"),
])
def test_unusable_weights_are_refused(weights: np.ndarray, told: str) -> None:
    with pytest.raises(RedcaneError, match=told), np.errstate(over="ignore"):
        error_figures(EXACT.astype(np.uint16), weights)


def test_the_digest_of_a_table_does_not_depend_on_its_layout() -> None:
    table = (3 * EXACT + np.arange(256)).astype(np.uint16)
    assert table_digest(table) == table_digest(np.asfortranarray(table)) == table_digest(table.astype(">u2"))
    assert table_digest(table) != table_digest(table.T)
