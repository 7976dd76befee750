"""Product tables, what a multiplier computes: 256 x 256 products, indexed [a, b] by the bytes at its ports.

The table's type says what the bytes are: uint16 holds the products of a multiplier of unsigned operands, int16 those of
one of operands in two's complement (the byte 0xFF is -1), whose products are two's complement too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.errors import RedcaneError
from model.files import digest

Table = NDArray[np.uint16] | NDArray[np.int16]
SIGNED_BYTES = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.int64)
"""The number that each byte stands for in two's complement, int64 [256]."""


def is_signed(table: Table) -> bool:
    """Whether the operands and products are in two's complement."""
    return table.dtype == np.int16


def check_table(component: str, array: NDArray) -> None:
    """Raise RedcaneError where an array does not have the shape and one of the types of a product table."""
    if array.shape != (256, 256) or array.dtype not in (np.uint16, np.int16):
        raise RedcaneError(f"{component}: a table of {array.shape} {array.dtype} is not 256 x 256 of uint16 or int16")


def exact_table(signed: bool) -> Table:
    """The table of the exact multiplier."""
    if signed:
        return np.multiply.outer(SIGNED_BYTES, SIGNED_BYTES).astype(np.int16)
    return np.multiply.outer(np.arange(256), np.arange(256)).astype(np.uint16)


def kind_of_operands(signed: bool) -> str:
    """How messages and listings call a multiplier's signedness."""
    return "signed" if signed else "unsigned"


def table_digest(table: Table) -> str:
    """SHA-256 (hex) of a product table's 131,072 bytes: little-endian 16-bit words, row by row, a row for each a."""
    return digest(table.astype("<u2").tobytes())
