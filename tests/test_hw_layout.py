"""The layout: what lives at the same time never shares a byte, and what is given back is used again."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hw.layout import Layout
from hw.parameters import MultiplierKind, Parameters
from hw.program import Region
from model.qnetwork import Coding

CODING = Coding("signed", 1.0)


def layout(batch: int = 1) -> Layout:
    return Layout(Parameters((MultiplierKind("m", "m"),), batch=batch))


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 9)), min_size=1), st.integers(1, 3))
def test_places_do_not_overlap(wishes: list[tuple[int, int]], batch: int) -> None:
    """Places of these sizes, each after one of those that there are (which, where there are so many) was given back."""
    places = layout(batch)
    alive: list[Region] = []
    for size, leaving in wishes:
        if leaving < len(alive):
            places.release(alive.pop(leaving))
        region = places.place((size,), CODING)
        assert region.base % 4 == 0 and region.total == batch * size
        assert region.base + region.total <= places.chip.most
        for other in alive:
            assert other.base + other.total <= region.base or region.base + region.total <= other.base
        alive.append(region)


def test_a_gap_is_used_again() -> None:
    places = layout()
    first, _ = places.place((10,), CODING), places.place((10,), CODING)
    places.release(first)
    assert places.place((13,), CODING).base == 24  # it does not fit
    assert places.place((12,), CODING).base == 0
    assert places.chip.most == 40


def test_equal_tables_and_zero_biases_take_no_room() -> None:
    places = layout()
    table = np.arange(512, dtype=np.uint16)
    assert [places.squash_table(t) for t in (table, table + 1, table.copy())] == [0, 1, 0]
    assert places.biases(np.zeros((2, 4), np.int32)) == {"has_bias": 0}
    assert places.biases(np.ones((2, 4), np.int32)) == {"has_bias": 1, "bias_base": 0}
    assert (places.squash_pages, places.exp_pages, places.bias_words) == (2, 1, 2)
