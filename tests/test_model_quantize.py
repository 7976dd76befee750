"""Quantisation of small float networks: close to the float one, scales as the formats want, errors in one sentence."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import reference
from model.calibration import Calibration, Range
from model.capsnet import CapsNet, CapsNetShape
from model.capsules import lengths
from model.emulation import Emulator
from model.errors import RedcaneError
from model.qnetwork import FLOAT_LIMIT, FORMATS, Coding, Format, Kind, QClassCaps, significant
from model.quantize import OPERATIONS, image_codes, quantize

SHAPE = CapsNetShape(
    image=(7, 6, 2), conv_channels=5, conv_kernel=3, primary_types=3, primary_dim=4,
    primary_kernel=2, primary_stride=2, classes=4, class_dim=6,
)  # fmt: skip


def network(seed: int = 0, shape: CapsNetShape = SHAPE) -> CapsNet:
    torch.manual_seed(seed)
    return CapsNet(shape)


def images(count: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 2, 7, 6, generator=torch.Generator().manual_seed(seed))


@given(st.lists(st.sampled_from(FORMATS), min_size=4, max_size=4), st.integers(0, 1), st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_close_to_the_float_network_in_any_mix_of_formats(mix: list[Format], align: int, seed: int) -> None:
    formats = dict(zip(OPERATIONS, [*mix, mix[-1]], strict=True))  # the routing's two share theirs
    net, x = network(seed), images()
    with torch.inference_mode():
        wanted = lengths(net(x)).numpy()
    q = quantize(net, x, formats, align=align)
    assert {key: p.format for key, p, _ in q.products()} == formats
    last = q.layers[-1]
    assert isinstance(last, QClassCaps)
    v = last.squash.out.decode(Emulator(q).run(image_codes(q, x))["classcaps.squash.3"].numpy())
    assert np.abs(np.sqrt((v**2).sum(axis=-1)) - wanted).max() < 0.05


def test_each_boundary_decodes_to_the_float_tensor() -> None:
    """With the float network's own tensors, layer by layer: no error is larger than a few steps of the code."""
    net, x = network(1), images()
    taps: dict[str, torch.Tensor] = {}

    def keep(layer, operation, output, iteration, operands):  # type: ignore[no-untyped-def]
        taps[f"{layer}.{operation}.{iteration}"] = output
        return output

    with torch.inference_mode():
        net(x[:1], keep)
    for fmt in FORMATS:
        q = quantize(net, x, fmt)
        trace = reference.run(q, image_codes(q, x[:1])[0])
        conv1, primary, caps = q.layers
        pairs = [
            ("conv1.mac", conv1.conv.mac.out, taps["conv1.relu.0"][0].permute(1, 2, 0)),
            ("primary.squash", primary.squash.out, taps["primary.squash.0"][0]),
            ("classcaps.votes", caps.votes.out, taps["classcaps.votes.0"][0]),
            ("classcaps.softmax.2", caps.weighted_sum.a, taps["classcaps.softmax.1"][0].T),
            ("classcaps.agreement.1", caps.agreement.out, taps["classcaps.agreement.0"][0].T),
        ]
        sums, real = primary.conv.mac.out, taps["primary.mac.0"][0].permute(1, 2, 0).numpy()
        off = np.abs(sums.decode(trace["primary.mac"]) - real)
        assert (off < np.abs(real) / 32 + np.abs(real).max() / 64).all()  # five bits, and what conv1 has lost
        for name, coding, wanted in pairs:
            steps = np.abs(coding.decode(trace[name]) - wanted.numpy()) / coding.scale
            assert steps.max() < 6, (fmt, name, steps.max())


def test_codings_follow_the_formats() -> None:
    codings: list[tuple[Format, Kind, Kind]] = [
        ("sign-magnitude", "unsigned", "signed"),
        ("affine", "unsigned", "affine"),
        ("twos-complement", "signed", "signed"),
    ]
    for fmt, positive, kind in codings:
        q = quantize(network(), images(), fmt)
        kinds = {key: (p.a.kind, p.b.kind, p.out.kind) for key, p, _ in q.products()}
        assert kinds == {
            "conv1.mac": (positive, kind, positive),
            "primary.mac": (positive, kind, "float"),
            "classcaps.votes": (kind, kind, kind),
            "classcaps.weighted_sum": (positive, kind, "float"),
            "classcaps.agreement": (kind, kind, "signed"),
        }
        one = 255 if positive == "unsigned" else 127
        assert q.input == Coding(positive, 1 / one)
        assert q.layers[0].conv.mac.requantizer.lo == 0 and {p.align for _, p, _ in q.products()} == {fmt == FORMATS[0]}
        codes = image_codes(q, images())
        assert codes.shape == (40, 7, 6, 2) and codes[3, 2, 1, 1] == round(float(images()[3, 1, 2, 1]) * one)


