"""Fine-tuning: its forward pass is the integer network, it recovers accuracy, and it survives a kill."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from model import reference, training
from model.calibration import Calibration
from model.capsnet import CapsNet, CapsNetShape
from model.datasets import Dataset, load
from model.deepcaps import DeepCaps, DeepCapsShape
from model.emulation import Emulator
from model.finetune import StraightThrough, finetune, take_weights, with_weights
from model.fitting import Fitting
from model.network import Network, build
from model.qnetwork import Format, QAdd, QClassCaps, QNetwork
from model.quantize import image_codes, quantize
from model.recipe import TrainingRecipe
from model.training import initial, margin_loss, train

SHAPE = CapsNetShape(
    image=(8, 8, 1), conv_channels=16, conv_kernel=3, primary_types=4, primary_dim=8,
    primary_kernel=3, primary_stride=2, classes=10, class_dim=8,
)  # fmt: skip
DEEP = DeepCapsShape((8, 8, 1), 10, conv_channels=8, types=4, dims=(4, 4, 4, 4), class_dim=8)
RECIPE = TrainingRecipe(epochs=3, patience=3, learning_rate=1e-3)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


@pytest.fixture(scope="module")
def trained(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> CapsNet:
    network = initial(SHAPE, 0)
    train(network, digits, TrainingRecipe(epochs=16), tmp_path_factory.mktemp("trained") / "checkpoint")
    assert isinstance(network, CapsNet)
    return network


def truncated(bits: int) -> np.ndarray:
    """A multiplier that ignores the operands' lowest bits: every product is too small."""
    kept = np.arange(256) >> bits << bits
    return np.outer(kept, kept).astype(np.uint16)


def aggressive(network: Network, digits: Dataset, bits: int, form: Format = "sign-magnitude") -> QNetwork:
    """Truncated multipliers everywhere, in the routing by no more than 3 bits: coupling coefficients begin at 25."""
    quantized = quantize(network, plain(network, digits), form)
    routing = ("weighted_sum", "agreement")
    of = {key: str(min(bits, 3) if key.endswith(routing) else bits) for key, _, _ in quantized.products()}
    return quantized.with_components(of, {name: truncated(int(name)) for name in of.values()})


def plain(network: Network, digits: Dataset) -> Calibration:
    """Of all training images; weights have the nearest codes."""
    return Calibration(network, torch.from_numpy(digits.train.images), fit=False)


def copy_of(network: Network) -> Network:
    other = build(network.shape)
    other.load_state_dict(network.state_dict())
    return other


def accuracy(network: QNetwork, digits: Dataset) -> float:
    return float((Emulator(network).classify(image_codes(network, digits.test.images)) == digits.test.labels).mean())


def are_the_references(capsules: torch.Tensor, quantized: QNetwork, images: torch.Tensor) -> None:
    layer = quantized.layers[-1]
    assert isinstance(layer, QClassCaps)
    for image, found in zip(image_codes(quantized, images), capsules.detach().numpy(), strict=True):
        codes = reference.run(quantized, image)[f"classcaps.squash.{layer.iterations}"]
        out = layer.squash.out
        np.testing.assert_array_equal(np.rint(found / out.scale) + out.zero_point, codes)


def other_classes(digits: Dataset, images: int) -> torch.Tensor:
    """Wrong labels (N, J) of the first test images."""
    labels = torch.from_numpy(digits.test.labels[:images] + 1) % digits.classes
    return torch.nn.functional.one_hot(labels, digits.classes)


def reaches_every_weight(loss: torch.Tensor, network: Network) -> None:
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("form", ["sign-magnitude", "affine"])
def test_forward_is_the_reference_and_backward_reaches_every_weight(
    form: Format, bfloat16: bool, trained: CapsNet, digits: Dataset
) -> None:
    quantized = aggressive(trained, digits, 3, form)
    images = torch.from_numpy(digits.test.images[:3])
    network = copy_of(trained)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):  # the integers stay what they are
        capsules = StraightThrough(quantized)(network, images)
    are_the_references(capsules, quantized, images)
    with torch.inference_mode():
        assert torch.equal(StraightThrough(quantized)(network, images), capsules)
    reaches_every_weight(margin_loss(capsules, other_classes(digits, 3)), network)


