"""Constants fitted to approximate multipliers: lines against plain regressions, errors against those of no fitting."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import reference
from model.calibration import Calibration
from model.capsnet import CapsNetShape
from model.datasets import Dataset, load
from model.deepcaps import DeepCapsShape
from model.emulation import Emulator
from model.emulation.terms import term_table
from model.fitting import CORRECTIONS, Fitting, _Reads
from model.lines import Terms
from model.multipliers.product_table import Table, exact_table
from model.network import Network
from model.qnetwork import Coding, Format, Product, QAdd, QClassCaps, QConv, QConvCaps3D, QNetwork, Requantizer, Routed
from model.quantize import image_codes, quantize
from model.recipe import TrainingRecipe
from model.rounding import compensated
from model.training import initial, train

SHAPE = CapsNetShape(
    image=(8, 8, 1), conv_channels=16, conv_kernel=3, primary_types=4, primary_dim=8,
    primary_kernel=3, primary_stride=2, classes=10, class_dim=8,
)  # fmt: skip
DEEP = DeepCapsShape((8, 8, 1), 10, conv_channels=8, types=4, dims=(4, 4, 4, 4), class_dim=8)
FORMATS: tuple[Format, ...] = ("sign-magnitude", "affine", "twos-complement")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


@pytest.fixture(scope="module")
def network(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Network:
    network = initial(SHAPE, 0)
    train(network, digits, TrainingRecipe(epochs=16), tmp_path_factory.mktemp("trained") / "checkpoint")
    return network


@pytest.fixture(scope="module")
def calibration(network: Network, digits: Dataset) -> Calibration:
    return Calibration(network, torch.from_numpy(digits.train.images[:600]))


def falling_short(bits: int, signed: bool = False) -> Table:
    """The operands' lowest bits are cut off, from A one more: too small, not commutative."""
    every = np.arange(256)
    if signed:
        every = np.where(every < 128, every, every - 256)
    a, b = (np.sign(every) * (np.abs(every) >> n << n) for n in (bits + 1, bits))
    return np.outer(a, b).astype(np.int16 if signed else np.uint16)


def everywhere(network: QNetwork, table: Table) -> QNetwork:
    return network.with_components({key: "it" for key, _, _ in network.products()}, {"it": table})


def able(network: QNetwork, table: Table, form: Format) -> QNetwork:
    """The table everywhere; in affine codes, whose offsets do not cancel, only where a bias can take them."""
    (exact,) = network.tables
    of = {k: "it" if form != "affine" or k.endswith("mac") else exact for k, _, _ in network.products()}
    return network.with_components(of, {**network.tables, "it": table})


