"""Images to train and test on: scikit-learn's digits; MNIST, Fashion-MNIST, CIFAR-10 and SVHN in their official files.

Every dataset has a training, a validation and a test split; nothing is ever chosen by the test split.
Loads without torch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.errors import RedcaneError
from model.image_files import CIFAR_FOLDER, Labelled, read_cifar, read_idx, read_svhn


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
            total.update(np.ascontiguousarray(split.images).data)
            total.update(np.ascontiguousarray(split.labels).data)
        return total.hexdigest()


@dataclass(frozen=True)
class _Source:
    """Where a dataset comes from: folders on the web, tried in this order, the files' MD5, and what reads them."""

    urls: tuple[str, ...]
    md5: dict[str, str]
    read: Callable[[dict[str, Path]], tuple[Split, Split]]  # training and test images of the files, by name
    validation: int = 5000  # images of the training file that validate


_TRAIN_IMAGES, _TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
_TEST_IMAGES, _TEST_LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
_CIFAR = "cifar-10-binary.tar.gz"
_SVHN_TRAIN, _SVHN_TEST = "train_32x32.mat", "test_32x32.mat"


def _idx_splits(files: dict[str, Path]) -> tuple[Split, Split]:
    return _idx_split(files[_TRAIN_IMAGES], files[_TRAIN_LABELS]), _idx_split(files[_TEST_IMAGES], files[_TEST_LABELS])


def _idx_split(images: Path, labels: Path) -> Split:
    pixels, classes = read_idx(images, (28, 28)), read_idx(labels, ())
    if len(pixels) != len(classes):
        raise RedcaneError(f"{labels}: {len(classes)} labels, but {images.name} beside it has {len(pixels)} images")
    return _split(labels, (pixels[:, None], classes))


def _cifar_splits(files: dict[str, Path]) -> tuple[Split, Split]:
    unpacked = files[_CIFAR].parent / CIFAR_FOLDER
    path = unpacked if unpacked.is_dir() else files[_CIFAR]
    train, test = read_cifar(path)
    return _split(path, train), _split(path, test)


def _svhn_splits(files: dict[str, Path]) -> tuple[Split, Split]:
    train, test = (_split(files[name], read_svhn(files[name])) for name in (_SVHN_TRAIN, _SVHN_TEST))
    return train, test


def _split(path: Path, labelled: Labelled) -> Split:
    pixels, classes = labelled
    if classes.max() > 9:
        raise RedcaneError(f"{path}: label {classes.max()} is not one of the ten classes")
    return Split((pixels / np.float32(255)).astype(np.float32, copy=False), classes.astype(np.int64))


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
        read=_idx_splits,
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
        read=_idx_splits,
    ),
    "cifar-10": _Source(
        urls=("https://www.cs.toronto.edu/~kriz/",),
        md5={_CIFAR: "c32a1d4ab5d03f1284b67883e8d87530"},
        read=_cifar_splits,
    ),
    "svhn": _Source(
        urls=("http://ufldl.stanford.edu/housenumbers/",),
        md5={_SVHN_TRAIN: "e26dedcc434d2e4c54c9b2d4a06d8373", _SVHN_TEST: "eb5a983be6a315427106f1b164d9cef3"},
        read=_svhn_splits,
    ),
}

NAMES = ("digits", *_SOURCES)
"""The datasets that `load` knows."""


def load(name: str, data_dir: Path | None = None, seed: int = 0, pixels: int | None = None) -> Dataset:
    """Load a dataset; `seed` chooses the validation images, the test images are always the same.

    The official files are looked for in the folder `name` inside `data_dir`, else inside $REDCANE_DATA, else downloaded
    into the user's cache; of CIFAR-10 that folder may hold the archive or what is in it, the folder
    cifar-10-batches-bin. Files from a folder are checked in their structure, downloaded ones by checksum too. `pixels`
    is the edge to which images are scaled, None leaves them as they are. Raises RedcaneError for an unknown name, and
    for missing, truncated or foreign files.
    """
    if name == "digits":
        dataset = _digits(seed)
    elif name in _SOURCES:
        dataset = _from_files(name, _locate(name, data_dir), seed)
    else:
        raise RedcaneError(f"dataset: {name!r} is unknown; choose one of {', '.join(NAMES)}")
    if pixels is None:
        return dataset
    train, validation, test = (
        Split(scaled(split.images, pixels), split.labels)
        for split in (dataset.train, dataset.validation, dataset.test)
    )
    return replace(dataset, train=train, validation=validation, test=test)


def _from_files(name: str, files: dict[str, Path], seed: int) -> Dataset:
    source = _SOURCES[name]
    train, test = source.read(files)
    if len(train) <= source.validation:
        raise RedcaneError(
            f"{min(files.values())}: {len(train)} images are too few: {source.validation} are kept for validation"
        )
    order = np.random.default_rng(seed).permutation(len(train))
    validation, rest = np.sort(order[: source.validation]), np.sort(order[source.validation :])
    return Dataset(name, _subset(train, rest), _subset(train, validation), test, classes=10)


def scaled(images: NDArray[np.float32], pixels: int) -> NDArray[np.float32]:
    """Images (N, C, H, W) scaled to (N, C, pixels, pixels): bilinear, pixels taken as small squares."""
    height, width = images.shape[2:]
    rows, columns = _interpolation(height, pixels), _interpolation(width, pixels)
    return np.matmul(np.matmul(rows, images), columns.T)


def _interpolation(before: int, after: int) -> NDArray[np.float32]:
    """The matrix (after, before) that interpolates a line of pixels linearly between the middles of their squares."""
    middles = np.clip((np.arange(after) + 0.5) * before / after - 0.5, 0, before - 1)
    return np.maximum(0, 1 - np.abs(middles[:, None] - np.arange(before))).astype(np.float32)


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
    """The files of a dataset, by their official names."""
    folder = None
    if data_dir is not None:
        folder = data_dir / name
        if not folder.is_dir():
            raise RedcaneError(f"{folder}: no such folder; put the official {', '.join(_SOURCES[name].md5)} there")
    elif os.environ.get("REDCANE_DATA"):
        folder = Path(os.environ["REDCANE_DATA"]) / name
    if folder is not None and folder.is_dir():
        for file in _SOURCES[name].md5:
            if not (folder / file).exists() and not (folder / CIFAR_FOLDER).is_dir():
                raise RedcaneError(f"{folder / file}: no such file; put the official files of {name} there")
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

