"""The compiled kernel's sums against the reference's products: every level of this machine, any shape and table."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from random_networks import EXACT, FLOAT, SIGNED, UNSIGNED, codes, wild_table

from model import reference
from model.emulation import Emulator, lookup
from model.emulation.costs import MOST_FACTORS
from model.emulation.gather_sums import GatherSums
from model.emulation.kernel_sums import Choice, KernelSums
from model.emulation.lookup import LEVELS, best_level
from model.emulation.plan import Plan, plans
from model.emulation.terms import term_table
from model.errors import RedcaneError
from model.multipliers.library import load_library
from model.qnetwork import (
    FLOAT_LIMIT,
    Coding,
    Product,
    QClassCaps,
    QConv,
    QConvLayer,
    QNetwork,
    Requantizer,
    Squash,
    exp_table,
    significant,
)
from model.quantize import quantize

BEST = best_level()
levels = pytest.mark.parametrize("level", LEVELS[: LEVELS.index(BEST) + 1] if BEST else [])
UNIT = Requantizer(2**15, 16, 0, -127, 127)


def tables(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Products that need every plan, and the largest sums of bytes: but for one column, lest a row be a constant."""
    largest = np.full((256, 256), 65535, np.uint16)
    largest[:, 0] = 0
    return {
        "wild": wild_table(rng),
        "exact": EXACT,
        "largest": largest,
        "signed": wild_table(rng).astype(np.int16),  # of two's complement
        "small": wild_table(rng) >> 9,  # a byte: one plane even where both operands are signed
        "near": EXACT - rng.integers(0, 256, (256, 256)).astype(np.uint16) * (EXACT >= 255),  # errors of a byte
        "cut": (EXACT.astype(int) - np.outer(np.arange(256) & 7, np.arange(256) & 11)).astype(np.uint16),  # of rank 1
        "still": (5 + np.outer(np.arange(256) & ~3, np.arange(256)) % 60_000).astype(np.uint16),  # of zeros: all alike
    }


@st.composite
def products(draw: st.DrawFn) -> Product:
    """Any pair of operands that a format allows."""
    component = draw(st.sampled_from(("wild", "exact", "largest", "small", "near", "cut", "still")))
    align = draw(st.integers(0, 1))
    format = draw(st.sampled_from(("sign-magnitude", "sign-magnitude", "affine", "twos-complement")))
    if format == "affine":
        a, b = (Coding("affine", 1.0, draw(st.sampled_from((0, 1, 100, 255)))) for _ in range(2))
        return Product("affine", draw(st.sampled_from((a, UNSIGNED))), b, SIGNED, UNIT, component, align)
    if format == "twos-complement":
        return Product("twos-complement", SIGNED, SIGNED, SIGNED, UNIT, "signed", align)
    a, b = draw(st.sampled_from((SIGNED, UNSIGNED))), draw(st.sampled_from((SIGNED, SIGNED, UNSIGNED)))
    return Product("sign-magnitude", a, b, SIGNED, UNIT, component, align)


seeds = st.integers(0, 2**32 - 1)


def nth_plan(which: int) -> Choice:
    """Any of the plans that the terms have."""

    def choose(product: Product, terms: np.ndarray, level: str, length: int) -> Plan:
        found = plans(product, terms, 4)
        return found[which % len(found)]

    return choose


