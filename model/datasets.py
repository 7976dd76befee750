"""Images to train and test on: scikit-learn's digits, and MNIST and Fashion-MNIST in their official files.

Every dataset has a training, a validation and a test split; nothing is ever chosen by the test split.
Loads without torch.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.errors import RedcaneError
from model.files import read_bounded

FILE_LIMIT = 64 * 2**20  # bytes of a compressed file
IMAGE_LIMIT = 100_000  # images in a file


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W), float32 in [0, 1], and their labels (N,), int64."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A dataset in its three splits."""

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int

    @property
    def image(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        channels, height, width = self.train.images.shape[1:]
        return height, width, channels

    def digest(self) -> str:
        """SHA-256 (hex) of all images and labels, split by split."""
        total = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            total.update(np.ascontiguousarray(split.images).tobytes() + split.labels.tobytes())
        return total.hexdigest()


@dataclass(frozen=True)
class _Source:
    """Where a dataset in idx files comes from: folders on the web, tried in this order, and the files' MD5."""

    urls: tuple[str, ...]
    md5: dict[str, str]
    validation: int  # images of the training file that validate


_TRAIN_IMAGES, _TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
_TEST_IMAGES, _TEST_LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"

# MD5 is what the owners and torchvision publish of these files.
_SOURCES = {
    "mnist": _Source(
        urls=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",  # PyTorch's mirror: the owner's server often refuses
            "https://yann.lecun.com/exdb/mnist/",
        ),
        md5={
            _TRAIN_IMAGES: "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            _TRAIN_LABELS: "d53e105ee54ea40749a09fcbcd1e9432",
            _TEST_IMAGES: "9fb629c4189551a2d022fa330f9573f3",
            _TEST_LABELS: "ec29112dd5afa0611ce80d1b7f02629c",
        },
        validation=5000,
    ),
    "fashion-mnist": _Source(
        urls=(
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        md5={
            _TRAIN_IMAGES: "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            _TRAIN_LABELS: "25c81989df183df01b3e8a0aad5dffbe",
            _TEST_IMAGES: "bef4ecab320f06d8554ea6380940ec79",
            _TEST_LABELS: "bb300cfdad3c16e7a12a480ee83cd310",
        },
        validation=5000,
    ),
}

NAMES = ("digits", *_SOURCES)
"""The datasets that `load` knows."""


def load(name: str, data_dir: Path | None = None, seed: int = 0) -> Dataset:
    """Load a dataset; `seed` chooses the validation images, the test images are always the same.

    The official idx files of MNIST and Fashion-MNIST are looked for in the folder `name` inside `data_dir`, else inside
    $REDCANE_DATA, else downloaded into the user's cache. Files from a folder are checked in their structure, downloaded
    ones by checksum too. Raises RedcaneError for an unknown name, and for missing, truncated or foreign files.
    """
    if name == "digits":
        return _digits(seed)
    if name not in _SOURCES:
        raise RedcaneError(f"dataset: {name!r} is unknown; choose one of {', '.join(NAMES)}")
    source, files = _SOURCES[name], _locate(name, data_dir)
    train = _idx_split(files[_TRAIN_IMAGES], files[_TRAIN_LABELS])
    test = _idx_split(files[_TEST_IMAGES], files[_TEST_LABELS])
    if len(train) <= source.validation:
        raise RedcaneError(
            f"{files[_TRAIN_IMAGES]}: {len(train)} images are too few: {source.validation} are kept for validation"
        )
    order = np.random.default_rng(seed).permutation(len(train))
    validation, rest = np.sort(order[: source.validation]), np.sort(order[source.validation :])
    return Dataset(name, _subset(train, rest), _subset(train, validation), test, classes=10)


def _subset(split: Split, indices: NDArray) -> Split:
    return Split(split.images[indices], split.labels[indices])


def _digits(seed: int) -> Dataset:
    """1,797 handwritten digits of 8 x 8 pixels (0..16), stratified: 20 % test, 20 % of the rest validation."""
    # Slow to import, and of use here only.
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # it has no stubs
    from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]

    images, labels = load_digits(return_X_y=True)
    everything = Split((images.reshape(-1, 1, 8, 8) / 16).astype(np.float32), labels.astype(np.int64))
    rest, test = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=0, stratify=labels)
    train, validation = train_test_split(rest, test_size=0.2, random_state=seed, stratify=labels[rest])
    train, validation, test = (_subset(everything, np.sort(indices)) for indices in (train, validation, test))
    return Dataset("digits", train, validation, test, classes=10)