def deep(digits: Dataset) -> DeepCaps:
    """A fresh DeepCaps whose batch normalisation has seen images."""
    network = initial(DEEP, 1)
    assert isinstance(network, DeepCaps)
    network.train()
    with torch.no_grad():
        for _ in range(20):
            network(torch.from_numpy(digits.train.images[:100]))
        network.norm.weight.uniform_(0.5, 1.5)
    return network.eval()


@pytest.mark.parametrize("form", ["sign-magnitude", "affine"])
def test_a_deepcaps_too(form: Format, digits: Dataset) -> None:
    network = deep(digits)
    quantized = aggressive(network, digits, 2, form)
    images = torch.from_numpy(digits.test.images[:2])
    network.train()  # as a training has it
    capsules = StraightThrough(quantized)(network, images)
    are_the_references(capsules, quantized, images)
    reaches_every_weight(margin_loss(capsules, other_classes(digits, 2)), network)
    for old, new in zip(quantized.layers, with_weights(quantized, network).layers, strict=True):
        if not isinstance(old, QClassCaps | QAdd):
            assert not isinstance(new, QClassCaps | QAdd)
            np.testing.assert_array_equal(old.conv.weights, new.conv.weights)
            np.testing.assert_array_equal(old.conv.bias, new.conv.bias)


def test_fine_tuning_a_deepcaps_lowers_the_loss(digits: Dataset, tmp_path: Path) -> None:
    few = dataclasses.replace(digits, train=dataclasses.replace(
        digits.train, images=digits.train.images[:400], labels=digits.train.labels[:400]))  # fmt: skip
    network = deep(digits)
    gain, seen = network.norm.weight.clone(), network.norm.num_batches_tracked.clone()
    recipe = TrainingRecipe(epochs=2, patience=2, batch=50, shift=0, rotation=0, scale=0)
    history, (_, loss) = finetune(network, aggressive(network, digits, 2), few, recipe, tmp_path / "checkpoint")
    assert history.best >= 0 and history.validation_loss[history.best] < 0.8 * loss
    assert not torch.equal(network.norm.weight, gain)
    assert torch.equal(network.norm.num_batches_tracked, seen), "what it has learnt of images stays"


def test_its_own_weights_change_nothing_and_large_ones_saturate(trained: CapsNet, digits: Dataset) -> None:
    quantized = aggressive(trained, digits, 4)
    again = with_weights(quantized, trained)
    louder = copy_of(trained)
    with torch.no_grad():
        louder.conv1.weight *= 2
    twice = with_weights(quantized, louder)
    for old, new, loud in zip(quantized.layers, again.layers, twice.layers, strict=True):
        if isinstance(old, QClassCaps):
            assert isinstance(new, QClassCaps)
            np.testing.assert_array_equal(old.weights, new.weights)
            continue
        assert not isinstance(new, QClassCaps) and not isinstance(loud, QClassCaps)
        np.testing.assert_array_equal(old.conv.weights, new.conv.weights)
        np.testing.assert_array_equal(old.conv.bias, new.conv.bias)
        if old.name == "conv1":
            assert np.abs(loud.conv.weights).max() == 127 and (np.abs(loud.conv.weights) == 127).sum() > 1
            assert loud.conv.mac == old.conv.mac


@pytest.mark.parametrize("form", ["sign-magnitude", "affine"])
def test_it_starts_from_the_codes_that_the_quantised_network_has(
    form: Format, trained: CapsNet, digits: Dataset
) -> None:
    for network in (copy_of(trained), deep(digits)):
        calibration = Calibration(network, torch.from_numpy(digits.train.images[:300]))
        exact = quantize(network, calibration, form)
        of = {key: "3" for key, _, _ in exact.products()}
        fitted = Fitting(network, calibration)(exact.with_components(of, {"3": truncated(3)}))
        before = with_weights(fitted, network).layers[0].conv.weights
        assert (before != fitted.layers[0].conv.weights).any(), "they are not the nearest"
        take_weights(network, fitted)
        for old, new in zip(fitted.layers, with_weights(fitted, network).layers, strict=True):
            if not isinstance(old, QAdd):
                codes = [q.weights if isinstance(q, QClassCaps) else q.conv.weights for q in (old, new)]
                np.testing.assert_array_equal(*codes)
                if not isinstance(old, QClassCaps):
                    np.testing.assert_array_equal(old.conv.bias, new.conv.bias)


