"""The integers of a DeepCaps: reference against the page in loops, emulation against reference, quantisation."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from hw.compiler import compile_network
from hw.parameters import MultiplierKind, Size
from model import reference
from model.capture import capture
from model.datasets import Dataset, load
from model.deepcaps import DeepCaps, DeepCapsShape
from model.emulation import Emulator
from model.emulation.lookup import best_level
from model.emulation.terms import term_table
from model.errors import RedcaneError
from model.qfile import load as qfile_load
from model.qfile import save
from model.qnetwork import FORMATS, Adder, Coding, Format, Product, QAdd, QConvCaps, QConvCaps3D, QNetwork
from model.quantize import DEEPCAPS_OPERATIONS, quantize
from model.quantize import image_codes as quantize_images
from model.recipe import TrainingRecipe
from model.training import accuracy, initial, train
from tests.random_deepcaps import deepcaps
from tests.random_networks import image_codes

ENGINES = ["torch", *([best_level()] if best_level() else [])]


@pytest.mark.parametrize("engine", ENGINES)
@given(deepcaps(), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=12, deadline=None, phases=[Phase.generate])
def test_the_emulation_equals_the_reference(engine: str, network: QNetwork, seed: int, tiled: bool) -> None:
    images = image_codes(np.random.default_rng(seed), network, 3)
    trace = Emulator(network, memory=1 if tiled else 2**26, engine=engine).run(images)
    for n, image in enumerate(images):
        wanted = reference.run(network, image)
        assert list(wanted) == list(trace)
        for name, value in wanted.items():
            np.testing.assert_array_equal(trace[name][n].numpy(), value, err_msg=name)


def term(p: Product, table: np.ndarray, a: int, b: int) -> int:
    if p.format == "twos-complement":
        return int(table[a & 255, b & 255])
    if p.format == "affine":
        za, zb = p.a.zero_point, p.b.zero_point
        return int(table[a, b]) - zb * a - za * b + za * zb
    ma = abs(a) << p.align if p.a.kind == "signed" else a
    mb = abs(b) << p.align if p.b.kind == "signed" else b
    return int(table[ma, mb]) * (-1 if (a < 0) ^ (b < 0) else 1)


@given(deepcaps(), st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None, phases=[Phase.generate])
def test_the_new_layers_are_what_the_page_says(network: QNetwork, seed: int) -> None:
    trace = reference.run(network, image_codes(np.random.default_rng(seed), network, 1)[0])
    layers = {layer.name: (layer, [trace[name] for name in sources]) for layer, sources in network.sources()}
    conv1, (x,) = layers["cell1.conv1"]
    assert isinstance(conv1, QConvCaps)
    maps = trace["cell1.conv1.mac"]
    height, width, channels = maps.shape
    assert (height, width) == (-(-network.image[0] // 2), -(-network.image[1] // 2))
    mac, table = conv1.conv.mac, network.tables[conv1.conv.mac.component]
    for y, column, c in itertools.product(range(height), range(width), range(channels)):
        acc = int(conv1.conv.bias[c])
        for dy, dx, i in itertools.product(range(3), range(3), range(x.shape[2])):
            row, place = 2 * y + dy - 1, 2 * column + dx - 1
            inside = 0 <= row < x.shape[0] and 0 <= place < x.shape[1]
            code = int(x[row, place, i]) if inside else mac.a.zero_point
            acc += term(mac, table, code, int(conv1.conv.weights[c, dy, dx, i]))
        assert maps[y, column, c] == mac.requantizer(np.array(acc))
    assert trace["cell1.conv1.squash"].shape == (height, width, channels // conv1.capsule_dim, conv1.capsule_dim)

    skip, (u,) = layers["cell2.skip"]
    assert isinstance(skip, QConvCaps3D)
    votes, dim = trace["cell2.skip.votes"], skip.capsule_dim
    mac, table = skip.conv.mac, network.tables[skip.conv.mac.component]
    height, width = u.shape[:2]
    for (y, column), i, j, d in itertools.product(
        np.ndindex(height, width), range(skip.in_types), range(votes.shape[2]), range(dim)
    ):
        acc = int(skip.conv.bias[j * dim + d])
        for dy, dx, e in itertools.product(range(3), range(3), range(u.shape[3])):
            row, place = y + dy - 1, column + dx - 1
            inside = 0 <= row < height and 0 <= place < width
            code = int(u[row, place, i, e]) if inside else mac.a.zero_point
            acc += term(mac, table, code, int(skip.conv.weights[j * dim + d, dy, dx, e]))
        assert votes[y * width + column, i, j, d] == mac.requantizer(np.array(acc))
    for place in range(height * width):  # every position is routed by itself
        alone: reference.Trace = {}
        v = reference.routing(skip, network.tables, votes[place], alone)
        np.testing.assert_array_equal(trace[skip.output][place], v)
        for name, value in alone.items():
            np.testing.assert_array_equal(trace[name][place], value)

    classes, (deep, shallow) = layers["classcaps"]
    assert len(deep.reshape(-1, dim)) + len(shallow.reshape(-1, dim)) == trace["classcaps.votes"].shape[0]
    first = reference.products(
        classes.votes,  # type: ignore[union-attr]  # the class capsules
        network.tables[classes.votes.component],  # type: ignore[union-attr]
        deep.reshape(-1, dim)[0][:, None, None],
        classes.weights[0],  # type: ignore[union-attr]
    )
    np.testing.assert_array_equal(trace["classcaps.votes"][0], classes.votes.requantizer(first.sum(axis=0)))  # type: ignore[union-attr]


scales = st.floats(2.0**-12, 2.0**-4)


def codings(kind: str) -> st.SearchStrategy[Coding]:
    return st.builds(Coding, st.just(kind), scales, st.integers(0, 255) if kind == "affine" else st.just(0))


@given(codings("signed"), codings("signed") | codings("affine"), codings("signed") | codings("affine"),
       st.integers(0, 2**32 - 1))  # fmt: skip
@settings(max_examples=200, deadline=None, phases=[Phase.generate])
def test_a_sum_is_that_of_the_values(a: Coding, b: Coding, out: Coding, seed: int) -> None:
    adder = Adder.for_codings(a, b, out)
    assert max(adder.multipliers) < 2**16 and 1 <= adder.shift <= 16
    random = np.random.default_rng(seed)
    x, y = (random.integers(c.lo, c.hi + 1, 64).astype(np.int16) for c in (a, b))
    q = adder(x, y)
    exact = (a.decode(x) + b.decode(y)) / out.scale + out.zero_point
    slack = 0.5 + (np.abs(x - a.zero_point) + np.abs(y - b.zero_point)) / 2.0 ** (adder.shift + 1) + 1e-9
    assert (np.abs(q - np.clip(exact, out.lo, out.hi)) <= slack).all()
    for qa, qb, got in zip(x.tolist(), y.tolist(), q.tolist(), strict=True):
        wide = (qa - a.zero_point) * adder.multipliers[0] + (qb - b.zero_point) * adder.multipliers[1]
        wanted = ((wide + 2 ** (adder.shift - 1)) >> adder.shift) + out.zero_point
        assert got == min(max(wanted, out.lo), out.hi) and abs(wide) < 2**31


SHAPE = DeepCapsShape(
    image=(8, 8, 1), classes=10, conv_channels=8, types=3, dims=(4, 4, 8, 8), class_dim=8, iterations=2
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[DeepCaps, Dataset]:
    digits = load("digits")
    network = initial(SHAPE, 0)
    recipe = TrainingRecipe(epochs=3, batch=48, learning_rate=0.005, shift=0, rotation=0, scale=0)
    train(network, digits, recipe, tmp_path_factory.mktemp("deepcaps") / "checkpoint")
    assert isinstance(network, DeepCaps)
    return network, digits


@pytest.mark.parametrize("number_format", FORMATS)
def test_a_quantised_deepcaps_classifies_as_the_float_one(
    trained: tuple[DeepCaps, Dataset], tmp_path: Path, number_format: Format
) -> None:
    network, digits = trained
    quantized = quantize(network, torch.from_numpy(digits.train.images[:500]), number_format)
    assert [key for key, _, _ in quantized.products()] == list(DEEPCAPS_OPERATIONS)
    codes = quantize_images(quantized, digits.test.images)
    trace = Emulator(quantized).run(codes[:100])
    wanted = reference.run(quantized, codes[0])
    assert all(np.array_equal(trace[name][0].numpy(), value) for name, value in wanted.items())
    right = float((Emulator(quantized).classify(codes) == digits.test.labels).mean())
    assert right > 0.8 and abs(right - accuracy(network, digits.test.images, digits.test.labels)) < 0.03
    taps = {}

    def keep(layer, operation, output, iteration, operands):  # type: ignore[no-untyped-def]
        taps[f"{layer}.{operation}"] = output
        return output

    with torch.inference_mode():
        network(torch.from_numpy(digits.test.images[:100]), keep)
    for layer in quantized.layers:  # the sums stay close to the float ones all the way
        if isinstance(layer, QAdd):
            real, out = taps[f"{layer.name}.add"].numpy(), layer.adder.out
            error = np.abs(out.decode(trace[layer.output].numpy()) - real)
            assert error.mean() < 0.04 and error.max() < 0.6
    save(quantized, tmp_path / "qmodel")
    loaded = qfile_load(tmp_path / "qmodel")
    np.testing.assert_array_equal(Emulator(loaded).classify(codes[:50]), trace["class"][:50].numpy())


def test_even_channels_compute_the_same_and_lose_less_in_8_bits(trained: tuple[DeepCaps, Dataset]) -> None:
    network, digits = trained
    uneven, images = copy.deepcopy(network), torch.from_numpy(digits.train.images[:200])
    with torch.no_grad():
        uneven.norm.weight *= torch.logspace(0, 2, 8)
        uneven.norm.bias *= torch.logspace(0, 2, 8)
        uneven.cell1.conv1.weight /= torch.logspace(0, 2, 8)[:, None, None]
        uneven.norm.weight[7] = uneven.norm.bias[7] = 0  # one that is dead
    even = copy.deepcopy(uneven)
    even.even_channels()
    weight, bias = (tensor.detach() for tensor in even.folded_conv1())
    largest = torch.maximum(weight.abs().amax((1, 2, 3)), bias.abs())
    torch.testing.assert_close(largest[:7], largest[:1].expand(7))
    assert largest[7] == 0

    def error(net: DeepCaps) -> float:
        """Of the class capsules, root mean square, with conv1 and what reads it in 8 bits."""
        quantized = quantize(net, images)
        squash = quantized.layers[-1].squash  # type: ignore[union-attr]  # class capsules
        trace = Emulator(quantized).run(quantize_images(quantized, images.numpy()))
        out = torch.from_numpy(squash.out.decode(trace["classcaps.squash.2"].numpy()))
        with torch.inference_mode():
            return float((out - uneven(images)).square().mean().sqrt())

    with torch.inference_mode():
        torch.testing.assert_close(even(images), uneven(images), rtol=1e-3, atol=1e-5)
    assert error(even) < 0.7 * error(uneven)


def test_operands_are_sampled_from_every_operation(trained: tuple[DeepCaps, Dataset]) -> None:
    network, digits = trained
    quantized = quantize(network, torch.from_numpy(digits.train.images[:100]))
    codes = quantize_images(quantized, digits.train.images[:8])
    sampled = capture(Emulator(quantized), codes, sums=256)
    assert list(sampled) == list(DEEPCAPS_OPERATIONS)
    for key, product, count in quantized.products():
        assert sampled[key].pairs.shape[1] == count
        exact = quantized.tables[product.component]
        assert np.abs(sampled[key].error(exact, exact)).max() == 0
    # The sums of the votes of the 3D layer are sums that the network really has.
    trace = Emulator(quantized).run(codes)
    skip = next(layer for layer in quantized.layers if isinstance(layer, QConvCaps3D))
    product = skip.conv.mac
    terms = term_table(product, quantized.tables[product.component]).reshape(-1)
    found = product.requantizer(terms[sampled["cell4.skip.votes"].pairs].sum(axis=1).astype(np.int64))
    assert set(found.tolist()) <= set(trace["cell4.skip.votes"].numpy().ravel().tolist())


def test_formats_of_one_tensor_and_boundaries_of_the_hardware(trained: tuple[DeepCaps, Dataset]) -> None:
    network, digits = trained
    images = torch.from_numpy(digits.train.images[:100])
    formats: dict[str, Format] = dict.fromkeys(DEEPCAPS_OPERATIONS, "sign-magnitude")
    mixed = quantize(network, images, formats | {"conv1.mac": "affine", "cell2.conv3.mac": "affine"})
    assert {p.format for _, p, _ in mixed.products()} == {"sign-magnitude", "affine"}
    for key in ("cell1.skip.mac", "cell4.skip.votes", "cell4.skip.agreement", "classcaps.votes"):
        with pytest.raises(RedcaneError, match="give them one"):
            quantize(network, images, formats | {key: "affine"})
    program = compile_network(mixed, (MultiplierKind("exact", "exact"),), Size(batch=2))
    trace = reference.run(mixed, quantize_images(mixed, digits.train.images[:1])[0])
    regions = {emission.boundary: emission.region for emission in program.emissions.values()}
    assert {name: region.shape for name, region in regions.items()} == {
        name: codes.shape for name, codes in trace.items()
    }
