"""EvoApproxLib's release v1.0, from its owner or from a copy: the paper's 8-bit unsigned multipliers, and the signed.

V. Mrazek et al., EvoApprox8b, DATE 2017; github.com/ehw-fit/evoapproxlib, MIT licence. What arrives is held against the
hashes of the 49 product tables, so that it is the right release, whole, whatever way it came: archives of one tag are
packed anew now and then, and the same name is another circuit in another release.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import IO, cast

from platformdirs import user_cache_dir

from model.errors import RedcaneError
from model.multipliers.library import Library, circuits_in, import_folder, is_of_release
from model.multipliers.netlist import extract_many
from model.multipliers.product_table import table_digest

URL = "https://github.com/ehw-fit/evoapproxlib/archive/refs/tags/v1.0.tar.gz"
ARCHIVE_LIMIT = 256 * 2**20  # bytes
MEMBERS_LIMIT = 50_000
FILE_LIMIT = 2**20  # bytes of one Verilog file
FILES_LIMIT = 500

# The first 64 bits of the SHA-256 of every product table (model.multipliers.product_table.table_digest).
TABLES = {
    "mul8u_125K": "e124a151ef680d23",
    "mul8u_12N4": "692217b9134448d5",
    "mul8u_13QR": "f8f3dd4d4c2456ea",
    "mul8u_1446": "532b88aaa0760233",
    "mul8u_14VP": "6b2aea54bf1591be",
    "mul8u_150Q": "36fe6d0ecf122ef6",
    "mul8u_17C8": "350c9badb980be6d",
    "mul8u_17KS": "93e54a567e706f43",
    "mul8u_17QU": "4a004fb524751500",
    "mul8u_185Q": "1f369024f5f9e2d2",
    "mul8u_18DU": "87b9380c92c1813b",
    "mul8u_199Z": "fa43239bcee7b97c",
    "mul8u_19DB": "0f573171066e2730",
    "mul8u_1AGV": "aabf91b42c5a4b1c",
    "mul8u_1JFF": "0c6fd3441f139fb5",
    "mul8u_2AC": "6d9689c5cf8c58c0",
    "mul8u_2HH": "f152878afbd79e9a",
    "mul8u_2P7": "0805220859ecef56",
    "mul8u_7C1": "e236d5bf20b0c623",
    "mul8u_96D": "a22e4e8fdf736dd7",
    "mul8u_CK5": "fe72a1372039f102",
    "mul8u_DM1": "7af1df4839ed9a5d",
    "mul8u_EXZ": "e227b8d013f31aad",
    "mul8u_FTA": "af929606d6b54397",
    "mul8u_GS2": "157648dece3bca83",
    "mul8u_JQQ": "1082871274d31be7",
    "mul8u_JV3": "d356547ba1b5feb3",
    "mul8u_KEM": "edae36ca1a753dc5",
    "mul8u_L40": "22a18242d34f3a3e",
    "mul8u_NGR": "b864ca0c6722fe2a",
    "mul8u_PKY": "a9ed5213b34db683",
    "mul8u_QJD": "cb6fae640a94fb0a",
    "mul8u_QKX": "900d16ba02577e5a",
    "mul8u_Y48": "e5bfdb613024cced",
    "mul8u_YX7": "8fcbe95adc281825",
    "mul8u_ZFB": "b7bcd29c60484060",
    "mul8s_1KR3": "53c285989be8f832",
    "mul8s_1KR6": "9a8616bab666bfde",
    "mul8s_1KR8": "cca1e3aa53a958b0",
    "mul8s_1KRC": "a973c057b4718077",
    "mul8s_1KTY": "6f7d9fb30f67ceb2",
    "mul8s_1KV8": "5cecff7e22049d00",
    "mul8s_1KVA": "5731ee1dac928033",
    "mul8s_1KVB": "8110624a2ae9062f",
    "mul8s_1KVL": "bd68050c9de3de7d",
    "mul8s_1KX2": "9f75944973b0cb2e",
    "mul8s_1L1G": "c6125693dd61ae4a",
    "mul8s_1L2D": "01885eb6088b2bdf",
    "mul8s_1L2H": "99c9a3a62a4b9624",
}


def fetch(source: Path | None = None, name: str = "evoapprox") -> Library:
    """Import EvoApproxLib v1.0 as the library `name`: from a folder, an archive (tar or zip), or, without `source`,
    its owner.

    Raises RedcaneError, and adds nothing, when the source cannot be had or read, is over the bounds, or is not that
    release: a circuit is missing, or has another product table.
    """
    if source is not None and source.is_dir():
        return _import_checked(source, name)
    with tempfile.TemporaryDirectory(prefix="redcane-evoapprox-") as folder:
        archive = source if source is not None else _download()
        try:
            unpack(archive, Path(folder))
            return _import_checked(Path(folder), name)
        except RedcaneError:
            if source is None:
                archive.unlink(missing_ok=True)  # the next try downloads anew
            raise


def unpack(archive: Path, folder: Path) -> None:
    """Copy the Verilog of the 8 x 8 multipliers out of an archive, and nothing else.

    A member's content goes to a place of our own naming, so no path of the archive can lead out of `folder`. Raises
    RedcaneError for what is no archive, or a larger one than the release could be.
    """
    if not archive.is_file():
        raise RedcaneError(f"{archive}: no such folder or archive")
    if archive.stat().st_size > ARCHIVE_LIMIT:
        raise RedcaneError(f"{archive}: larger than the {ARCHIVE_LIMIT >> 20} MiB that this release may have")
    try:
        count = 0
        for member, stream in _members(archive):
            path = PurePosixPath(member)
            if not is_of_release(path):
                continue
            count += 1
            if count > FILES_LIMIT:
                raise RedcaneError(f"{archive}: more than {FILES_LIMIT} multipliers: not EvoApproxLib v1.0")
            text = stream.read(FILE_LIMIT + 1)
            if len(text) > FILE_LIMIT:
                raise RedcaneError(f"{archive}: {member[:100]} is larger than {FILE_LIMIT >> 10} KiB")
            kind = "8x8_signed" if path.name.startswith("mul8s_") else "8x8_unsigned"
            place = folder / kind / str(count) / path.name
            place.parent.mkdir(parents=True)
            place.write_bytes(text)
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        EOFError,
        OSError,
        ValueError,
        NotImplementedError,
        RuntimeError,
        zlib.error,
        lzma.LZMAError,
    ) as bad:
        raise RedcaneError(f"{archive}: not a whole tar or zip archive ({' '.join(str(bad).split())[:100]})") from None
    if not count:
        raise RedcaneError(f"{archive}: it holds no 8x8_unsigned/**/mul8u_*.v and no 8x8_signed: not EvoApproxLib v1.0")


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Every regular file of an archive: its name and content."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            for number, info in enumerate(packed.infolist()):
                _bound(archive, number)
                if not info.is_dir():
                    with packed.open(info) as stream:
                        yield info.filename, stream
        return
    with _unpacked(archive) as whole, tarfile.open(
        fileobj=cast(IO[bytes], _Bounded(whole, archive)), mode="r|"  # it reads, and nothing else
    ) as packed_tar:
        for number, member in enumerate(packed_tar):
            _bound(archive, number)
            if member.isfile():
                found = packed_tar.extractfile(member)
                if found is not None:
                    with closing(found):
                        yield member.name, found


def _unpacked(archive: Path) -> IO[bytes]:
    """The bytes of a tar archive, whatever it is compressed with."""
    with archive.open("rb") as stream:
        start = stream.read(6)
    for magic, opener in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open)):
        if start.startswith(magic):
            return cast(IO[bytes], opener(archive, "rb"))
    return archive.open("rb")


class _Bounded:
    """A stream that ends with RedcaneError after ARCHIVE_LIMIT bytes: tarfile would skip or hold whatever is there."""

    def __init__(self, stream: IO[bytes], archive: Path) -> None:
        self._stream, self._archive, self._left = stream, archive, ARCHIVE_LIMIT

    def read(self, size: int) -> bytes:
        content = self._stream.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise RedcaneError(f"{self._archive}: more than {ARCHIVE_LIMIT >> 20} MiB when it is unpacked: not "
                               "EvoApproxLib v1.0")  # fmt: skip
        return content


def _bound(archive: Path, number: int) -> None:
    if number >= MEMBERS_LIMIT:
        raise RedcaneError(f"{archive}: more than {MEMBERS_LIMIT} files: not EvoApproxLib v1.0")


def _download() -> Path:
    import pooch  # type: ignore[import-untyped]  # it has no stubs

    try:
        # no hash of the archive, which its host packs anew at will; the tables' hashes hold what is in it
        return Path(pooch.retrieve(URL, known_hash=None, fname="evoapproxlib-v1.0.tar.gz",
                                   path=user_cache_dir("redcane"), progressbar=True))  # fmt: skip
    except Exception as problem:  # whatever the network comes up with
        reason = " ".join(str(problem).split())[:120]
        raise RedcaneError(
            f"{URL} could not be downloaded ({reason}): get the release elsewhere and give it with --from PATH"
        ) from None


def _import_checked(folder: Path, name: str) -> Library:
    """Import a folder if it holds the 49 circuits, each with its table."""
    circuits = circuits_in(folder)
    found = {c.module: table_digest(c.table) for c in extract_many(circuits)}
    for module, expected in TABLES.items():
        if module not in found:
            raise RedcaneError(f"{folder}: {module} is missing: not the whole of EvoApproxLib v1.0")
        if not found[module].startswith(expected):
            raise RedcaneError(f"{folder}: {module} is another circuit than in EvoApproxLib v1.0: take that release")
    return import_folder(folder, name)
