"""The emulation against the integer reference, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import EXACT, SIGNED, image_codes, networks, wild_table

from model import reference
from model.capsnet import CapsNet, CapsNetShape
from model.emulation import Emulator, convolved
from model.emulation.emulator import image_bytes
from model.emulation.lookup import LEVELS, best_level
from model.emulation.terms import term_table
from model.errors import RedcaneError
from model.qnetwork import FORMATS, Coding, Product, QConvLayer, QNetwork, Requantizer
from model.quantize import quantize

BEST = best_level()
ENGINES = ("torch", *(LEVELS[: LEVELS.index(BEST) + 1] if BEST else ()))


@pytest.mark.parametrize("engine", ENGINES)
@given(networks(), st.integers(0, 2**32 - 1), st.integers(1, 3), st.booleans())
@settings(max_examples=80, deadline=None)
def test_every_boundary_equals_the_reference(
    engine: str, network: QNetwork, seed: int, count: int, tiled: bool
) -> None:
    images = image_codes(np.random.default_rng(seed), network, count)
    images[0] = network.input.hi  # saturates what can saturate
    emulator = Emulator(network, memory=1 if tiled else 2**26, engine=engine)
    trace = emulator.run(images)
    for n, image in enumerate(images):
        wanted = reference.run(network, image)
        assert wanted.keys() == trace.keys()
        for name, value in wanted.items():
            np.testing.assert_array_equal(trace[name][n].numpy(), value, err_msg=name)
    np.testing.assert_array_equal(emulator.classify(images), trace["class"].numpy())


@pytest.mark.parametrize("engine", ENGINES)
@given(networks(), st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_a_convolution_by_itself(engine: str, network: QNetwork, seed: int) -> None:
    """Its accumulators are those in the network."""
    images = image_codes(np.random.default_rng(seed), network, 2)
    layer, seen = network.layers[0], dict[str, torch.Tensor]()
    assert isinstance(layer, QConvLayer)
    Emulator(network).run(images, lambda key, _, sums: seen.setdefault(key, sums))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REDCANE_EMULATION", engine)
        alone = convolved(layer.conv, network.tables[layer.conv.mac.component], images)
    np.testing.assert_array_equal(alone, seen[f"{layer.name}.mac"].numpy())


def test_running_changes_nothing() -> None:
    """A single output position of a single image: views of the bias are tempting there."""
    torch.manual_seed(1)  # not one whose ReLU leaves nothing
    net = CapsNet(CapsNetShape((3, 3, 1), 2, 3, 1, 2, 1, 1, 2, 2))
    network = quantize(net, torch.rand(9, 1, 3, 3))
    before = [layer.conv.bias.copy() for layer in network.layers[:2]]  # type: ignore[union-attr]  # convolutions
    emulator = Emulator(network)
    image = np.full((1, 3, 3, 1), 200, np.int16)
    first, second = emulator.run(image), emulator.run(image)
    assert all(torch.equal(first[name], second[name]) for name in first)
    for layer, bias in zip(network.layers, before, strict=False):
        np.testing.assert_array_equal(layer.conv.bias, bias)  # type: ignore[union-attr]


byte = st.integers(0, 255)


@given(st.sampled_from(FORMATS), st.integers(0, 1), byte, byte, st.booleans())
@settings(max_examples=40, deadline=None)
def test_terms_equal_the_references_products(format: str, align: int, za: int, zb: int, unsigned: bool) -> None:
    if format == "affine":
        a, b = Coding("affine", 1.0, za), Coding("affine", 1.0, zb)
    else:
        a, b = Coding("unsigned", 1.0) if unsigned and format != "twos-complement" else SIGNED, SIGNED
    product = Product(format, a, b, SIGNED, Requantizer(2**15, 1, 0, -127, 127), "wild", align)  # type: ignore[arg-type]  # drawn
    table = wild_table(np.random.default_rng(za)).view(np.int16 if format == "twos-complement" else np.uint16)
    codes_a, codes_b = (np.arange(c.lo, c.hi + 1, dtype=np.int16) for c in (a, b))
    wanted = reference.products(product, table, codes_a[:, None], codes_b[None, :])
    np.testing.assert_array_equal(term_table(product, table)[np.ix_(codes_a & 255, codes_b & 255)], wanted)


@given(networks())
@settings(max_examples=10, deadline=None)
def test_observers_see_the_accumulators(network: QNetwork) -> None:
    images = image_codes(np.random.default_rng(1), network, 3)
    seen: dict[tuple[str, int], list[torch.Tensor]] = {}
    trace = Emulator(network, memory=image_bytes(network) * 2).run(
        images, lambda key, iteration, acc: seen.setdefault((key, iteration), []).append(acc)
    )
    products = {key: product for key, product, _ in network.products()}
    for (key, iteration), parts in seen.items():
        assert [len(part) for part in parts] == [2, 1]  # two images fit the budget
        accumulators = torch.cat(parts).numpy()
        if not key.endswith("agreement"):
            name = key if iteration == 0 else f"{key}.{iteration}"
            np.testing.assert_array_equal(products[key].requantizer(accumulators), trace[name].numpy())
    assert {key for key, _ in seen} >= products.keys() - {"classcaps.agreement"}


@given(networks())
@settings(max_examples=5, deadline=None)
def test_bad_inputs(network: QNetwork) -> None:
    emulator = Emulator(network)
    height, width, channels = network.image
    for shape in ((0, height, width, channels), (1, height + 1, width, channels), (height, width, channels)):
        with pytest.raises(RedcaneError, match="images of"):
            emulator.run(np.zeros(shape, np.int16))
    tables = {name: EXACT.astype(np.int32) for name in network.tables}
    with pytest.raises(RedcaneError, match="256 x 256 of uint16"):
        Emulator(replace(network, tables=tables))  # type: ignore[arg-type]  # the wrong type is the test


MEASURED = """
import resource, sys
import numpy as np, torch
from model import reference
from model.capsnet import CapsNet, CapsNetShape
from model.emulation import Emulator, convolved
from model.quantize import quantize
torch.manual_seed(0)
network = quantize(CapsNet(CapsNetShape((14, 14, 1), 32, 5, 4, 8, 5, 2, 5, 8)), torch.rand(9, 1, 14, 14))
images = np.random.default_rng(0).integers(0, 256, (1024, 14, 14, 1)).astype(np.int16)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
emulator = Emulator(network, memory=int(sys.argv[2]), engine=sys.argv[1])
assert 1 <= emulator.tile < 200, emulator.tile
first = emulator.classify(images[:1])  # and all that is made once
before = peak()
classes = emulator.classify(images)
for n in (0, 500, 1023):
    assert int(reference.run(network, images[n])["class"]) == classes[n]
assert classes[0] == first[0]
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss")
@pytest.mark.parametrize("engine", [ENGINES[0], ENGINES[-1]])
def test_a_thousand_images_take_no_more_memory_than_was_given(engine: str) -> None:
    memory = 8 * 2**20
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, engine, str(memory)],
        cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2 * memory  # a tile, and the windows of one
