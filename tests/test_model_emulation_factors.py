"""Integer factors of tables: they are the table, in the bits that were asked for, and as few as its rank."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.emulation import factors
from model.emulation.factors import factorise
from model.emulation.terms import exact_terms, term_table
from model.qnetwork import Coding, Product, Requantizer

SIGNED, UNSIGNED = Coding("signed", 1.0), Coding("unsigned", 1.0)
UNIT = Requantizer(2**15, 16, 0, -127, 127)
RANKS = {  # of the errors
    "1JFF": 0, "Y48": 1, "1446": 1, "JQQ": 3, "125K": 4, "17C8": 4, "17QU": 4, "EXZ": 4, "13QR": 5, "18DU": 6,
    "2P7": 6, "GS2": 7, "7C1": 8, "150Q": 9, "CK5": 9, "14VP": 11, "QJD": 11, "KEM": 15, "JV3": 17, "FTA": 18,
    "17KS": 19, "96D": 22,
}  # fmt: skip


@given(
    seed=st.integers(0, 2**32 - 1), rank=st.integers(0, 6), bits=st.sampled_from((8, 16)),
    largest=st.sampled_from((1, 40, 3000)), exact=st.booleans(),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_factors_are_the_table(seed: int, rank: int, bits: int, largest: int, exact: bool) -> None:
    rng = np.random.default_rng(seed)
    product = exact_terms(Product("affine", *(Coding("affine", 1.0, 9),) * 2, SIGNED, UNIT, "drawn"))
    u, v = rng.integers(-largest, largest + 1, (rank, 256)), rng.integers(-30, 31, (rank, 256))
    terms = (u.T @ v + exact * product + rng.integers(-99, 99, 256) + rng.integers(-99, 99, (256, 1))).astype(np.int32)
    found = factorise(terms, product, bits, 64)
    assert found is not None
    np.testing.assert_array_equal(found.terms(), terms)
    for vectors in (found.u, found.v):
        assert vectors.min(initial=0) >= -(2 ** (bits - 1)) and vectors.max(initial=0) < 2 ** (bits - 1)
    if bits == 16:
        assert found.rank <= rank + exact
    few = factorise(terms, product, bits, max(0, found.rank - 1))
    assert few is None or found.rank == 0


@pytest.mark.parametrize("most", [64, 255])
@pytest.mark.parametrize(
    "product",
    [Product("sign-magnitude", UNSIGNED, SIGNED, SIGNED, UNIT, "wild", 1),
     Product("affine", Coding("affine", 1.0, 99), Coding("affine", 1.0, 7), SIGNED, UNIT, "wild")],
    ids=["sign-magnitude", "affine"],
)  # fmt: skip
def test_a_table_without_structure_has_none(product: Product, most: int) -> None:
    """In a second: to reduce its lattice would take minutes."""
    table = np.random.default_rng(0).integers(0, 65536, (256, 256)).astype(np.uint16)
    assert factorise(term_table(product, table), exact_terms(product), 8, most) is None


@pytest.mark.parametrize("name", RANKS)
def test_real_multipliers_have_as_many_as_their_errors_rank(name: str) -> None:
    file = Path(os.environ.get("REDCANE_DATA") or ".") / "evoapprox" / "tables-v1.0.npz"
    if not file.is_file():
        pytest.skip("EvoApproxLib's tables are not in $REDCANE_DATA")
    with np.load(file, allow_pickle=False) as arrays:
        table = arrays[f"mul8u_{name}"]
    product = Product("affine", UNSIGNED, UNSIGNED, SIGNED, UNIT, name)
    terms, exact = term_table(product, table), exact_terms(product)
    wide, narrow = factorise(terms, exact, 16, 64), factorise(terms, exact, 8, 64)
    assert wide is not None and narrow is not None
    assert wide.rank <= RANKS[name] + 1 and narrow.rank <= 2 * RANKS[name] + 2
    for found in (wide, narrow):
        np.testing.assert_array_equal(found.terms(), terms)


def test_all_zero_points_share_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.outer(np.arange(256), np.arange(256)).astype(np.uint16) & np.uint16(0xFF00)
    searched: list[bytes] = []
    lattice = factors._lattice
    monkeypatch.setattr(factors, "_lattice", lambda *of: searched.append(of[0].tobytes()) or lattice(*of))
    for a, b in ((0, 0), (100, 0), (3, 255), (77, 120)):
        product = Product("affine", Coding("affine", 1.0, a), Coding("affine", 1.0, b), SIGNED, UNIT, "cut")
        terms = term_table(product, table)
        found = factorise(terms, exact_terms(product), 8, 255)
        assert found is not None
        np.testing.assert_array_equal(found.terms(), terms)
    assert len(searched) <= 3, "the terms, the exact ones, the errors, once"
