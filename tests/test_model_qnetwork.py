"""Codes, requantisers, squash and softmax tables, and the checks of a quantised network, in the page's own words."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import EXACT, networks

from model.errors import RedcaneError
from model.multipliers.product_table import exact_table
from model.qnetwork import (
    FLOAT_LIMIT,
    MAX_CAPSULE_DIM,
    SQUASH_ENTRIES,
    Coding,
    QConvLayer,
    QNetwork,
    Requantizer,
    Squash,
    exp_table,
    float_index,
    float_intervals,
    port_values,
    significant,
    terms,
)

kinds = st.sampled_from(("unsigned", "signed", "affine"))


@given(kinds, st.floats(1e-6, 1e3), st.integers(0, 255), st.floats(-1e6, 1e6))
def test_encode_rounds_to_nearest_and_saturates(kind: str, scale: float, zero: int, x: float) -> None:
    coding = Coding(kind, scale, zero if kind == "affine" else 0)  # type: ignore[arg-type]  # drawn from the three
    code = int(coding.encode(np.array([x]))[0])
    assert code == min(max(floor(x / scale + 0.5) + coding.zero_point, coding.lo), coding.hi)
    if coding.lo < code < coding.hi:
        assert abs(coding.decode(np.array([code]))[0] - x) <= scale * 0.5000001 + abs(x) * 1e-12


def test_zero_is_a_code() -> None:
    for coding in (Coding("unsigned", 0.1), Coding("signed", 0.1), Coding("affine", 0.1, 77)):
        assert coding.encode(np.zeros(1))[0] == coding.zero_point


@given(st.floats(2.0**-47, 2.0**14, exclude_max=True), st.integers(-(2**31) + 1, 2**31 - 1), st.integers(0, 255), kinds)
def test_requantizer_is_its_formula(ratio: float, acc: int, zero: int, kind: str) -> None:
    out = Coding(kind, 1.0, zero if kind == "affine" else 0)  # type: ignore[arg-type]  # drawn from the three
    unit = Requantizer.for_scale(ratio, out)
    assert 2**15 <= unit.multiplier < 2**16 and 1 <= unit.shift <= 47
    if unit.shift < 47:
        assert abs(unit.multiplier / 2**unit.shift / ratio - 1) <= 2.0**-16
    wanted = floor(Fraction(acc) * Fraction(unit.multiplier, 2**unit.shift) + Fraction(1, 2)) + out.zero_point
    assert unit(np.array([acc]))[0] == min(max(wanted, out.lo), out.hi)
    assert Requantizer.for_scale(ratio, out, relu=True)(np.array([acc]))[0] >= out.zero_point


@pytest.mark.parametrize("ratio", [0.0, -1.0, 2.0**14, float("inf"), float("nan")])
def test_requantizer_out_of_range(ratio: float) -> None:
    with pytest.raises(RedcaneError, match="requantisation"):
        Requantizer.for_scale(ratio, Coding("signed", 1.0))


def test_the_place_of_sums_of_squares_among_floats() -> None:
    ends = 2 ** np.arange(4, 29)[:, None] + np.arange(-40, 40)
    n = np.unique(np.concatenate([np.arange(2**16), ends.reshape(-1), np.arange(2**16, 2**28, 9973)]))
    n = n[(n >= 0) & (n < 2**28)]
    e = np.array([int(v).bit_length() - 1 for v in n])
    wanted = np.where(n < 16, n, (e - 3) * 16 + ((n >> np.maximum(e - 4, 0)) & 15))
    found = float_index(n)
    np.testing.assert_array_equal(found, wanted)
    assert found.max() == SQUASH_ENTRIES - 1 and (np.diff(found) >= 0).all()
    low, high = float_intervals()
    assert ((low[found] <= n) & (n <= high[found])).all()
    assert MAX_CAPSULE_DIM * FLOAT_LIMIT**2 < 2**28


def test_float_codes_are_the_nearest_of_five_significant_bits() -> None:
    every = np.arange(-FLOAT_LIMIT, FLOAT_LIMIT + 1).astype(np.int16)
    held = [v for v in range(FLOAT_LIMIT + 1) if v == (v >> (s := max(0, v.bit_length() - 5))) << s]
    assert len(held) == 128, "a byte of sign and magnitude"
    grid = np.array([-v for v in held[:0:-1]] + held)
    nearest = np.abs(every[:, None].astype(int) - grid).min(axis=1)
    found = significant(every)
    assert np.isin(found, grid).all()
    np.testing.assert_array_equal(np.abs(every.astype(int) - found), nearest)
    np.testing.assert_array_equal(found, -found[::-1])  # ties away from zero: 33 lies between 32 and 34
    assert significant(np.array([33, -33, 63, 1952, 1951], np.int16)).tolist() == [34, -34, 64, 1984, 1920]
    np.testing.assert_array_equal(float_index(np.array(held)), np.arange(128))
    np.testing.assert_array_equal(float_intervals()[0][:128], held)


def test_a_float_coding_covers_small_and_large_values() -> None:
    coding = Coding("float", 0.5)
    values = np.array([0.0, 0.2, 0.3, -7.6, 16.4, 500.0, 991.9, -5000.0])
    assert coding.encode(values).tolist() == [0, 0, 1, -15, 34, 992, 1984, -1984]
    np.testing.assert_array_equal(coding.decode(coding.encode(values))[:4], [0, 0, 0.5, -7.5])


@given(st.floats(2.0**-10, 0.2), st.integers(1, 64), st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_squash_is_close_to_the_real_one(s_in: float, dim: int, seed: int) -> None:
    """4 mantissa bits of |s|^2: the factor is within 1/64 of the real one; rounding v adds half a code."""
    from model.reference import squash

    out = Coding("signed", 1 / 127)
    rng = np.random.default_rng(seed)
    q = significant(rng.integers(-FLOAT_LIMIT, FLOAT_LIMIT + 1, (20, dim)).astype(np.int16) >> rng.integers(0, 8))
    x = s_in * q
    norm = np.sqrt((x**2).sum(axis=1, keepdims=True))
    unit = Squash.for_scales(s_in, out)
    error = np.abs(squash(unit, q) - x * norm / (1 + norm**2) * 127)
    # an entry of G is rounded by a half: up to |q| / 2 / 2^shift codes
    assert (error <= 0.5 + np.abs(q) * (0.5 / 2**unit.shift) + 127 / 64).all()


def test_squash_out_of_range() -> None:
    with pytest.raises(RedcaneError, match="squash"):
        Squash.for_scales(10.0, Coding("signed", 1e-6))


def test_exp_table() -> None:
    table = exp_table(0.05)
    assert table.shape == (256,) and table[0] == 1023
    assert all(abs(int(table[d]) - 1023 * np.exp(-0.05 * d)) <= 0.5 for d in range(256))


@given(networks())
@settings(max_examples=20, deadline=None)
def test_bounds_hold_for_every_operand(network: QNetwork) -> None:
    from model.reference import products

    for _, product, _ in network.products():
        table = network.tables[product.component]
        a, b = (np.arange(c.lo, c.hi + 1, dtype=np.int16) for c in (product.a, product.b))
        found = np.abs(products(product, table, a[:, None], b[None, :])).max()
        assert product.term_bound(table) == found
        assert port_values(product.format, product.a, product.align).max() <= 255


@given(networks())
@settings(max_examples=5, deadline=None)
def test_components_are_exchanged(network: QNetwork) -> None:
    keys = [key for key, _, _ in network.products()]
    assert keys == ["conv1.mac", "primary.mac", "classcaps.votes", "classcaps.weighted_sum", "classcaps.agreement"]
    signed = {key: product.format == "twos-complement" for key, product, _ in network.products()}
    tables = {"x": EXACT, "y": EXACT // 2, "z": EXACT} | {"signed x": exact_table(True), "signed y": exact_table(True)}
    assignment = {key: "signed " * signed[key] + ("y" if key == "primary.mac" else "x") for key in keys}
    changed = network.with_components(assignment, tables)
    assert {key: p.component for key, p, _ in changed.products()} == assignment
    assert sorted(changed.tables) == sorted(set(assignment.values()))
    for key in keys:
        with pytest.raises(RedcaneError, match=f"{key}: .* multiplies .*signed operands, and the .* format has"):
            network.with_components(assignment | {key: "x" if signed[key] else "signed x"}, tables)
    wrong = (
        ("no operation", assignment | {"primary.squash": "x"}),
        ("has no multiplier", {"conv1.mac": assignment["conv1.mac"]}),
        ("unknown component", assignment | {"conv1.mac": "w"}),
    )
    for words, bad in wrong:
        with pytest.raises(RedcaneError, match=words):
            network.with_components(bad, tables)


@given(networks())
@settings(max_examples=5, deadline=None)
def test_overflow_is_refused_at_the_bound(network: QNetwork) -> None:
    layer = network.layers[0]
    assert isinstance(layer, QConvLayer)
    bound = terms(layer, "mac") * layer.conv.mac.term_bound(network.tables[layer.conv.mac.component])

    def with_bias(bias: int) -> QNetwork:
        conv = replace(layer.conv, bias=np.full_like(layer.conv.bias, bias))
        return replace(network, layers=(replace(layer, conv=conv), *network.layers[1:]))

    with_bias(2**31 - 1 - bound).check()
    with_bias(-(2**31 - 1 - bound)).check()
    for bias in (2**31 - bound, -(2**31 - bound)):
        with pytest.raises(RedcaneError, match="overflow"):
            with_bias(bias).check()
