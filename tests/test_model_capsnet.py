"""The CapsNet against the paper's formulas written out with loops."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from model.capsnet import CapsNet, CapsNetShape
from model.capsules import lengths, route, squash
from model.errors import RedcaneError

SMALL = CapsNetShape(
    image=(6, 5, 2), conv_channels=3, conv_kernel=3, primary_types=2, primary_dim=4,
    primary_kernel=2, primary_stride=1, classes=5, class_dim=6, decoder=(7,),
)  # fmt: skip


def test_squash_keeps_direction_and_shortens() -> None:
    s = torch.randn(50, 8, dtype=torch.float64)
    norm = s.norm(dim=1)
    v = squash(s)
    torch.testing.assert_close(v.norm(dim=1), norm**2 / (1 + norm**2), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(v / v.norm(dim=1, keepdim=True), s / norm[:, None])


def test_no_nan_at_zero() -> None:
    s = torch.zeros(2, 3, requires_grad=True)
    lengths(squash(s)).sum().backward()
    assert s.grad is not None and torch.isfinite(s.grad).all()


def test_routing_is_procedure_1() -> None:
    votes = torch.randn(1, 4, 3, 2)
    u = votes[0].double().numpy()
    b = np.zeros((4, 3))
    for _ in range(3):
        c = np.exp(b) / np.exp(b).sum(axis=1, keepdims=True)
        v = np.zeros((3, 2))
        for j in range(3):
            s = sum(c[i, j] * u[i, j] for i in range(4))
            v[j] = s * np.linalg.norm(s) / (1 + s @ s)
        for i, j in itertools.product(range(4), range(3)):
            b[i, j] += u[i, j] @ v[j]
    np.testing.assert_allclose(route(votes, 3)[0].numpy(), v, rtol=1e-4, atol=1e-6)


def test_capsules_are_cut_from_channels() -> None:
    network = CapsNet(SMALL)
    taps = {}

    def keep(layer, operation, output, iteration, operands):  # type: ignore[no-untyped-def]
        taps[layer, operation, iteration] = (output, operands)
        return output

    network(torch.rand(2, 2, 6, 5), keep)
    maps, (s,) = taps["primary", "mac", 0][0], taps["primary", "squash", 0][1]
    for y, x, kind, d in itertools.product(range(3), range(2), range(2), range(4)):
        torch.testing.assert_close(s[:, (y * 2 + x) * 2 + kind, d], maps[:, kind * 4 + d, y, x])
    votes, (u, weight) = taps["classcaps", "votes", 0]
    torch.testing.assert_close(votes[1, 7, 3], u[1, 7] @ weight[7, :, 3])
    k = taps["classcaps", "softmax", 2][0]
    torch.testing.assert_close(k.sum(dim=2), torch.ones(2, 12))  # over the OUTPUT capsules
    assert ("classcaps", "agreement", 1) in taps and ("classcaps", "agreement", 2) not in taps


def test_a_tap_changes_what_follows() -> None:
    network = CapsNet(SMALL)
    images = torch.rand(2, 2, 6, 5)

    def zero(layer, operation, output, iteration, operands):  # type: ignore[no-untyped-def]
        return torch.zeros_like(output) if (layer, operation) == ("primary", "squash") else output

    assert network(images).abs().max() > 0
    assert network(images, zero).abs().max() == 0


def test_parameters_and_reconstruction() -> None:
    torch.manual_seed(1)  # of some seeds, all of the decoder's seven hidden values are zero
    network = CapsNet(SMALL)
    names = {name: tuple(p.shape) for name, p in network.named_parameters() if not name.startswith("decoder")}
    assert names == {
        "conv1.weight": (3, 2, 3, 3), "conv1.bias": (3,), "primary.weight": (8, 3, 2, 2), "primary.bias": (8,),
        "classcaps.weight": (12, 4, 5, 6),
    }  # fmt: skip
    capsules = torch.rand(2, 5, 6)
    labels = torch.tensor([1, 4])
    images = network.reconstruct(capsules, labels)
    assert images.shape == (2, 2, 6, 5)
    capsules[0, 2] += 1  # not the labelled one: masked
    torch.testing.assert_close(network.reconstruct(capsules, labels), images)
    capsules[0, 1] += 1
    assert not torch.equal(network.reconstruct(capsules, labels), images)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"conv_channels": 0}, "conv_channels"),
        ({"class_dim": 65}, "class_dim"),
        ({"classes": 65}, "classes"),
        ({"conv_kernel": 7}, "too small"),
        ({"primary_kernel": 4}, "too small"),
        ({"image": (6, 5)}, "image"),
        ({"decoder": (0,)}, "decoder"),
        ({"iterations": True}, "iterations"),
    ],
)
def test_bad_shapes(change: dict, words: str) -> None:
    with pytest.raises(RedcaneError, match=words):
        dataclasses.replace(SMALL, **change)
