"""DeepCaps: its layers against loops, its counts against the layer arithmetic, and that it learns."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from model import training
from model.capsules import squash
from model.convcaps import ConvCaps, ConvCaps3D
from model.datasets import Dataset, Split, load
from model.deepcaps import DeepCaps, DeepCapsShape
from model.errors import RedcaneError
from model.operations import Counts, Operation, layer_of, operations, total
from model.recipe import TrainingRecipe
from model.resilience import ResilienceSettings, analyze
from model.training import accuracy, evaluate, initial, train
from model.weights import load_weights, save_weights

SMALL = DeepCapsShape(
    image=(9, 8, 2), classes=3, conv_channels=6, types=2, dims=(2, 3, 4, 4), class_dim=5, iterations=2
)  # fmt: skip
DIGITS = DeepCapsShape(
    image=(8, 8, 1), classes=10, conv_channels=16, types=4, dims=(4, 4, 8, 8), class_dim=8, decoder=(8, 16, 8)
)  # fmt: skip
MULTIPLY = {"mac", "votes", "weighted_sum", "agreement"}


def found(edge: int, channels: int) -> dict[str, Operation]:
    return {o.key: o for o in operations(DeepCaps(DeepCapsShape((edge, edge, channels), 10)))}


def test_the_paper_at_64_pixels() -> None:
    at64 = found(64, 3)
    # A 3 x 3 convolution of c channels to d of them at e x e positions multiplies 9 c d e^2 times.
    by_hand = {
        "conv1.mac": 9 * 3 * 128 * 64**2,
        **{f"cell1.{name}.mac": 9 * 128 * 128 * 32**2 for name in ("conv1", "conv2", "conv3", "skip")},
        "cell2.conv1.mac": 9 * 128 * 256 * 16**2,
        **{f"cell2.{name}.mac": 9 * 256 * 256 * 16**2 for name in ("conv2", "conv3", "skip")},
        **{f"cell3.{name}.mac": 9 * 256 * 256 * 8**2 for name in ("conv1", "conv2", "conv3", "skip")},
        **{f"cell4.{name}.mac": 9 * 256 * 256 * 4**2 for name in ("conv1", "conv2", "conv3")},
        "cell4.skip.votes": 4**2 * 32 * 256 * 9 * 8,  # every input type makes all 256 votes of a position
        "cell4.skip.weighted_sum": 3 * 4**2 * 32 * 256,
        "cell4.skip.agreement": 2 * 4**2 * 32 * 256,
        "classcaps.votes": 32 * (4**2 + 8**2) * 8 * 320,
        "classcaps.weighted_sum": 3 * 2560 * 320,
        "classcaps.agreement": 2 * 2560 * 320,
    }
    assert {k: o.counts.multiplications for k, o in at64.items() if o.name in MULTIPLY} == by_hand
    assert sum(by_hand.values()) == 1_346_666_496  # 1.347 G
    first = {k: v for k, v in by_hand.items() if k.endswith(".conv1.mac")}  # strided; Table I counts 4 times
    theirs = sum(v for k, v in by_hand.items() if k.endswith(".mac")) + 3 * sum(first.values())
    assert (theirs, theirs // 9 * 8) == (2_146_959_360, 1_908_408_320)  # its 2.15 G and 1.91 G
    capsules = 32 * 4 * (32**2 + 16**2 + 8**2) + 32 * 3 * 4**2 + 3 * 32 * 4**2 + 3 * 10  # squashed, with the iterations
    every = total(list(at64.values()))
    assert every.square_roots == capsules == 175_134
    assert every.exponentials == 3 * (4**2 * 32 * 32 + 2560 * 10)
    elements = 2 * (4 * 4 * 32 * 32**2 + 8 * (4 * 32 * (16**2 + 8**2) + 6 * 32 * 4**2) + 3 * 320)
    assert every.multiplications == sum(by_hand.values()) + elements
    skips = 32 * (4 * 32**2 + 8 * (16**2 + 8**2 + 4**2))
    assert sum(o.counts.additions for o in at64.values() if o.name == "add") == skips
    # Of n terms, n - 1 are added to the first; only conv1 has a bias, which the batch normalisation left there.
    assert at64["conv1.mac"].counts.additions == by_hand["conv1.mac"]
    assert at64["cell1.conv2.mac"].counts.additions == by_hand["cell1.conv2.mac"] // 1152 * 1151
    assert len(at64) == 2 + 15 * 2 + 4 + 2 * 5


@pytest.mark.parametrize(
    ("edge", "channels", "parameters", "capsules"),
    [(64, 3, 13_358_720, 2560), (32, 3, 8_443_520, 640), (28, 1, 8_441_216, 640)],
)
def test_parameters(edge: int, channels: int, parameters: int, capsules: int) -> None:
    kernels = 9 * (channels * 128 + 4 * 128**2 + 128 * 256 + 3 * 256**2 + 4 * 256**2 + 3 * 256**2 + 8 * 256)
    assert kernels + 2 * 128 + capsules * 8 * 320 == parameters
    shape = DeepCapsShape((edge, edge, channels), 10, decoder=(16, 64, 32, 16))
    assert shape.capsules == capsules
    network = DeepCaps(shape)
    assert network.encoder_parameters() == parameters  # at 32 pixels: 8.44 M
    assert network.reconstruct(torch.rand(2, 10, 32), torch.tensor([1, 4])).shape == (2, channels, edge, edge)


def test_every_operation_of_a_small_network() -> None:
    order = [operation.key for operation in operations(DeepCaps(SMALL))]
    routing = ["votes", "softmax", "weighted_sum", "squash", "agreement"]
    cells = []
    for cell in ("cell1", "cell2", "cell3", "cell4"):
        skip = routing if cell == "cell4" else ["mac", "squash"]
        layers = {"conv1": ["mac", "squash"], "skip": skip, "conv2": ["mac", "squash"], "conv3": ["mac", "squash"]}
        cells += [f"{cell}.{layer}.{name}" for layer, names in layers.items() for name in names] + [f"{cell}.add"]
    assert order == ["conv1.mac", "conv1.relu", *cells, *(f"classcaps.{name}" for name in routing)]
    assert {layer_of(key) for key in order} >= {"conv1", "cell1.conv1", "cell4.skip", "cell4", "classcaps"}
    sizes = {o.key: o.shape for o in operations(DeepCaps(SMALL))}
    assert sizes["cell1.conv1.squash"] == (5, 4, 2, 2) and sizes["cell4.add"] == (1, 1, 2, 4)
    assert sizes["classcaps.votes"] == (2 * (1 + 2), 3, 5) and sizes["cell4.skip.votes"] == (1, 2, 2, 4)
    first = next(o for o in operations(DeepCaps(SMALL)) if o.key == "cell1.conv1.mac")
    assert first.counts == Counts(20 * 4 * 54, 20 * 4 * 53) and first.group == "mac"


def test_convcaps_is_a_convolution_of_the_neighbourhood() -> None:
    layer = ConvCaps(3, 2, 2, 4, kernel=3, stride=2)
    u = torch.randn(1, 5, 4, 3, 2)
    v = layer(u)
    assert v.shape == (1, 3, 2, 2, 4)
    for y, x, kind in itertools.product(range(3), range(2), range(2)):
        s = torch.zeros(4)
        for dy, dx, t, d in itertools.product(range(3), range(3), range(3), range(2)):
            row, column = 2 * y + dy - 1, 2 * x + dx - 1
            if 0 <= row < 5 and 0 <= column < 4:
                s += layer.weight[4 * kind : 4 * kind + 4, 2 * t + d, dy, dx] * u[0, row, column, t, d]
        torch.testing.assert_close(v[0, y, x, kind], squash(s), rtol=1e-4, atol=1e-5)


def test_convcaps3d_routes_at_every_position() -> None:
    layer = ConvCaps3D(3, 2, 2, 4, kernel=3, iterations=3)
    u = torch.randn(1, 2, 3, 3, 2)
    v = layer(u).detach()
    assert v.shape == (1, 2, 3, 2, 4)
    weight = layer.weight.detach()
    for y, x in itertools.product(range(2), range(3)):
        votes = torch.zeros(3, 2, 4)
        for t, j, dy, dx in itertools.product(range(3), range(2), range(3), range(3)):
            row, column = y + dy - 1, x + dx - 1
            if 0 <= row < 2 and 0 <= column < 3:
                votes[t, j] += weight[j, :, :, dy, dx] @ u[0, row, column, t]
        b = torch.zeros(3, 2)
        for _ in range(3):
            s = torch.einsum("tj,tje->je", torch.softmax(b, dim=1), votes)
            b = b + torch.einsum("tje,je->tj", votes, squash(s))
        torch.testing.assert_close(v[0, y, x], squash(s), rtol=1e-4, atol=1e-5)


def test_batch_normalisation_is_folded_into_conv1() -> None:
    network = DeepCaps(SMALL)
    images = torch.rand(16, 2, 9, 8)
    network.train()
    for _ in range(200):
        network.norm(network.conv1(images))
    learning = network(images)
    network.eval()
    with torch.no_grad():
        plain = torch.relu(network.norm(network.conv1(images)))
        seen = {}

        def keep(layer, operation, output, iteration, operands):  # type: ignore[no-untyped-def]
            seen[layer, operation] = output
            return output

        inferred = network(images, keep)
    torch.testing.assert_close(seen["conv1", "relu"], plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(inferred, learning, rtol=0.05, atol=0.02)  # a batch's variance is not the running one


def test_fresh_capsules_are_alive_to_the_end() -> None:
    network = initial(DeepCapsShape((28, 28, 1), 10, types=8), 0).train()
    lengths = {}

    def measure(layer, operation, output, iteration, operands):  # type: ignore[no-untyped-def]
        if operation == "squash":
            lengths[layer] = float(output.norm(dim=-1).mean())
        return output

    with torch.inference_mode():
        network(torch.rand(4, 1, 28, 28), measure)
    assert len(lengths) == 17 and min(lengths.values()) > 0.05 and max(lengths.values()) < 0.95


@pytest.fixture(scope="module")
def few() -> Dataset:
    digits = load("digits")
    parts = (Split(s.images[:160], s.labels[:160]) for s in (digits.train, digits.validation, digits.test))
    return Dataset("few", *parts, digits.classes)  # type: ignore[misc]  # three of them


def test_it_learns_and_a_kill_costs_nothing(few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = TrainingRecipe(epochs=6, batch=32, reconstruction=0.005, seed=1)
    whole, killed = initial(DIGITS, 1), initial(DIGITS, 1)
    before = evaluate(whole, few.train.images, few.train.labels)
    history = train(whole, few, recipe, tmp_path / "whole")
    assert history.loss[-1] < 0.7 * history.loss[0]
    after = evaluate(whole, few.train.images, few.train.labels)
    assert after[1] < before[1] and after[0] > 0.4 > before[0]

    save = training._save

    def save_and_die(*arguments) -> None:  # type: ignore[no-untyped-def]
        save(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        train(killed, few, recipe, tmp_path / "killed")
    monkeypatch.setattr(training, "_save", save)
    again = initial(DIGITS, 1)
    assert train(again, few, recipe, tmp_path / "killed") == history
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))
    save_weights(whole, tmp_path / "network.safetensors", {})
    loaded, _ = load_weights(DIGITS, tmp_path / "network.safetensors")
    assert accuracy(loaded, few.test.images, few.test.labels) == accuracy(whole, few.test.images, few.test.labels)


def test_the_analysis_takes_it(few: Dataset) -> None:
    settings = ResilienceSettings(noise_magnitudes=(0.5, 0.0), seeds=(0,), tolerance_points=0, images=40)
    result = analyze(initial(DIGITS, 1), few.validation, settings)
    assert set(result.groups) == {"mac", "activation", "softmax", "logits"}
    assert "cell4.skip.votes" in result.groups["mac"].operations
    assert not any(key.endswith(".add") for curve in result.groups.values() for key in curve.operations)
    for group, layers in result.layers.items():
        assert {"cell1.conv1", "classcaps"} <= set(layers) or group in ("softmax", "logits")
    result.tolerated_nm("cell2.conv3.mac")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dims": (4, 8, 8)}, "dims"),
        ({"image": (28, 28)}, "image"),
        ({"types": 65}, "types"),
        ({"dims": (4, 8, 8, 65)}, "dims"),
        ({"iterations": 0}, "iterations"),
        ({"decoder": (16,)}, "decoder"),
        ({"image": (28, 30, 1), "decoder": (16, 64, 32, 16)}, "decoder"),
    ],
)
def test_bad_shapes(change: dict, words: str) -> None:
    with pytest.raises(RedcaneError, match=words):
        dataclasses.replace(DeepCapsShape((28, 28, 1), 10), **change)


def test_reconstruction_sees_the_labelled_capsule_only() -> None:
    network = DeepCaps(DIGITS)
    capsules, labels = torch.rand(2, 10, 8), torch.tensor([1, 4])
    images = network.reconstruct(capsules, labels)
    capsules[0, 2] += 1
    torch.testing.assert_close(network.reconstruct(capsules, labels), images)
    swapped = capsules.clone()
    swapped[0, 7] = capsules[0, 1]
    torch.testing.assert_close(network.reconstruct(swapped, torch.tensor([7, 4])), images)  # whichever class it is
    assert np.prod(images.shape) == 2 * 64
