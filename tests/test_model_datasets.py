"""The loaders: the digits as they are, idx files as their owners write them, and files that are not."""

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io  # type: ignore[import-untyped]  # it has no stubs
import torch

from model import datasets
from model.datasets import load, scaled
from model.errors import RedcaneError
from model.image_files import read_idx


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    (tmp_path / "mnist").mkdir()
    for part, count in (("train", 5010), ("t10k", 7)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = random.integers(0, 10, count, dtype=np.uint8)
        (tmp_path / "mnist" / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images), 1))
        (tmp_path / "mnist" / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels), 1))
    return tmp_path


def test_digits_are_split_by_class() -> None:
    digits = load("digits")
    assert [len(split) for split in (digits.train, digits.validation, digits.test)] == [1149, 288, 360]
    assert digits.image == (8, 8, 1)
    every = np.concatenate([split.images for split in (digits.train, digits.validation, digits.test)])
    assert every.dtype == np.float32 and every.min() == 0 and every.max() == 1
    assert np.array_equal(every * 16, np.round(every * 16))
    shares = np.bincount(digits.test.labels) / np.bincount(load_all_labels())
    assert shares.min() > 0.19 and shares.max() < 0.21


def load_all_labels() -> np.ndarray:
    digits = load("digits")
    return np.concatenate([split.labels for split in (digits.train, digits.validation, digits.test)])


def test_the_seed_moves_validation_but_not_test() -> None:
    one, again, other = load("digits", seed=1), load("digits", seed=1), load("digits", seed=2)
    assert one.digest() == again.digest() != other.digest()
    assert np.array_equal(one.test.images, other.test.images)
    assert not np.array_equal(one.validation.images, other.validation.images)


def test_idx_files_of_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = load("mnist", folder)
    assert (len(given.train), len(given.validation), len(given.test)) == (10, 5000, 7)
    assert given.train.images.shape == (10, 1, 28, 28) and given.train.images.dtype == np.float32
    raw = read_idx(folder / "mnist" / "t10k-images-idx3-ubyte.gz", (28, 28))
    np.testing.assert_array_equal(np.round(given.test.images[:, 0] * 255), raw)
    monkeypatch.setenv("REDCANE_DATA", str(folder))
    assert load("mnist").digest() == given.digest()


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("t10k-images-idx3-ubyte.gz", gzip.compress(idx(np.zeros((7, 28, 28), np.uint8)))[:-20], "whole gzip"),
        ("t10k-images-idx3-ubyte.gz", b"<html>not found</html>", "whole gzip"),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(idx(np.zeros((7, 28, 28), np.uint8))[:-5]), "shorter"),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(idx(np.zeros((7, 28, 28), np.uint8)) + b"x"), "longer"),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(idx(np.zeros((7, 32, 32), np.uint8))), "expected"),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(idx(np.zeros(7, np.uint8))), "magic"),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(b""), "magic"),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(idx(np.zeros((6, 28, 28), np.uint8))), "7 labels"),
        ("t10k-images-idx3-ubyte.gz", gzip.compress(b"\0\0\x08\x03" + b"\xff" * 4 + b"\0\0\0\x1c" * 2), "declares"),
        ("t10k-labels-idx1-ubyte.gz", gzip.compress(idx(np.full(7, 10, np.uint8))), "ten classes"),
        ("train-labels-idx1-ubyte.gz", None, "no such file"),
    ],
)
def test_bad_files(folder: Path, file: str, content: bytes | None, words: str) -> None:
    path = folder / "mnist" / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(RedcaneError, match=words) as caught:
        load("mnist", folder)
    assert "ubyte.gz" in str(caught.value)


def test_a_bomb_is_not_expanded(folder: Path) -> None:
    content = idx(np.zeros((7, 28, 28), np.uint8)) + bytes(200_000_000)
    (folder / "mnist" / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(content, 1))
    with pytest.raises(RedcaneError, match="longer"):
        load("mnist", folder)


def test_cifar_and_svhn_of_a_folder(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    unpacked = tmp_path / "cifar-10" / "cifar-10-batches-bin"
    unpacked.mkdir(parents=True)
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
        records = random.integers(0, 256, (1002, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        (unpacked / f"{name}.bin").write_bytes(records.tobytes())
    given = load("cifar-10", tmp_path)
    assert (len(given.train), len(given.validation), len(given.test)) == (10, 5000, 1002) and given.image == (32, 32, 3)
    np.testing.assert_array_equal(np.round(given.test.images[7].ravel() * 255), records[7, 1:])
    assert given.test.labels[7] == records[7, 0]

    (tmp_path / "svhn").mkdir()
    digits = random.integers(0, 256, (32, 32, 3, 5004), dtype=np.uint8)
    labels = random.integers(1, 11, (5004, 1), dtype=np.uint8)
    for name, count in (("train", 5004), ("test", 30)):
        content = {"X": digits[..., :count], "y": labels[:count]}
        scipy.io.savemat(tmp_path / "svhn" / f"{name}_32x32.mat", content, do_compression=name == "test")
    given = load("svhn", tmp_path)
    assert (len(given.train), len(given.test)) == (4, 30) and given.image == (32, 32, 3)
    np.testing.assert_array_equal(np.round(given.test.images[5, 1] * 255), digits[:, :, 1, 5])
    np.testing.assert_array_equal(given.test.labels, labels[:30, 0] % 10)


def test_images_are_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).random((3, 2, 8, 8), np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(images), (19, 19), mode="bilinear")
    np.testing.assert_allclose(scaled(images, 19), expected.numpy(), atol=1e-6)
    np.testing.assert_array_equal(scaled(images, 8), images)
    digits = load("digits", pixels=16)
    assert digits.image == (16, 16, 1) and digits.train.images.dtype == np.float32
    assert digits.train.images.min() >= 0 and digits.train.images.max() <= 1


def test_unknown_names_and_folders(tmp_path: Path) -> None:
    with pytest.raises(RedcaneError, match="choose one of"):
        load("imagenet")
    with pytest.raises(RedcaneError, match="no such folder"):
        load("mnist", tmp_path)
    (tmp_path / "cifar-10").mkdir()
    with pytest.raises(RedcaneError, match=r"cifar-10-binary\.tar\.gz: no such file; put the official files"):
        load("cifar-10", tmp_path)


def test_a_download_that_fails_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import pooch  # type: ignore[import-untyped]  # it has no stubs

    def refuse(url: str, known_hash: str, **rest: object) -> str:
        assert known_hash.startswith("md5:") and len(known_hash) == 36
        raise ConnectionError("no network here")

    monkeypatch.delenv("REDCANE_DATA", raising=False)
    monkeypatch.setattr(pooch, "retrieve", refuse)
    with pytest.raises(RedcaneError, match=r"could not be downloaded.*--data"):
        load("fashion-mnist")
    secure = {name: source.urls[0].startswith("https:") for name, source in datasets._SOURCES.items()}
    assert [name for name in secure if not secure[name]] == ["svhn"], "its owner has no other; checksums are verified"


def test_loads_without_torch() -> None:
    code = "import model.datasets, sys; model.datasets.load('digits'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
