"""Multipliers of ORs: what their names promise, what they get right, and that the family is a graded front."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import RedcaneError
from model.multipliers import or_family
from model.multipliers.error_figures import EXACT
from model.multipliers.library import load_library
from model.multipliers.netlist import extract_table

FAMILY = [c for name, c in load_library().components.items() if name.startswith("mul8u_or")]


def test_definition_by_hand() -> None:
    table = or_family.definition("mul8u_or1_a0b0v0")
    assert table[5, 3] == (5 | 5 << 1) and table[255, 255] == 2**15 - 1
    for power in range(8):
        np.testing.assert_array_equal(table[1 << power], EXACT[1 << power])
        np.testing.assert_array_equal(table[:, 1 << power], EXACT[:, 1 << power])
    cut = or_family.definition("mul8u_or1_a2b3v6")
    assert cut[255, 255] == 2**15 - 2**6 and not cut[3].any() and not cut[:, 7].any() and not cut[4, 8]
    two = or_family.definition("mul8u_or2_a0b0v0s0")
    assert two[5, 3] == 5 + 10 and two[5, 0b101] == (5 | 20) and (two >= table).all()
    high = or_family.definition("mul8u_or2_a0b0v0s8")
    assert high[5, 3] == (5 | 10) and high[192, 192] == 192 * 192


@given(st.integers(1, 4), st.integers(0, 7), st.integers(0, 7), st.integers(0, 14), st.integers(0, 14))
@settings(max_examples=12, deadline=None)
def test_every_structure_is_what_its_name_promises(groups: int, a: int, b: int, column: int, adds: int) -> None:
    name = or_family.Structure(groups, a, b, column, adds).component
    table = or_family.definition(name)
    np.testing.assert_array_equal(extract_table(or_family.verilog(name)).table, table)
    assert (table <= EXACT).all() and not table[0].any() and not table[:, 0].any()


@pytest.mark.parametrize("name", [
    "mul8u_e01", "mul8u_or1_a9b0v0", "mul8u_or1_a0b0v15", "mul8u_or1_a0b0v5;", "mul8u_or1_a0b0v0s3", "mul8u_or2_a0b0v0",
    "mul8u_or5_a0b0v0s0",
])  # fmt: skip
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(RedcaneError, match="not a component of this family"):
        or_family.definition(name)


def test_the_embedded_ones_are_what_their_names_promise() -> None:
    for component in FAMILY:
        np.testing.assert_array_equal(component.table, or_family.definition(component.name))
        assert component.verilog == or_family.verilog(component.name)
        assert not component.table[0].any() and not component.table[:, 0].any()


def test_the_family_is_graded() -> None:
    by_cost = sorted(FAMILY, key=lambda c: c.cost.transistors)
    assert by_cost[0].cost.transistors < 60 and by_cost[-1].cost.transistors < 1000 and len(by_cost) > 15
    for deviation in or_family.DEVIATIONS:
        noise = [or_family.noise(c.table, deviation) for c in by_cost]
        assert noise[-1] < 0.04 < 0.2 < noise[0]
    for one, other in combinations(by_cost, 2):  # a dearer one is better at some operands
        assert any(or_family.noise(other.table, d) < or_family.noise(one.table, d) for d in or_family.DEVIATIONS)


def test_a_gain_is_no_noise() -> None:
    assert or_family.noise(EXACT.astype(np.uint16), 32) == 0
    assert or_family.noise((EXACT // 4 * 3).astype(np.uint16), 96) < 0.001
    assert or_family.noise((EXACT >> 13 << 13).astype(np.uint16), 96) > 0.3


@pytest.mark.slow
def test_the_family_is_chosen_again() -> None:
    assert sorted(or_family.select()) == sorted(c.name for c in FAMILY)
