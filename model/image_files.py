"""Readers of the files in which datasets come: idx (MNIST), CIFAR-10's binary records, SVHN's MATLAB files.

They take files from anywhere: sizes are bounded before anything is allocated, nothing is executed, and whatever is no
such file raises RedcaneError. Pixels are returned as bytes (N, C, H, W) or, from idx files, as they are shaped there.
"""

from __future__ import annotations

import gzip
import io
import math
import tarfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.errors import RedcaneError
from model.files import read_bounded
from model.matfile import read_mat

FILE_LIMIT = 64 * 2**20  # bytes of an idx file, compressed
IMAGE_LIMIT = 100_000  # images in a file
ARCHIVE_LIMIT = 256 * 2**20  # bytes of an archive, compressed or not: CIFAR-10 unpacked has 184 million
CIFAR_RECORD = 1 + 3 * 32 * 32  # label; red, green, blue plane
CIFAR_FOLDER = "cifar-10-batches-bin"
CIFAR_TRAIN, CIFAR_TEST = tuple(f"data_batch_{n}.bin" for n in range(1, 6)), ("test_batch.bin",)
MAT_LIMIT = 256 * 2**20  # bytes of a MATLAB file, compressed or not: SVHN's training images are 225 million

Labelled = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Pixels and labels (N,)."""


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


def read_cifar(path: Path) -> tuple[Labelled, Labelled]:
    """Training and test images of CIFAR-10's binary version: its archive (.tar.gz), or the folder that is inside it."""
    members = _unpacked(path) if not path.is_dir() else {}

    def labelled(names: tuple[str, ...]) -> Labelled:
        parts = []
        for name in names:
            where = path / name
            content = read_bounded(where, FILE_LIMIT) if path.is_dir() else members.get(f"{CIFAR_FOLDER}/{name}", b"")
            count, rest = divmod(len(content), CIFAR_RECORD)
            if rest or not 1 <= count <= IMAGE_LIMIT:
                raise RedcaneError(f"{where}: {len(content)} bytes are not whole records of {CIFAR_RECORD}; fetch it")
            parts.append(np.frombuffer(content, np.uint8).reshape(count, CIFAR_RECORD))
        records = np.concatenate(parts)
        return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]

    return labelled(CIFAR_TRAIN), labelled(CIFAR_TEST)


def _unpacked(path: Path) -> dict[str, bytes]:
    """The regular files of a .tar.gz, by name, in memory; nothing is written anywhere."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(read_bounded(path, ARCHIVE_LIMIT))) as stream:
            content = stream.read(ARCHIVE_LIMIT + 1)
        if len(content) > ARCHIVE_LIMIT:
            raise RedcaneError(f"{path}: expands to more than the {ARCHIVE_LIMIT} bytes that such an archive may have")
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            wanted = {f"{CIFAR_FOLDER}/{name}" for name in (*CIFAR_TRAIN, *CIFAR_TEST)}
            found = {m.name: m for m in archive if m.isreg() and m.name in wanted and m.size <= FILE_LIMIT}
            files = {name: archive.extractfile(member) for name, member in found.items()}
            return {name: file.read(FILE_LIMIT) for name, file in files.items() if file is not None}
    except (EOFError, gzip.BadGzipFile, zlib.error, tarfile.TarError, ValueError) as error:
        raise RedcaneError(f"{path}: not a whole .tar.gz archive ({error}); fetch it again") from None


def read_svhn(path: Path) -> Labelled:
    """Images of one of SVHN's cropped-digit files (MATLAB 5: X (32, 32, 3, N), y (N, 1)); its label 10 means 0."""
    arrays = read_mat(path, MAT_LIMIT)
    pixels, labels = arrays.get("X"), arrays.get("y")
    if pixels is None or labels is None or pixels.dtype != np.uint8 or labels.shape != (pixels.shape[-1], 1):
        raise RedcaneError(f"{path}: not SVHN's cropped digits, which are bytes X and a column of labels y")
    if pixels.shape[:-1] != (32, 32, 3) or not 1 <= len(labels) <= IMAGE_LIMIT:
        raise RedcaneError(f"{path}: X of shape {pixels.shape} is not (32, 32, 3, images)")
    if not np.isin(labels, np.arange(1, 11)).all():
        raise RedcaneError(f"{path}: labels that are not 1 to 10; fetch it again")
    return pixels.transpose(3, 2, 0, 1), labels[:, 0].astype(np.uint8) % 10