def _locate(name: str, data_dir: Path | None) -> dict[str, Path]:
    """The four files of a dataset, by their official names."""
    folder = None
    if data_dir is not None:
        folder = data_dir / name
        if not folder.is_dir():
            raise RedcaneError(f"{folder}: no such folder; put the official {_TRAIN_IMAGES} and the others there")
    elif os.environ.get("REDCANE_DATA"):
        folder = Path(os.environ["REDCANE_DATA"]) / name
    if folder is not None and folder.is_dir():
        return {file: folder / file for file in _SOURCES[name].md5}
    return {file: _download(name, file) for file in _SOURCES[name].md5}


def _download(name: str, file: str) -> Path:
    """Fetch one file into the user's cache, unless it is there already; its checksum is verified either way."""
    import pooch  # type: ignore[import-untyped]  # no stubs; only those who download need it

    source = _SOURCES[name]
    reasons = []
    for url in source.urls:
        try:
            checksum, folder = f"md5:{source.md5[file]}", pooch.os_cache("redcane") / name
            return Path(pooch.retrieve(url + file, checksum, fname=file, path=folder, progressbar=True))
        except (OSError, ValueError) as error:  # requests' errors are OSErrors; a wrong checksum is a ValueError
            reasons.append(f"{url}: {type(error).__name__}")
    raise RedcaneError(
        f"{name}: {file} could not be downloaded ({'; '.join(reasons)}); "
        f"fetch it yourself and name its folder's parent with --data or $REDCANE_DATA"
    )


def _idx_split(images: Path, labels: Path) -> Split:
    pixels, classes = read_idx(images, (28, 28)), read_idx(labels, ())
    if len(pixels) != len(classes):
        raise RedcaneError(f"{labels}: {len(classes)} labels, but {images.name} beside it has {len(pixels)} images")
    if classes.max() > 9:
        raise RedcaneError(f"{labels}: label {classes.max()} is not one of the ten classes")
    return Split((pixels[:, None] / np.float32(255)).astype(np.float32), classes.astype(np.int64))


def read_idx(path: Path, item: tuple[int, ...]) -> NDArray[np.uint8]:
    """Read a gzipped idx file of unsigned bytes (yann.lecun.com/exdb/mnist) whose items have the shape `item`.

    Returns (N, *item). Raises RedcaneError when it is not such a file, is truncated, or holds more than it declares.
    """
    dimensions = 1 + len(item)
    with gzip.GzipFile(fileobj=io.BytesIO(read_bounded(path, FILE_LIMIT))) as stream:
        try:
            header = stream.read(4 + 4 * dimensions)
            if header[:4] != bytes((0, 0, 8, dimensions)) or len(header) < 4 + 4 * dimensions:
                raise RedcaneError(f"{path}: not an idx file of bytes in {dimensions} dimensions (magic number)")
            count, *sizes = (int.from_bytes(header[4 * i : 4 * i + 4], "big") for i in range(1, dimensions + 1))
            if tuple(sizes) != item or not 1 <= count <= IMAGE_LIMIT:
                raise RedcaneError(f"{path}: declares {count} items of shape {tuple(sizes)}, expected {item}")
            expected = count * math.prod(item)
            content = stream.read(expected + 1)  # never more, whatever the gzip stream would expand to
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise RedcaneError(f"{path}: not a whole gzip file ({error}); fetch it again") from None
    if len(content) != expected:
        differs = "shorter" if len(content) < expected else "longer"
        raise RedcaneError(f"{path}: {differs} than the {count} items that it declares")
    return np.frombuffer(content, np.uint8).reshape(count, *item)