def same(one: QNetwork, other: QNetwork) -> bool:
    def constants(layer):  # type: ignore[no-untyped-def]
        if isinstance(layer, QAdd):
            return []
        held = [layer.weights] if isinstance(layer, QClassCaps) else [layer.conv.weights, layer.conv.bias]
        return [*held, *layer.products().values()]

    return all(
        np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b
        for old, new in zip(one.layers, other.layers, strict=True)
        for a, b in zip(constants(old), constants(new), strict=True)
    )


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_lines_are_those_of_a_regression(data: st.DataObject) -> None:
    """In all formats and places, of multipliers that are anything."""
    form = data.draw(st.sampled_from(FORMATS))
    align = data.draw(st.integers(0, 1)) if form == "sign-magnitude" else 0
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    if form == "affine":
        a, b = (Coding("affine", 0.1, int(z)) for z in rng.integers(0, 256, 2))
    else:
        a = Coding(data.draw(st.sampled_from(["signed", "unsigned"])) if form == "sign-magnitude" else "signed", 0.1)
        b = Coding("signed", 0.1)
    signed = form == "twos-complement"
    low, high, kind = (-(2**15), 2**15, np.int16) if signed else (0, 2**16, np.uint16)
    table = rng.integers(low, high, (256, 256)).astype(kind)
    out = Coding("signed", 1.0)
    product = Product(form, a, b, out, Requantizer.for_scale(1.0, out), "random", align)
    codes = rng.integers(a.lo, a.hi + 1, 50)  # what one term reads
    terms = Terms.together((codes - a.zero_point).astype(np.int16), a)
    unit = 2.0 ** (align * (1 + (a.kind == "signed"))) if form == "sign-magnitude" else 1.0
    for offsets in (True, False):
        lines = terms.lines(product, table, offsets)
        assert lines.slopes.shape == (1, b.hi - b.lo + 1)
        for code in rng.integers(b.lo, b.hi + 1, 5):
            y = term_table(product, table)[codes & 255, code & 255] / unit
            x = np.stack([codes - a.zero_point, np.ones(50)], axis=1)[:, : 1 + offsets]
            line = np.linalg.lstsq(x, y, rcond=None)[0]
            np.testing.assert_allclose(lines.slopes[0, code - b.lo], line[0], rtol=1e-6, atol=1e-6)
            assert lines.means(np.array([[code]]))[0, 0] == pytest.approx(y.mean())
            noise = ((y - x @ line) ** 2).mean()
            assert lines.noise[0, code - b.lo] == pytest.approx(noise, rel=1e-6, abs=1e-6 * (y @ y))


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_weights_get_the_code_that_leaves_the_least_error(data: st.DataObject) -> None:
    """Of slope and noise together; without noise, that of the nearest slope."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    slopes = rng.choice(np.arange(-6, 7) / 2, (1, 255))  # many alike
    noise = data.draw(st.sampled_from([0.0, 0.5, 3.0])) * rng.choice([0, 0.5, 1], (1, 255))
    left = data.draw(st.sampled_from([0.25, 1.0, 8.0]))
    out = Coding("signed", 1.0)
    product = Product("sign-magnitude", out, out, out, Requantizer.for_scale(1.0, out), "it")
    plain = Terms.together(np.ones(3, np.int16), out).lines(product, exact_table(False), False)
    wanted = rng.choice(np.arange(-16, 17) / 4, 20)
    codes, found = replace(plain, slopes=slopes, noise=noise).best(7, wanted, left)
    np.testing.assert_array_equal(found, slopes[0, codes + 127])
    error = (slopes[0][None] - wanted[:, None]) ** 2 * left + noise
    np.testing.assert_array_equal(error[np.arange(20), codes + 127], error.min(axis=1))
    for code, errors in zip(codes, error, strict=True):
        assert abs(code) == np.abs(np.flatnonzero(errors == errors.min()) - 127).min(), "the smallest of equals"


@pytest.mark.parametrize("form", FORMATS)
def test_exact_multipliers_leave_nothing_to_fit(
    form: Format, network: Network, calibration: Calibration
) -> None:
    exact = quantize(network, calibration, form)
    assert same(Fitting(network, calibration)(exact), exact)


def error(quantized: QNetwork, network: Network, digits: Dataset) -> float:
    """Root mean square of the class capsules' error."""
    images = digits.validation.images
    layer = quantized.layers[-1]
    assert isinstance(layer, Routed)
    codes = Emulator(quantized, "cpu").run(image_codes(quantized, images))[layer.output].numpy()
    with torch.inference_mode():
        clean = network(torch.from_numpy(images)).numpy()
    return float(np.sqrt(np.mean((layer.squash.out.decode(codes) - clean) ** 2)))


