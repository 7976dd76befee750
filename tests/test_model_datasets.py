"""The loaders: the digits as they are, idx files as their owners write them, and files that are not."""

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from model import datasets
from model.datasets import load, read_idx
from model.errors import RedcaneError


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


def test_unknown_names_and_folders(tmp_path: Path) -> None:
    with pytest.raises(RedcaneError, match="choose one of"):
        load("imagenet")
    with pytest.raises(RedcaneError, match="no such folder"):
        load("mnist", tmp_path)


def test_a_download_that_fails_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import pooch  # type: ignore[import-untyped]  # it has no stubs

    def refuse(url: str, known_hash: str, **rest: object) -> str:
        assert known_hash.startswith("md5:") and len(known_hash) == 36
        raise ConnectionError("no network here")

    monkeypatch.delenv("REDCANE_DATA", raising=False)
    monkeypatch.setattr(pooch, "retrieve", refuse)
    with pytest.raises(RedcaneError, match=r"could not be downloaded.*--data"):
        load("fashion-mnist")
    assert {url.split(":")[0] for source in datasets._SOURCES.values() for url in source.urls[:1]} == {"https"}


def test_loads_without_torch() -> None:
    code = "import model.datasets, sys; model.datasets.load('digits'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
