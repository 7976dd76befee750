"""Published weights: what is stored comes back bit for bit, on every machine, and foreign files are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.capsnet import CapsNet, CapsNetShape
from model.deepcaps import DeepCaps, DeepCapsShape
from model.errors import RedcaneError
from model.published import SIZE_LIMIT, About, Accuracies, encoder, load_published, pack, publish, stored, unpack
from model.weights import read_tensors, write_tensors

SHAPE = CapsNetShape(
    image=(8, 8, 1), conv_channels=4, conv_kernel=3, primary_types=2, primary_dim=4, primary_kernel=3, primary_stride=3,
    classes=10, class_dim=4, decoder=(8,),
)  # fmt: skip
BARE = replace(SHAPE, decoder=())
DEEP = DeepCapsShape((8, 8, 1), 10, conv_channels=4, types=2, dims=(2, 2, 2, 2), class_dim=2)
ABOUT = About(
    name="tiny", dataset="digits", seed=3, trained=Accuracies(validation=0.9, test=0.8),
    stored=Accuracies(validation=0.9, test=0.79), recipe={"train": {"epochs": 3}}, tools={"torch": "2"},
)  # fmt: skip


@pytest.fixture
def network() -> CapsNet:
    torch.manual_seed(0)
    return CapsNet(SHAPE)


@pytest.fixture
def path(network: CapsNet, tmp_path: Path) -> Path:
    publish(network, tmp_path / "x.safetensors", ABOUT)
    return tmp_path / "x.safetensors"


def test_what_is_stored_comes_back_bit_for_bit(network: CapsNet, path: Path) -> None:
    loaded, about = load_published(BARE, path)
    assert about == ABOUT and not loaded.training
    expected = stored(network, BARE).state_dict()
    assert set(expected) == set(encoder(network)) and not any(name.startswith("decoder") for name in expected)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_a_code_is_off_by_half_a_step_at_most(network: CapsNet, path: Path) -> None:
    loaded = load_published(BARE, path)[0].state_dict()
    for name, tensor in encoder(network).items():
        if tensor.ndim < 2:
            assert torch.equal(loaded[name], tensor)
            continue
        step = tensor.flatten(1).abs().amax(dim=1) / 127
        assert ((loaded[name] - tensor).flatten(1).abs() <= 0.5001 * step[:, None]).all()
        assert (loaded[name] != tensor).any()  # it is lossy


def test_the_weights_are_codes_times_scales(path: Path) -> None:
    tensors, _ = read_tensors(path)
    codes, scales = (tensors[f"conv1.weight:{part}"].numpy() for part in ("codes", "scales"))
    assert codes.dtype == np.int8 and scales.dtype == np.float32 and scales.shape == (4,)
    weights = load_published(BARE, path)[0].state_dict()["conv1.weight"].numpy()
    assert np.array_equal(weights, codes.astype(np.float32) * scales[:, None, None, None])
    assert (np.abs(codes).reshape(4, -1).max(axis=1) == 127).all()


def test_deepcaps_with_its_normalisation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = DeepCaps(DEEP)
    network(torch.rand(4, 1, 8, 8))  # moves the batch normalisation's averages
    publish(network, tmp_path / "d.safetensors", ABOUT)
    loaded = load_published(DEEP, tmp_path / "d.safetensors")[0].state_dict()
    for name, tensor in unpack(pack(encoder(network))).items():
        assert torch.equal(loaded[name], tensor), name


def test_a_channel_of_zeros(network: CapsNet, tmp_path: Path) -> None:
    with torch.no_grad():
        network.conv1.weight[1] = 0
    publish(network, tmp_path / "z.safetensors", ABOUT)
    loaded = load_published(BARE, tmp_path / "z.safetensors")[0]
    assert isinstance(loaded, CapsNet) and (loaded.conv1.weight[1] == 0).all() and (loaded.conv1.weight[0] != 0).any()


def test_another_shape_is_refused(path: Path) -> None:
    with pytest.raises(RedcaneError, match=r"conv1\.weight:codes is .* but the configured network needs"):
        load_published(replace(BARE, conv_channels=5), path)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("conv1.weight:codes", torch.full((4, 1, 3, 3), -128, dtype=torch.int8), "code of -128"),
        ("conv1.weight:scales", torch.full((4,), -1.0), "negative scale"),
        ("conv1.weight:scales", torch.full((4,), float("nan")), "not finite"),
        ("conv1.weight:codes", torch.zeros(4, 1, 3, 3), r"is torch\.float32"),
        ("conv1.bias", torch.full((4,), float("inf")), "not finite"),
        ("conv1.bias", None, "no tensor conv1.bias"),
        ("more", torch.zeros(1), "more does not belong"),
    ],
)
def test_damaged_tensors_are_refused(path: Path, name: str, value: torch.Tensor | None, sentence: str) -> None:
    tensors, metadata = read_tensors(path)
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    write_tensors(path, tensors, metadata)
    with pytest.raises(RedcaneError, match=sentence):
        load_published(BARE, path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "[" * 100_000,
        json.dumps({**ABOUT.model_dump(by_alias=True), "schema": 2}),
        json.dumps({**ABOUT.model_dump(by_alias=True), "name": "x" * 1000}),
        json.dumps({**ABOUT.model_dump(by_alias=True), "more": 1}),
        json.dumps({**ABOUT.model_dump(by_alias=True), "trained": {"validation": 1, "test": 7}}),
    ],
)
def test_weights_that_do_not_say_what_they_are(path: Path, text: str) -> None:
    write_tensors(path, read_tensors(path)[0], {"redcane": text})
    with pytest.raises(RedcaneError, match=r"x\.safetensors: does not say what it holds"):
        load_published(BARE, path)


def test_foreign_and_huge_files_are_refused(path: Path, tmp_path: Path) -> None:
    content = path.read_bytes()
    for spoiled in (b"", b"\x80\x04K\x01.", content[:-1], (2**62).to_bytes(8, "little") + content[8:]):
        path.write_bytes(spoiled)
        with pytest.raises(RedcaneError, match="not a whole safetensors file"):
            load_published(BARE, path)
    with path.open("wb") as stream:
        stream.truncate(SIZE_LIMIT + 1)  # sparse
    with pytest.raises(RedcaneError, match="larger than"):
        load_published(BARE, path)
    with pytest.raises(RedcaneError, match="no such file"):
        load_published(BARE, tmp_path / "none")