@pytest.mark.parametrize("align", [0, 1])
def test_a_pure_gain_is_taken_out(align: int, network: Network, calibration: Calibration, digits: Dataset) -> None:
    """A multiplier whose products are all three quarters: but for what is cut off, nothing of it is left."""
    exact = quantize(network, calibration, align=align)
    rough = everywhere(exact, (exact_table(False).astype(np.int64) * 3 // 4).astype(np.uint16))
    fitted = Fitting(network, calibration)(rough)
    for (_, before, _), (_, after, _) in zip(rough.products(), fitted.products(), strict=True):
        units = [p.requantizer.multiplier / 2**p.requantizer.shift for p in (before, after)]
        assert units[1] / units[0] == pytest.approx(4 / 3, rel=0.06)
    clean, unfitted, left = (error(q, network, digits) for q in (exact, rough, fitted))
    assert left < 1.5 * clean < unfitted / 5


@pytest.mark.parametrize("form", FORMATS)
def test_less_is_lost(form: Format, network: Network, calibration: Calibration, digits: Dataset) -> None:
    exact = quantize(network, calibration, form, align=0)
    rough = able(exact, falling_short(2, signed=form == "twos-complement"), form)
    fitted = Fitting(network, calibration)(rough)
    unfitted, left = (error(q, network, digits) for q in (rough, fitted))
    assert left < unfitted / 2
    for image in image_codes(fitted, digits.test.images[:2]):  # and it is an integer network like any other
        for boundary, codes in reference.run(fitted, image).items():
            found = Emulator(fitted, "cpu").run(image[None])[boundary].numpy()
            np.testing.assert_array_equal(found[0].reshape(-1), codes.reshape(-1), boundary)


@pytest.mark.parametrize("form", ["sign-magnitude", "affine"])
def test_small_weights_get_larger_codes_where_small_codes_are_few(
    form: Format, network: Network, calibration: Calibration, digits: Dataset
) -> None:
    """Of a multiplier that leaves out half of B's bits: most weights are smaller than its first code."""
    weights = copy.deepcopy(network)
    with torch.no_grad():
        parameters = dict(weights.named_parameters())
        parameters["primary.weight"][0, 0, 0, 0] = 4 * parameters["primary.weight"].abs().max()  # all others are small
    calibration = Calibration(weights, torch.from_numpy(digits.train.images[:600]))
    exact = quantize(weights, calibration, form)
    coarse = (np.arange(256)[:, None] * (np.arange(256) >> 4 << 4)).astype(np.uint16)
    if form == "affine":
        middle = exact.layers[1].conv.mac.b.zero_point  # type: ignore[union-attr]
        coarse = (np.arange(256)[:, None] * (middle + ((np.arange(256) - middle) >> 4 << 4)).clip(0)).astype(np.uint16)
    keys = [key for key, _, _ in exact.products()]
    rough = exact.with_components({k: "it" if k == "primary.mac" else "exact" for k in keys},
                                  {**exact.tables, "it": coarse})  # fmt: skip
    fit = Fitting(weights, calibration)
    found = fit.prospect(exact, "primary.mac", coarse)
    assert found is not None and found.growth > 1
    grown = fit(rough)
    alone = Fitting(weights, calibration, (1.0,))
    plain, small = alone.prospect(exact, "primary.mac", coarse), alone(rough)
    assert plain is not None and plain.growth == 1 and plain.noise > 1.2 * found.noise
    sizes = [np.abs(q.layers[1].conv.weights - q.layers[1].conv.mac.b.zero_point).mean() for q in (grown, small)]  # type: ignore[union-attr]
    assert sizes[0] > 1.2 * sizes[1]
    assert error(grown, weights, digits) < 0.8 * error(small, weights, digits)


def test_what_is_nearly_exact_gets_no_larger_codes(network: Network, calibration: Calibration) -> None:
    """Exact multipliers round, too: less than that is not worth larger operands."""
    exact, fit = quantize(network, calibration), Fitting(network, calibration)
    nearly = exact_table(False)
    nearly[255, 255] -= 1
    for key, _, _ in exact.products():
        for table in (exact_table(False), nearly):
            found = fit.prospect(exact, key, table)
            assert (found and found.growth) == (None if key.endswith(("weighted_sum", "agreement")) else 1)


def test_noise_that_goes_together_is_taken_out() -> None:
    """Of channels that are dark or bright as a whole, and a multiplier that leaves out small products: a line through
    what one term reads is wrong in all terms of a bright channel alike.
    """
    rng = np.random.default_rng(6)
    a, b = Coding("unsigned", 1.0), Coding("signed", 1.0)
    out = Coding("signed", 1.0)
    product = Product("sign-magnitude", a, b, out, Requantizer.for_scale(1.0, out), "it")
    table = exact_table(False)
    table = np.where(table < 4000, 0, table).astype(np.uint16)
    kernel = rng.choice([-1, 1], (8, 32, 1, 1)) * rng.uniform(0, 40, (8, 32, 5, 5))
    conv = QConv(np.zeros((8, 5, 5, 32), np.int16), np.zeros(8, np.int32), 1, product)

    def reads() -> _Reads:
        bright = rng.integers(0, 2, (400, 32, 1, 1))
        return _Reads((bright * rng.integers(1, 256, (400, 32, 6, 6))).astype(np.int16), kernel, conv, True)

    known, unseen = reads(), reads()
    lines = [terms.lines(product, table, True) for terms in known.terms]
    wanted, left = known.weights, []
    for _ in range(1 + CORRECTIONS):
        chosen = [compensated(*of, t.upper) for *of, t in zip(wanted, lines, known.terms, strict=True)]
        left.append(np.sqrt((unseen.errors(product, table, chosen, 1.0) ** 2).mean()))
        more = known.explained(known.errors(product, table, chosen, 1.0))
        wanted = [part - of for part, of in zip(wanted, more, strict=True)]
    assert left[-1] < 0.8 * left[0], left


def left(fit: Fitting, exact: QNetwork, key: str, table: np.ndarray) -> float | None:
    """The noise that a multiplier leaves."""
    found = fit.prospect(exact, key, table.astype(np.uint16))
    return found and found.noise


@pytest.mark.parametrize("align", [0, 1])
def test_the_noise_that_is_left_is_foretold(
    align: int, network: Network, calibration: Calibration, digits: Dataset
) -> None:
    """Of multipliers that are fitted to sums with weights, about what the sums err by on other images, and less where
    terms go together.
    """
    exact = quantize(network, calibration, align=align)
    codes, fit = image_codes(exact, digits.validation.images), Fitting(network, calibration)

    def sums(quantized: QNetwork, key: str) -> np.ndarray:
        seen: dict[str, np.ndarray] = {}
        Emulator(quantized, "cpu").run(codes, lambda k, _, found: seen.update({k: found.numpy()}))
        product = {k: p for k, p, _ in quantized.products()}[key]
        wanted = {k: p for k, p, _ in exact.products()}[key].requantizer  # whose unit is that of the codes' products
        units = [r.multiplier / 2.0**r.shift for r in (product.requantizer, wanted)]
        return np.asarray(seen[key] * units[0] / units[1] / product.unit)

    for key in ("conv1.mac", "primary.mac", "classcaps.votes"):
        kept, clean = None, sums(exact, key)
        for table in (exact_table(False) // 4 * 4, falling_short(1), falling_short(2), falling_short(3)):
            alone = {k: "it" if k == key else "exact" for k, _, _ in exact.products()}
            rough = exact.with_components(alone, {**exact.tables, "it": table.astype(np.uint16)})
            found = left(fit, exact, key, table)
            error = sums(fit(rough), key) - clean
            measured = np.sqrt((error**2).mean())
            assert found is not None and 0.2 < found / measured < 1.5, (key, found, measured)
            assert kept is None or found > kept, "the rougher, the more"
            kept = found
    for key in ("classcaps.weighted_sum", "classcaps.agreement"):
        assert left(fit, exact, key, falling_short(3)) is None
    useless, rough_one = (left(fit, exact, "conv1.mac", t) for t in (falling_short(8), falling_short(5)))
    assert useless and rough_one and useless > rough_one


def test_layers_are_fitted_by_themselves(network: Network, calibration: Calibration) -> None:
    """So that what was found for one serves every assignment that has it; the others stay exact."""
    exact, table = quantize(network, calibration), falling_short(3)
    keys = [key for key, _, _ in exact.products()]
    tables = {**exact.tables, "it": table}
    fit = Fitting(network, calibration)
    whole = fit(everywhere(exact, table))
    for key in keys:
        alone = fit(exact.with_components({k: "it" if k == key else "exact" for k in keys}, tables))
        products = {k: p for k, p, _ in alone.products()}
        assert products[key] == {k: p for k, p, _ in whole.products()}[key]
        for place, layer in enumerate(exact.layers):
            if not key.startswith(layer.name):
                assert same(replace(alone, layers=alone.layers[place : place + 1]),
                            replace(exact, layers=exact.layers[place : place + 1]))  # fmt: skip


def test_a_useless_multiplier_is_left_alone(network: Network, calibration: Calibration) -> None:
    for table in (np.zeros((256, 256), np.uint16), np.full((256, 256), 1000, np.uint16)):
        useless = everywhere(quantize(network, calibration), table)
        fitted = Fitting(network, calibration)(useless)
        fitted.check()
        if not table.any():
            assert same(fitted, useless)


@pytest.mark.parametrize("form", ["sign-magnitude", "affine"])
def test_a_deepcaps_is_fitted_too(form: Format, digits: Dataset) -> None:
    """With its 3D layer, which has no bias, and its layers on grids with padding."""
    network = initial(DEEP, 1)
    calibration = Calibration(network, torch.from_numpy(digits.train.images[:200]))
    rough = able(quantize(network, calibration, form, align=0), falling_short(1), form)
    fitted = Fitting(network, calibration)(rough)
    assert not same(fitted, rough)
    (routed,) = (layer for layer in fitted.layers if isinstance(layer, QConvCaps3D))
    assert not routed.conv.bias.any()
    assert error(fitted, network, digits) < 0.7 * error(rough, network, digits)


def test_the_noise_of_every_operation_of_a_deepcaps_is_told(digits: Dataset) -> None:
    """Among its layers are sums whose names other layers' names begin with."""
    network = initial(DEEP, 1)
    fit = Fitting(network, Calibration(network, torch.from_numpy(digits.train.images[:50])))
    exact = quantize(network, fit._calibration)
    for key, _, _ in exact.products():
        less, more = (left(fit, exact, key, falling_short(bits)) for bits in (1, 3))
        if key.endswith(("weighted_sum", "agreement")):
            assert less is None and more is None
        else:
            assert less is not None and more is not None and 0 < less < more