@given(products(), seeds)
@settings(max_examples=25, deadline=None)
def test_plans_are_their_terms(product: Product, seed: int) -> None:
    terms = term_table(product, tables(np.random.default_rng(seed))[product.component])
    a, b = (np.arange(coding.lo, coding.hi + 1) for coding in (product.a, product.b))
    found = plans(product, terms, 4)
    for plan in found:
        byte = np.where(b < 0, 128 - b, b) if plan.folded else b  # sign and magnitude, or as it is
        sums = plan.values[np.ix_(a & 255, byte)].astype(np.int32) + plan.row[a & 255, None] + plan.column[byte]
        sums += np.where((a < 0)[:, None] ^ (b < 0), plan.differ, 0)
        sums += plan.u.T[a & 255].astype(np.int32) @ plan.v[:, b & 255].astype(np.int32)
        np.testing.assert_array_equal(sums, terms[np.ix_(a & 255, b & 255)])
        if plan.idle >= 0:
            assert plan.idle == product.a.zero_point and len(plan.u) == 0
            assert len(np.unique(plan.values[plan.idle, :128])) == 1
            assert plan.folded or not plan.values[plan.idle].any()
        if plan.folded:  # what the sign does to the 128 entries that are kept
            np.testing.assert_array_equal(plan.values[:, 128:], 2 ** (8 * plan.shape[0]) - 1 - plan.values[:, :128])
        whole = (plan.planes.astype(int) << 8 * np.arange(plan.shape[0])[:, None]).sum(axis=1)
        np.testing.assert_array_equal(whole, plan.values[:, : whole.shape[1]])
    shapes = {plan.shape for plan in found}
    assert max(planes for planes, _ in shapes) <= 2
    if product.component == "exact":
        assert (0, 1) in shapes
    if product.component in ("exact", "cut", "still") and product.format == "sign-magnitude":
        assert found[0].idle == 0 or (product.component == "still" and not found[0].folded)
    if product.component == "near":
        assert (1, 1) in shapes
    if product.component == "cut":
        assert (0, 2) in shapes


