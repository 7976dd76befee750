"""CIFAR-10's and SVHN's files as their owners write them, and hostile ones."""

import gzip
import io
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io  # type: ignore[import-untyped]  # it has no stubs

from model import image_files
from model.errors import RedcaneError
from model.image_files import CIFAR_TEST, CIFAR_TRAIN, read_cifar, read_svhn

NAMES = (*CIFAR_TRAIN, *CIFAR_TEST)


def records(count: int) -> bytes:
    random = np.random.default_rng(count).integers(0, 256, (count, 3073), dtype=np.uint8)
    random[:, 0] %= 10
    return random.tobytes()


def archive(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


WHOLE = {f"cifar-10-batches-bin/{name}": records(2) for name in NAMES}


def test_the_archive_holds_what_the_folder_does(tmp_path: Path) -> None:
    packed, folder = tmp_path / "c.tar.gz", tmp_path / "folder"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(records(2))
    packed.write_bytes(archive({"cifar-10-batches-bin/readme.html": b"x", "/etc/passwd": b"x", **WHOLE}))
    for one, other in zip(read_cifar(packed), read_cifar(folder), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    (pixels, labels), test = read_cifar(packed)
    assert pixels.shape == (10, 3, 32, 32) and labels.shape == (10,) and len(test[1]) == 2
    record = np.frombuffer(records(2), np.uint8)
    assert pixels[0, 2, 0, 1] == record[1 + 2048 + 1], "the blue plane, second pixel of the first row"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (archive(WHOLE)[:-3000], "not a whole"),
        (b"<html>", "not a whole"),
        (gzip.compress(b"no tar" * 1000), "not a whole"),
        (archive({k: v for k, v in WHOLE.items() if "test" not in k}), r"test_batch\.bin: 0 bytes"),
        (archive({**WHOLE, "cifar-10-batches-bin/data_batch_3.bin": records(1) + b"x"}), r"data_batch_3\.bin: 3074"),
    ],
)
def test_bad_archives(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "c.tar.gz").write_bytes(content)
    with pytest.raises(RedcaneError, match=words) as caught:
        read_cifar(tmp_path / "c.tar.gz")
    assert "\n" not in str(caught.value)


def test_an_archive_that_is_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "ARCHIVE_LIMIT", 2**20)
    (tmp_path / "c.tar.gz").write_bytes(gzip.compress(bytes(2**22)))
    with pytest.raises(RedcaneError, match="expands to more"):
        read_cifar(tmp_path / "c.tar.gz")


def mat(pixels: np.ndarray, labels: np.ndarray, compressed: bool = True) -> bytes:
    stream = io.BytesIO()
    scipy.io.savemat(stream, {"X": pixels, "y": labels}, do_compression=compressed)
    return stream.getvalue()


PIXELS = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
LABELS = np.array([[1], [10], [3], [9]], np.uint8)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", [np.uint8, np.float64])
def test_svhn(tmp_path: Path, compressed: bool, kind: type) -> None:
    (tmp_path / "x.mat").write_bytes(mat(PIXELS, LABELS.astype(kind), compressed))
    pixels, labels = read_svhn(tmp_path / "x.mat")
    assert pixels.shape == (4, 3, 32, 32) and labels.tolist() == [1, 0, 3, 9]
    assert pixels[2, 1, 30, 5] == PIXELS[30, 5, 1, 2]


def bomb() -> bytes:
    """A file whose one element expands to 64 MiB of a float64 matrix that declares itself small."""
    element = zlib.compress(bytes(2**26), 1)
    return mat(PIXELS, LABELS)[:128] + (15).to_bytes(4, "little") + len(element).to_bytes(4, "little") + element


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>" * 100,
        mat(PIXELS, LABELS)[:-40],
        mat(PIXELS, LABELS)[:3000],
        mat(PIXELS, LABELS, compressed=False)[:5000],
        mat(PIXELS[:16], LABELS),
        mat(PIXELS.astype(np.int16), LABELS),
        mat(PIXELS, LABELS[:3]),
        mat(PIXELS, LABELS - 1),
        mat(PIXELS, LABELS + 0.5),
        mat(PIXELS, np.array([["a"]] * 4)),
        bomb(),
    ],
    ids=range(12),
)
def test_bad_matlab_files(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "MAT_LIMIT", 2**24)
    (tmp_path / "x.mat").write_bytes(content)
    with pytest.raises(RedcaneError, match=r"x\.mat: (not|X of|labels)") as caught:
        read_svhn(tmp_path / "x.mat")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_flipped_bytes_never_crash_the_matlab_reader(tmp_path: Path) -> None:
    whole = mat(PIXELS, LABELS, compressed=False)
    random = np.random.default_rng(1)
    path = tmp_path / "x.mat"
    for _ in range(1000):
        damaged = bytearray(whole)
        for place in random.integers(0, 240, 3):  # the headers; the rest is pixels
            damaged[place] = random.integers(0, 256)
        path.write_bytes(damaged)
        try:
            pixels, labels = read_svhn(path)
        except RedcaneError:
            continue
        assert pixels.shape == (4, 3, 32, 32) and labels.max() <= 9
