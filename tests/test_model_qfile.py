"""qmodel/ there and back, and everything that is wrong with one refused in a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from random_deepcaps import deepcaps
from random_networks import networks
from test_model_quantize import images, network

from model.errors import RedcaneError
from model.files import digest
from model.qfile import load, save
from model.qnetwork import QNetwork
from model.quantize import quantize


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return type(a) is type(b) and a == b


@given(networks() | deepcaps())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_there_and_back(tmp_path: Path, made: QNetwork) -> None:
    save(made, tmp_path / "qmodel")
    assert same(asdict(load(tmp_path / "qmodel")), asdict(made))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(quantize(network(), images()), tmp_path / "qmodel")
    return tmp_path / "qmodel"


def test_the_same_network_gives_the_same_bytes(folder: Path) -> None:
    before = digest(folder)
    save(load(folder), folder)
    assert digest(folder) == before


def test_quantised_network_there_and_back(folder: Path) -> None:
    assert same(asdict(load(folder)), asdict(quantize(network(), images())))


def put(*path: str | int, value: Any) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for part in path[:-1]:
            data = data[part]
        if value is None:
            del data[path[-1]]
        else:
            data[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("schema", value=1), "schema"),
        (put("schema", value=None), "schema"),
        (put("extra", value=1), "extra"),
        (put("layers", value=[]), "layers"),
        (put("layers", 0, "kind", value="pool"), "layers.0"),
        (put("layers", 0, "stride", value="1"), "stride"),
        (put("layers", 0, "stride", value=0), "stride"),
        (put("layers", 0, "stride", value=70), "stride|too small|missing|instead"),
        (put("layers", 0, "mac", "extra", value=1), "extra"),
        (put("layers", 0, "mac", "format", value="float"), "format"),
        (put("layers", 0, "mac", "align", value=2), "align"),
        (put("layers", 0, "mac", "component", value="other"), "other"),
        (put("layers", 0, "mac", "requantizer", "shift", value=48), "requantiser"),
        (put("layers", 0, "mac", "requantizer", "multiplier", value=2**15 - 1), "requantiser"),
        (put("layers", 0, "mac", "requantizer", "lo", value=-5), "limits"),
        (put("layers", 0, "mac", "a", "scale", value=0.5), "neighbours"),
        (put("layers", 0, "mac", "b", "kind", value="affine"), "affine operands"),
        (put("layers", 0, "mac", "b", "scale", value=-1.0), "scale"),
        (put("layers", 0, "mac", "b", "zero_point", value=3), "zero point"),
        (put("layers", 1, "capsule_dim", value=5), "whole capsules"),
        (put("layers", 1, "name", value="conv1"), "two layers"),
        (put("layers", 1, "squash", "shift", value=0), "shift"),
        (put("layers", 2, "votes", "out", "scale", value=0.5), "neighbours"),
        (put("layers", 2, "iterations", value=0), "iterations"),
        (put("input", "kind", value="float"), "float codes"),
        (put("layers", 0, "mac", "b", "kind", value="float"), "float codes"),
        (put("layers", 1, "mac", "out", "kind", value="signed"), "float codes"),
        (put("layers", 1, "mac", "requantizer", "floats", value=False), "limits"),
        (put("layers", 2, "agreement", "out", "kind", value="float"), "float codes"),
        (put("layers", 2, "weighted_sum", "requantizer", "hi", value=127), "limits"),
        (put("layers", 2, value=None), "last layer"),
        (put("layers", 1, value=None), "behind primary"),
        (put("layers", 0, "name", value="../x"), "name"),
        (put("image", value=[7, 6]), "image"),
        (put("image", value=[2, 6, 2]), "too small"),
        (put("components", value=[]), "exact"),
    ],
)
def test_bad_json(folder: Path, change: Callable[[Any], None], words: str) -> None:
    data = json.loads((folder / "network.json").read_text())
    change(data)
    (folder / "network.json").write_text(json.dumps(data))
    with pytest.raises(RedcaneError, match=words) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema": NaN}', "[" * 100_000, "\xff\xfe", "null"])
def test_no_json(folder: Path, text: str) -> None:
    (folder / "network.json").write_text(text, encoding="latin-1")
    with pytest.raises(RedcaneError, match=r"network\.json"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("conv1.weights", None, "missing"),
        ("surplus", np.zeros(1, np.int16), "belongs to nothing"),
        ("conv1.bias", np.zeros(4, np.int32), "instead of int32"),
        ("conv1.bias", np.zeros(5, np.float32), "instead of int32"),
        ("conv1.bias", np.full(5, 2**31 - 1, np.int32), "overflow"),
        ("conv1.weights", np.zeros((5, 3, 3, 1), np.int16), "instead of int16"),
        ("conv1.weights", np.full((5, 3, 3, 2), 128, np.int16), "no signed codes"),
        ("conv1.weights", np.zeros((5, 0, 3, 2), np.int16), "instead of int16"),
        ("tables.exact", np.zeros((255, 256), np.uint16), "instead of uint16"),
        ("classcaps.exp", np.full(256, 2000, np.uint16), "exponentials"),
        ("classcaps.weights", np.zeros((12, 4, 65, 6), np.int16), "more than 64"),
    ],
)
def test_bad_tensors(folder: Path, name: str, tensor: np.ndarray | None, words: str) -> None:
    path = folder / "tensors.safetensors"
    tensors = safetensors.numpy.load(path.read_bytes())
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    path.write_bytes(safetensors.numpy.save(tensors))
    with pytest.raises(RedcaneError, match=words):
        load(folder)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated(folder: Path, keep: int) -> None:
    path = folder / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RedcaneError, match=r"tensors\.safetensors"):
        load(folder)


def test_missing(folder: Path) -> None:
    (folder / "tensors.safetensors").unlink()
    with pytest.raises(RedcaneError, match=r"tensors\.safetensors"):
        load(folder)
    with pytest.raises(RedcaneError, match=r"network\.json"):
        load(folder / "nowhere")
