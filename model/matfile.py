"""Numeric arrays from MATLAB 5 files (MathWorks, "MAT-File Format", level 5), for files from anywhere.

scipy.io.loadmat reads many more files, but a few flipped bytes make it crash the interpreter: it is not for files that
others wrote. This reads real numeric arrays, little-endian, compressed or not, and nothing else.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.errors import RedcaneError
from model.files import read_bounded

_MATRIX, _COMPRESSED = 14, 15
_STORED = {1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8"}  # element types of numbers
_NUMERIC = range(6, 14)  # classes of arrays: double, single, int8 ... uint32
_COMPLEX = 0x0800


def read_mat(path: Path, limit: int) -> dict[str, NDArray]:
    """The arrays of a file of at most `limit` bytes, which expand to at most `limit` bytes, by name.

    They have the type in which they are stored, which for small values is a smaller one than the array's class.

    Raises RedcaneError when it is not such a file, is truncated, or holds anything but real numeric arrays.
    """
    content = memoryview(read_bounded(path, limit))
    if content[:19] != b"MATLAB 5.0 MAT-file" or content[126:128] != b"IM":
        raise RedcaneError(f"{path}: not a MATLAB 5 file, little-endian; fetch it again")
    arrays: dict[str, NDArray] = {}
    left = limit
    try:
        for kind, element in _elements(content[128:], padded=False):
            if kind == _COMPRESSED:
                stream = zlib.decompressobj()
                expanded = stream.decompress(element, left)
                if not stream.eof:
                    raise ValueError("it is cut off, or expands to too much")
                ((kind, element),) = _elements(memoryview(expanded), padded=False)
            left -= len(element)
            if kind != _MATRIX or left <= 0:
                raise ValueError("it holds something that is no array, or expands to too much")
            name, array = _matrix(element)
            arrays[name] = array
    except (ValueError, zlib.error) as error:
        raise RedcaneError(f"{path}: not a whole MATLAB 5 file of numeric arrays ({error}); fetch it again") from None
    return arrays


def _elements(content: memoryview, padded: bool = True) -> Iterator[tuple[int, memoryview]]:
    """Type and data of one element after the other; those inside an array are padded to 8 bytes."""
    while len(content):
        if len(content) < 8:
            raise ValueError("it is cut off")
        kind, size, begin = int.from_bytes(content[:4], "little"), int.from_bytes(content[4:8], "little"), 8
        if kind >> 16:  # up to four bytes of data in the tag itself
            kind, size, begin = kind & 0xFFFF, kind >> 16, 4
        if begin + size > len(content) or (begin == 4 and size > 4):
            raise ValueError("it is cut off")
        yield kind, content[begin : begin + size]
        end = begin + size
        content = content[end + (-end % 8 if padded else 0) :]


def _matrix(content: memoryview) -> tuple[str, NDArray]:
    """Name and values of one array element."""
    (_, flags), (_, sizes), (_, name), (stored, data) = _elements(content)  # ValueError for more or fewer
    flag = int.from_bytes(flags[:4], "little")
    shape = tuple(int(size) for size in np.frombuffer(sizes, "<i4"))
    if flag & _COMPLEX or flag & 0xFF not in _NUMERIC or stored not in _STORED:
        raise ValueError("it holds something that is no real numeric array")
    values = np.frombuffer(data, _STORED[stored])
    if len(shape) < 2 or min(shape) < 0 or math.prod(shape) != len(values):
        raise ValueError(f"{len(values)} values for the shape {shape}")
    return bytes(name).decode("latin-1"), values.reshape(shape, order="F")