def test_ranges_are_those_of_all_batches() -> None:
    net, x = network(), images(150)
    found = Calibration(net, x).ranges
    with torch.inference_mode():
        maps = net.conv1(x)
    assert found["conv1.mac"].low == pytest.approx(float(maps.min()), rel=1e-5)
    assert found["conv1.relu"].high == pytest.approx(float(maps.max()), rel=1e-5)


def test_what_squash_reads_keeps_its_whole_range() -> None:
    """One channel far out costs the others little: their codes are fine where they are small."""
    net, x = network(2), images(200)
    net.primary.weight.data[0] *= 30
    found = Calibration(net, x).ranges["primary.mac"]
    q = quantize(net, x)
    sums = q.layers[1].conv.mac.out  # type: ignore[union-attr]  # primary capsules
    assert sums == Coding("float", max(-found.low, found.high) / FLOAT_LIMIT)
    assert q.layers[2].weighted_sum.out.kind == "float"  # type: ignore[union-attr]  # class capsules
    maps = reference.run(q, image_codes(q, x[:1])[0])["primary.mac"]
    assert np.array_equal(maps, significant(maps)) and np.abs(maps).max() > 127


def test_without_fit_weights_get_the_nearest_codes() -> None:
    net, x = network(3), images()
    plain = quantize(net, Calibration(net, x, fit=False))
    fitted = quantize(net, Calibration(net, x))
    for layer, weight in ((0, net.conv1.weight), (1, net.primary.weight)):
        nearest, rounded = plain.layers[layer].conv, fitted.layers[layer].conv
        wanted = nearest.mac.b.encode(weight.detach().double().numpy()).transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(nearest.weights, wanted)
        assert (rounded.weights != wanted).any() and np.abs(rounded.weights - wanted).max() <= 4


@given(st.floats(-100, 100), st.floats(-100, 100), st.sampled_from(("signed", "affine")))
def test_codings_cover_the_range(low: float, high: float, kind: str) -> None:
    found = Range("x")
    if abs(high - low) < 1e-3:
        return
    found.add(torch.tensor([low, high], dtype=torch.float64))
    coding = found.coding(kind)  # type: ignore[arg-type]  # one of the two
    back = coding.decode(coding.encode(np.array([low, high, 0.0])))
    assert np.abs(back - [low, high, 0]).max() <= coding.scale * 1.001 and back[2] == 0


def test_bad_networks() -> None:
    for name in ("conv1.weight", "primary.bias", "classcaps.weight"):
        net = network()
        net.get_parameter(name).data.view(-1)[0] = float("nan")
        with pytest.raises(RedcaneError, match="not numbers"):
            quantize(net, images())
    net = network()
    net.conv1.weight.data.zero_()
    net.conv1.bias.data.fill_(-1)  # the ReLU lets nothing through
    with pytest.raises(RedcaneError, match=r"conv1\.relu: nothing but zeros"):
        quantize(net, images())
    net = network()
    net.classcaps.weight.data.zero_()
    with pytest.raises(RedcaneError, match=r"classcaps\.votes: nothing but zeros"):
        quantize(net, images())


def test_bad_arguments() -> None:
    net, x = network(), images()
    mixed = dict.fromkeys(OPERATIONS, "affine") | {"classcaps.agreement": "sign-magnitude"}
    for words, formats in (
        ("should be sign-magnitude or affine or twos-complement", "float"),
        ("has no format", {"conv1.mac": "affine"}),
        ("no such operation", dict.fromkeys((*OPERATIONS, "conv9.mac"), "affine")),
        ("same votes", mixed),
    ):
        with pytest.raises(RedcaneError, match=words):
            quantize(net, x, formats)  # type: ignore[arg-type]  # the wrong value is the test
    with pytest.raises(RedcaneError, match="align"):
        quantize(net, x, align=2)
    for wrong in (x[0], x[:0], x[:, :1], x.transpose(2, 3)):
        with pytest.raises(RedcaneError, match="calibration"):
            quantize(net, wrong)


def test_sums_that_could_overflow() -> None:
    net = network(shape=CapsNetShape((256, 256, 1), 1, 256, 1, 1, 1, 1, 2, 1))
    with pytest.raises(RedcaneError, match=r"conv1.mac: 65536 products of exact can overflow"):
        quantize(net, torch.rand(2, 1, 256, 256))
    quantize(net, torch.rand(2, 1, 256, 256), "twos-complement")  # whose products are a quarter at most


def test_one_routing_iteration() -> None:
    q = quantize(network(shape=dataclasses.replace(SHAPE, iterations=1)), images())
    assert "classcaps.softmax.1" in Emulator(q).run(image_codes(q, images(1)))
