"""Captured operands give back the accumulators of the integer reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from random_networks import EXACT, SIGNED, UNSIGNED, image_codes, networks, wild_table

from model import reference
from model.capture import Capture, capture
from model.emulation import Emulator
from model.qnetwork import Product, QConvLayer, QNetwork, Requantizer
from model.reference import products


def terms(captured: Capture, table: np.ndarray) -> np.ndarray:
    """The reference's terms (S, K) of the captured pairs."""
    a, b = (captured.pairs >> 8).astype(np.int16), (captured.pairs & 255).astype(np.int16)
    if captured.product.a.kind == "signed":
        a = np.where(a < 128, a, a - 256)
    if captured.product.b.kind == "signed":
        b = np.where(b < 128, b, b - 256)
    return products(captured.product, table, a, b)


@given(networks())
@settings(max_examples=25, deadline=None)
def test_captured_sums_are_sums_of_the_network(network: QNetwork) -> None:
    images = image_codes(np.random.default_rng(1), network, 2)
    captures = capture(Emulator(network), images, sums=200)
    traces = [reference.run(network, image) for image in images]
    for key, product, _ in network.products():
        if key not in captures:
            assert key == "classcaps.agreement" and network.layers[-1].iterations == 1  # type: ignore[union-attr]
            continue
        if key == "classcaps.agreement":
            continue  # only its sum with the logits is a boundary
        layer = network.layers[["conv1", "primary", "classcaps"].index(key.split(".")[0])]
        sums = terms(captures[key], network.tables[product.component]).sum(axis=1)
        biases = [0] if key.startswith("classcaps") else layer.conv.bias  # type: ignore[union-attr]
        found = np.stack([product.requantizer(sums + int(bias)) for bias in biases])  # (biases, S)
        seen = {int(v) for t in traces for name in t if name.startswith(key) for v in np.ravel(t[name])}
        assert (np.isin(found, list(seen))).any(axis=0).all()


@given(networks())
@settings(max_examples=10, deadline=None)
def test_spans_are_ranges_of_the_outputs(network: QNetwork) -> None:
    images = image_codes(np.random.default_rng(1), network, 3)
    captures = capture(Emulator(network, memory=1), images, sums=50)
    first = network.layers[0]
    assert isinstance(first, QConvLayer)
    sums = np.stack([reference.convolution(first.conv, network.tables[first.conv.mac.component], x) for x in images])
    assert (captures["conv1.mac"].spans == max(np.ptp(sums), 1)).all()
    if "classcaps.agreement" in captures:
        logits = np.stack([reference.run(network, x)["classcaps.agreement.1"] for x in images])
        unit = network.layers[-1].agreement.requantizer  # type: ignore[union-attr]
        assert captures["classcaps.agreement"].spans[0] == max(np.ptp(logits) * 2.0**unit.shift / unit.multiplier, 1)


@pytest.mark.parametrize("align", [0, 1])
def test_error_and_histogram(align: int) -> None:
    rng = np.random.default_rng(0)
    product = Product("sign-magnitude", UNSIGNED, SIGNED, SIGNED, Requantizer(2**15, 1, 0, -127, 127), "x", align)
    pairs = (rng.integers(0, 256, (300, 9)) * 256 + rng.choice([0, 1, 127, 129, 255], (300, 9))).astype(np.uint16)
    captured = Capture(product, pairs, np.full(300, 1000.0))
    wild = wild_table(rng)
    wanted = (terms(captured, EXACT) - terms(captured, wild)).sum(axis=1) / 1000
    np.testing.assert_allclose(captured.error(EXACT, wild), wanted)

    added, subtracted = captured.port_histogram()
    assert added.sum() + subtracted.sum() == pairs.size
    assert subtracted.sum() == np.isin(pairs & 255, [129, 255]).sum()
    error = (EXACT.astype(int) - wild) * (added - subtracted)
    assert error.sum() == (terms(captured, EXACT) - terms(captured, wild)).sum()


@pytest.mark.parametrize("align", [0, 1])
def test_operands_are_runs_of_what_the_ports_see(align: int) -> None:
    product = Product("sign-magnitude", UNSIGNED, SIGNED, SIGNED, Requantizer(2**15, 1, 0, -127, 127), "x", align)
    a, b = np.arange(40).reshape(8, 5), np.array([1, -1, 127, -127, 0] * 8).reshape(8, 5)
    captured = Capture(product, (256 * a + (b & 255)).astype(np.uint16), np.ones(8))
    seen = captured.operands(50, 7)
    assert seen.shape == (50, 7) and captured.operands(3, 100).shape == (3, 40)
    first = seen[:, :1] >> 8
    np.testing.assert_array_equal(seen >> 8, first + np.arange(7))  # one sum after the other
    np.testing.assert_array_equal(seen & 255, np.abs(b.reshape(-1)[seen >> 8]) << align)
    assert len(set(first[:, 0].tolist())) > 15 and first.min() >= 0 and first.max() <= 33


@given(networks())
@settings(max_examples=5, deadline=None)
def test_the_sample_is_bounded_and_repeatable(network: QNetwork) -> None:
    images = image_codes(np.random.default_rng(1), network, 2)
    one, two = (capture(Emulator(network), images, sums=64, pairs=100, seed=3) for _ in range(2))
    for key, captured in one.items():
        np.testing.assert_array_equal(captured.pairs, two[key].pairs)
        assert captured.pairs.size <= max(100, 3 * captured.pairs.shape[1])
