"""Files that are whole or not there at all: bounded reads, atomic writes, content hashes."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model.errors import RedcaneError


def digest(content: bytes | Path) -> str:
    """SHA-256 (hex) of bytes, of a file, or of a folder (its files' relative names and contents, sorted)."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    if content.is_dir():
        total = hashlib.sha256()
        for file in sorted(p for p in content.rglob("*") if p.is_file()):
            total.update(f"{file.relative_to(content).as_posix()}\0{digest(file)}\n".encode())
        return total.hexdigest()
    with content.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_bounded(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes.

    Raises RedcaneError when the file is missing, is not a regular file, or is larger.
    """
    if not path.exists():
        raise RedcaneError(f"{path}: no such file")
    if not path.is_file():
        raise RedcaneError(f"{path}: not a regular file")
    with path.open("rb") as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise RedcaneError(f"{path}: larger than the {limit} bytes that such a file may have")
    return content


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write beside, then rename: a reader sees the old file or the new one, never a half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to fill; on success it takes the place of `path`, on failure nothing changes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