@pytest.mark.parametrize("distill", [False, True])
def test_it_recovers_most_of_what_an_aggressive_assignment_loses(
    distill: bool, trained: CapsNet, digits: Dataset, tmp_path: Path
) -> None:
    exact = accuracy(quantize(trained, torch.from_numpy(digits.train.images)), digits)
    quantized = aggressive(trained, digits, 5)
    before = accuracy(quantized, digits)
    network, longer = copy_of(trained), dataclasses.replace(RECIPE, epochs=8, patience=8)
    history, (validation, loss) = finetune(network, quantized, digits, longer, tmp_path / "checkpoint", distill)
    after = accuracy(with_weights(quantized, network), digits)
    assert exact - before > 0.1, "the assignment hurts"
    assert exact - after < (exact - before) / 2, (exact, before, after)
    assert history.validation[history.best] > validation and history.validation_loss[history.best] < loss


def test_distilling_learns_the_float_network_and_no_labels(trained: CapsNet, digits: Dataset, tmp_path: Path) -> None:
    quantized, images = aggressive(trained, digits, 5), torch.from_numpy(digits.test.images)
    wrong = dataclasses.replace(digits, train=dataclasses.replace(digits.train, labels=(digits.train.labels + 1) % 10))

    def distance(network: Network) -> float:
        with torch.inference_mode():
            return float(
                (StraightThrough(quantized)(network, images) - trained(images)).square().sum(dim=(1, 2)).mean()
            )

    network = copy_of(trained)
    history, _ = finetune(network, quantized, wrong, RECIPE, tmp_path / "checkpoint", distill=True)
    assert history.best >= 0 and distance(network) < 0.6 * distance(trained)
    labels, _ = finetune(copy_of(trained), quantized, wrong, RECIPE, tmp_path / "checkpoint")
    assert min(history.validation) > max(labels.validation) + 0.2, "and a checkpoint of the other kind is not taken"


@pytest.mark.parametrize("distill", [False, True])
def test_killed_after_any_epoch_it_ends_with_the_same_weights(
    distill: bool, trained: CapsNet, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = dataclasses.replace(digits, train=dataclasses.replace(
        digits.train, images=digits.train.images[:200], labels=digits.train.labels[:200]))  # fmt: skip
    quantized = aggressive(trained, digits, 5)
    whole = copy_of(trained)
    outcome = finetune(whole, quantized, few, RECIPE, tmp_path / "whole", distill)
    assert outcome[0].best >= 0
    save = training._save

    def save_and_die(*arguments) -> None:  # type: ignore[no-untyped-def]
        save(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_save", save_and_die)
    for _ in range(RECIPE.epochs):
        with pytest.raises(KeyboardInterrupt):
            finetune(copy_of(trained), quantized, few, RECIPE, tmp_path / "killed", distill)
    monkeypatch.setattr(training, "_save", save)
    network = copy_of(trained)
    assert finetune(network, quantized, few, RECIPE, tmp_path / "killed", distill) == outcome
    for one, other in zip(network.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)
    other = aggressive(trained, digits, 4)  # for other multipliers that checkpoint is nobody's
    assert finetune(copy_of(trained), other, few, RECIPE, tmp_path / "killed", distill) != outcome


def test_what_makes_it_worse_is_not_taken(trained: CapsNet, digits: Dataset, tmp_path: Path) -> None:
    network, quantized = copy_of(trained), aggressive(trained, digits, 0)
    recipe = TrainingRecipe(epochs=1, patience=1, learning_rate=0.5)
    history, before = finetune(network, quantized, digits, recipe, tmp_path / "checkpoint")
    assert history.best == -1 and history.validation_loss[0] > before[1]
    take_weights(start := copy_of(trained), quantized)
    for one, other in zip(network.parameters(), start.parameters(), strict=True):
        assert torch.equal(one, other)
