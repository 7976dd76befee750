"""A product's terms: format, alignment, signs, zero points and multiplier in one table. NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.multipliers.product_table import Table, check_table
from model.qnetwork import Coding, Product


def code_values(coding: Coding) -> NDArray[np.int64]:
    """The code that each byte stands for (256,): two's complement for `signed` (-128 is no code: 0), else the byte."""
    values = np.arange(256)
    if coding.kind == "signed":
        values = np.where(values < 128, values, values - 256)
        values[128] = 0
    return values


def term_table(product: Product, table: Table) -> NDArray[np.int32]:
    """The term of every pair of operand bytes: (256, 256), row = byte of A, column = byte of B.

    Terms of uint16 tables without zero points lie within -65535 ... 65535, those of int16 tables (the twos-complement
    format) within 16 bits. Raises RedcaneError when the table is not 256 x 256 of uint16 or int16.
    """
    check_table(product.component, table)
    a, b = code_values(product.a)[:, None], code_values(product.b)[None, :]
    if product.format == "twos-complement":
        return table[a & 255, b & 255].astype(np.int32)
    if product.format == "affine":
        za, zb = product.a.zero_point, product.b.zero_point
        return (table[a, b].astype(np.int64) - zb * a - za * b + za * zb).astype(np.int32)
    port_a = np.abs(a) << (product.align if product.a.kind == "signed" else 0)
    port_b = np.abs(b) << (product.align if product.b.kind == "signed" else 0)
    sign = np.where((a < 0) ^ (b < 0), -1, 1)
    return (sign * table[port_a, port_b].astype(np.int64)).astype(np.int32)


def exact_terms(product: Product) -> NDArray[np.int32]:
    """The terms that an exact multiplier would have: (256, 256) like `term_table`."""

    def values(coding: Coding) -> NDArray[np.int64]:
        aligned = product.format == "sign-magnitude" and coding.kind == "signed"
        return (code_values(coding) - coding.zero_point) << (product.align if aligned else 0)

    return np.outer(values(product.a), values(product.b)).astype(np.int32)