@pytest.mark.skipif(BEST is None, reason="there is no C++ compiler")
@given(st.floats(2.0**-10, 0.2), st.integers(1, 64), st.sampled_from((0, 1, 127, 131)), st.integers(1, 3), seeds)
@settings(max_examples=60, deadline=None)
def test_squash(s_in: float, dim: int, zero: int, threads: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    out = Coding("affine", 1 / 127, zero) if zero else SIGNED
    unit = Squash.for_scales(s_in, out)
    q = significant(codes(rng, FLOAT, (3, 7, dim)) >> rng.integers(0, 8, (3, 7, 1)))
    q[0] = rng.integers(-5, 6, q[0].shape) * (rng.random(q[0].shape) < 0.2)  # short ones
    q[1, :4] = np.array([-FLOAT_LIMIT, FLOAT_LIMIT, 0, 1])[:, None]
    wanted = reference.squash(unit, q)
    np.testing.assert_array_equal(lookup.squash(unit, q, threads), wanted)
    np.testing.assert_array_equal(GatherSums({}).squash(unit, torch.from_numpy(q)).numpy(), wanted)
    many = np.tile(q, (1 + 2**18 // q.size, 1, 1))  # so many that threads share them
    np.testing.assert_array_equal(lookup.squash(unit, many, threads), np.tile(wanted, (len(many) // 3, 1, 1)))


@levels
@given(
    product=products(), seed=seeds, cin=st.integers(1, 45) | st.just(130),
    cout=st.sampled_from((1, 63, 64, 65, 130, 200, 257, 330)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)), stride=st.integers(1, 3), padding=st.integers(0, 2),
    count=st.sampled_from((1, 2, 3, 12)), threads=st.integers(1, 3), which=st.integers(0, 5),
    active=st.sampled_from((0.0, 0.03, 0.3, 0.8, 1.0)),
)  # fmt: skip
@example(
    product=Product("sign-magnitude", SIGNED, SIGNED, SIGNED, UNIT, "wild", 1), seed=0, cin=40, cout=63, kernel=(3, 3),
    stride=1, padding=1, count=2, threads=1, which=0, active=1.0,
)  # many signs, and lanes that are padded  # fmt: skip
@example(
    product=Product("sign-magnitude", UNSIGNED, SIGNED, SIGNED, UNIT, "still", 1), seed=0, cin=130, cout=257,
    kernel=(3, 3), stride=1, padding=1, count=12, threads=2, which=0, active=0.4,
)  # more terms than are listed at once, and more active ones than are summed in 16 bits  # fmt: skip
@example(
    product=Product("sign-magnitude", UNSIGNED, SIGNED, SIGNED, UNIT, "exact", 1), seed=2, cin=40, cout=63,
    kernel=(3, 2), stride=1, padding=0, count=12, threads=2, which=0, active=0.3,
)  # more sums than channels  # fmt: skip
@example(
    product=Product("sign-magnitude", SIGNED, SIGNED, SIGNED, UNIT, "exact", 1), seed=2, cin=40, cout=100,
    kernel=(3, 3), stride=1, padding=1, count=12, threads=1, which=0, active=0.1,
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_convolutions(
    level: str, product: Product, seed: int, cin: int, cout: int, kernel: tuple[int, int], stride: int, padding: int,
    count: int, threads: int, which: int, active: float,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    table = tables(rng)[product.component]
    x = codes(rng, product.a, (count, 3 + seed % 3, 4, cin))
    x = np.where(rng.random(x.shape) < active, x, product.a.zero_point).astype(np.int16)  # as after a ReLU
    x[..., 3::37] = product.a.hi  # always active
    bias = rng.integers(-(2**20), 2**20, cout).astype(np.int32)
    weights = codes(rng, product.b, (cout, *kernel, cin))
    weights[::3] = product.b.hi  # the longest sums of the largest bytes
    conv = QConv(weights, bias, stride, product, padding)
    network = QNetwork(x.shape[1:], product.a, (QConvLayer("conv", conv),), {product.component: table})
    unit = KernelSums(network, {"conv.mac": term_table(product, table)}, level, nth_plan(which))
    requantizer = Requantizer(40_000 + seed % 20_000, 16 + seed % 16, seed % 9, -127, 127)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with unit.prepared():
            found = unit.convolution("conv.mac", conv, torch.from_numpy(x))
            requantized = unit.convolution("conv.mac", conv, torch.from_numpy(x), requantizer)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for image, sums in zip(x, found.numpy(), strict=True):
        np.testing.assert_array_equal(sums, reference.convolution(conv, table, image))
    np.testing.assert_array_equal(requantized.numpy(), requantizer(found.numpy()))


@levels
@given(
    votes=products(), weighing=products(), agreeing=products(), seed=seeds,
    inputs=st.sampled_from((1, 2, 63, 130, 300)), dim_in=st.integers(1, 9), classes=st.integers(1, 11),
    dim=st.integers(1, 17), count=st.integers(1, 3), which=st.integers(0, 5),
)  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_class_capsules(
    level: str, votes: Product, weighing: Product, agreeing: Product, seed: int, inputs: int, dim_in: int,
    classes: int, dim: int, count: int, which: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    of = tables(rng)
    weights = codes(rng, votes.b, (inputs, dim_in, classes, dim))
    layer = QClassCaps(
        "caps", weights, votes, weighing, agreeing, exp_table(0.1), Squash.for_scales(0.01, SIGNED), 2
    )  # fmt: skip
    network = QNetwork((1, 1, 1), votes.a, (layer,), of)
    terms = {key: term_table(product, of[product.component]) for key, product, _ in network.products()}
    transposed = {key: torch.from_numpy(table.T.copy()) for key, table in terms.items()}
    units = KernelSums(network, terms, level, nth_plan(which)), GatherSums(transposed)

    u, requantizer = codes(rng, votes.a, (count, inputs, dim_in)), Requantizer(50_001, 20, -3, -127, 127)
    wanted = reference.products(votes, of[votes.component], u[..., None, None], weights).sum(axis=2)
    for unit in units:
        np.testing.assert_array_equal(unit.votes(layer, torch.from_numpy(u)).numpy(), wanted)
        requantized = unit.votes(layer, torch.from_numpy(u), requantizer).numpy()
        np.testing.assert_array_equal(requantized, requantizer(wanted))

    # The two readers of the votes share a coding in a network; here each is drawn, and reads codes of its own.
    for product, at in ((weighing, 0), (agreeing, 1)):
        vote = codes(rng, product.b, (count, inputs, classes, dim))
        table = of[product.component]
        a = codes(rng, product.a, (count, classes, (inputs, dim)[at]))
        if at == 0:
            wanted = reference.products(product, table, a.transpose(0, 2, 1)[..., None], vote).sum(axis=1)
        else:
            wanted = reference.products(product, table, a[:, None], vote).sum(axis=3).swapaxes(1, 2)
        for unit in units:
            sums = unit.routing(layer, torch.from_numpy(vote))[at]
            np.testing.assert_array_equal(sums(torch.from_numpy(a), None).numpy(), wanted)
            np.testing.assert_array_equal(sums(torch.from_numpy(a), requantizer).numpy(), requantizer(wanted))


@pytest.mark.skipif(BEST is None, reason="there is no C++ compiler")
@given(
    st.sampled_from((127, 255)), st.floats(1e-3, 1.0), st.integers(1, 4), st.integers(1, 12),
    st.sampled_from((1, 63, 64, 65, 1152)), st.integers(1, 3), seeds,
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_softmax(one: int, scale: float, count: int, classes: int, inputs: int, threads: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    product = Product("sign-magnitude", SIGNED if one == 127 else UNSIGNED, SIGNED, SIGNED, UNIT, "exact")
    weights, squashed = np.zeros((inputs, 1, classes, 1), np.int16), Squash.for_scales(0.01, SIGNED)
    layer = QClassCaps("caps", weights, product, product, product, exp_table(scale), squashed, 2)
    logits = codes(rng, SIGNED, (count, classes, inputs)) >> rng.integers(0, 9, (count, 1, 1)).astype(np.int16)
    logits[..., 0] = rng.choice((-127, 127), classes)  # as far from each other as they can be
    wanted = reference.softmax(layer.exp_table, logits, one)
    np.testing.assert_array_equal(lookup.softmax(layer, logits, threads), wanted)
    np.testing.assert_array_equal(GatherSums({}).softmax(layer, torch.from_numpy(logits)).numpy(), wanted)


@levels
@given(seeds, st.integers(2**15, 2**16 - 1), st.integers(1, 47), st.integers(0, 255), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_requantisation(level: str, seed: int, multiplier: int, shift: int, zero: int, threads: int) -> None:
    rng = np.random.default_rng(seed)
    floats = Requantizer(multiplier, shift, 0, -FLOAT_LIMIT, FLOAT_LIMIT, floats=True)
    unit = (Requantizer(multiplier, shift, zero, zero, 255), Requantizer(multiplier, shift, zero, -127, 127), floats)[
        seed % 3
    ]
    sums = rng.integers(-(2**31), 2**31, (3, 41)) >> rng.integers(0, 31, (3, 41))
    sums[0, :2] = -(2**31), 2**31 - 1
    most = 2100 if unit.floats else 300
    ties = (((2 * rng.integers(-most, most, 41) + 1) << shift) // (2 * multiplier)) + rng.integers(-1, 2, 41)
    sums[1] = np.clip(ties, -(2**31), 2**31 - 1)  # where the rounded code changes
    found = lookup.requantize(unit, sums.astype(np.int32), level, threads)
    np.testing.assert_array_equal(found, unit(sums))
    by_torch = GatherSums({}).requantize(unit, torch.from_numpy(sums).int())
    np.testing.assert_array_equal(by_torch.numpy(), found)


def network() -> QNetwork:
    from model.capsnet import CapsNet, CapsNetShape

    torch.manual_seed(0)
    return quantize(CapsNet(CapsNetShape((6, 6, 1), 4, 3, 2, 4, 2, 2, 3, 4)), torch.rand(9, 1, 6, 6))


def test_an_engine_is_chosen_by_argument_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(lookup.ENGINE, "torch")
    assert lookup.choose() is None
    monkeypatch.setenv(lookup.ENGINE, "portable")
    assert lookup.choose() == ("portable" if BEST else None)
    assert lookup.choose("torch") is None
    with pytest.raises(RedcaneError, match="'gpu' is none of torch, cuda, portable"):
        lookup.choose("gpu")
    monkeypatch.setenv(lookup.ENGINE, "cuda")
    assert lookup.choose() == BEST, "what is computed on the CPU nevertheless"
    assert Emulator(network(), "cpu").device.type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RedcaneError, match="but torch finds no GPU"):
        Emulator(network())
    monkeypatch.delenv(lookup.ENGINE)
    monkeypatch.setattr(lookup, "best_level", lambda: "portable")
    with pytest.raises(RedcaneError, match="no avx2, its best is portable"):
        Emulator(network(), engine="avx2")


def test_without_a_compiler_torch_computes_the_same_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise RedcaneError("no C++ compiler is installed")

    images = np.random.default_rng(0).integers(0, 256, (3, 6, 6, 1)).astype(np.int16)
    wanted = Emulator(network()).run(images)
    monkeypatch.delenv(lookup.ENGINE, raising=False)
    monkeypatch.setattr(lookup, "_library", none)
    lookup.best_level.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="torch alone.*no C\\+\\+ compiler") as warned:
            emulator = Emulator(network())
        assert len(warned) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it is said once
            Emulator(network())
        found = emulator.run(images)
    finally:
        lookup.best_level.cache_clear()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@levels
@pytest.mark.parametrize("terms", [1, 127, 128, 129, 257, 1000])
@pytest.mark.parametrize("b", [UNSIGNED, SIGNED], ids=["full", "folded"])
def test_long_sums_of_the_largest_bytes(level: str, terms: int, b: Coding) -> None:
    product = Product("sign-magnitude", UNSIGNED, b, SIGNED, UNIT, "largest")
    table = tables(np.random.default_rng(0))["largest"]
    weights = np.full((70, 1, 1, terms), b.hi, np.int16)
    weights[1::2, ..., : terms // 3] = b.lo
    conv = QConv(weights, np.zeros(70, np.int32), 1, product)
    x = np.full((1, 1, terms), 255, np.int16)
    network = QNetwork(x.shape, UNSIGNED, (QConvLayer("conv", conv),), {"largest": table})
    unit = KernelSums(network, {"conv.mac": term_table(product, table)}, level)
    found = unit.convolution("conv.mac", conv, torch.from_numpy(x[None]))
    np.testing.assert_array_equal(found[0].numpy(), reference.convolution(conv, table, x))


def real_tables() -> dict[str, np.ndarray]:
    """The embedded library's, and those of EvoApprox8b where they are at hand."""
    found = {name: component.table for name, component in load_library().components.items()}
    file = Path(os.environ.get("REDCANE_DATA") or ".") / "evoapprox" / "tables-v1.0.npz"
    if file.is_file():
        with np.load(file, allow_pickle=False) as arrays:
            found |= {name: arrays[name] for name in arrays.files}
    return found


@levels
@pytest.mark.parametrize(
    ("a", "b"),
    [(UNSIGNED, SIGNED), (SIGNED, SIGNED), (UNSIGNED, UNSIGNED), (Coding("affine", 1.0, 99), Coding("affine", 1.0, 7))],
    ids=["unsigned", "signed", "magnitudes", "affine"],
)
def test_every_product_of_real_multipliers(level: str, a: Coding, b: Coding) -> None:
    """Sums of one term: images of one pixel for each a, a channel for each b."""
    every_a, every_b = (np.arange(coding.lo, coding.hi + 1, dtype=np.int16) for coding in (a, b))
    for name, table in real_tables().items():
        format = "affine" if a.kind == "affine" else "sign-magnitude"
        product = Product(format, a, b, SIGNED, UNIT, name, 1)  # type: ignore[arg-type]  # one of two
        conv = QConv(every_b[:, None, None, None], np.zeros(len(every_b), np.int32), 1, product)
        network = QNetwork((1, 1, 1), a, (QConvLayer("conv", conv),), {name: table})
        wanted = reference.products(product, table, every_a[:, None], every_b)
        terms = term_table(product, table)
        for plan in plans(product, terms, MOST_FACTORS):
            unit = KernelSums(network, {"conv.mac": terms}, level, lambda *_, plan=plan: plan)
            found = unit.convolution("conv.mac", conv, torch.from_numpy(every_a[:, None, None, None]))
            np.testing.assert_array_equal(found[:, 0, 0].numpy(), wanted, err_msg=f"{name} {plan.shape}")


SHARED = """
import os, threading
import numpy as np
from model.emulation.lookup import requantize
from model.qnetwork import Requantizer
unit, sums = Requantizer(2**15, 20, 0, -127, 127), np.arange(-2**19, 2**19, dtype=np.int32)
wanted, wrong = requantize(unit, sums, "portable", 1), []

def work():
    for _ in range(50):
        if not np.array_equal(requantize(unit, sums, "portable", 3), wanted):
            wrong.append(1)

callers = [threading.Thread(target=work) for _ in range(3)]
for caller in callers:
    caller.start()
for caller in callers:
    caller.join()
child = os.fork()
if child == 0:
    work()
    os._exit(len(wrong))
assert os.waitpid(child, 0)[1] == 0 and not wrong
"""


@pytest.mark.skipif(BEST is None or not hasattr(os, "fork"), reason="no C++ compiler, or no fork")
def test_helping_threads_serve_several_callers_and_a_fork() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHARED], cwd=Path(__file__).parent.parent, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
