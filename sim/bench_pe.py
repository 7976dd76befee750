"""The PE against `model.reference.products`, for the multipliers' own tables."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import FallingEdge

from model.qnetwork import Coding, Format, Product, Requantizer
from model.reference import products
from sim.bench import begin, code_bytes, inputs, kinds_tables, report

EXTREMES = {True: [-127, -126, -1, 0, 1, 64, 127], False: [0, 1, 2, 127, 128, 254, 255]}


def job(signed_table: bool, a_signed: bool, b_signed: bool, align: int) -> Product:
    """A product of operands of these codings; one on a signed table is in two's complement."""
    a, b = (Coding("signed" if s else "unsigned", 1.0) for s in (a_signed, b_signed))
    number_format: Format = "twos-complement" if signed_table else "sign-magnitude"
    return Product(number_format, a, b, b, Requantizer(2**15, 15, 0, -127, 127), "", align)


@cocotb.test
async def every_product_is_the_tables(dut: Any) -> None:
    told, chance = inputs(), random.Random(cocotb.RANDOM_SEED)
    tables = kinds_tables(told)
    await begin(dut, a=0, b=0, a_signed=0, b_signed=0, align=0, valid=0, kind=0)
    checked = negative = idle = 0
    for kind, a_signed, b_signed, align in product(range(len(tables)), (False, True), (False, True), (0, 1)):
        if told["signed"][kind] and not (a_signed and b_signed):
            continue  # the format has no such operands
        wanted = job(told["signed"][kind], a_signed, b_signed, align)
        drawn = [[chance.randint(c.lo, c.hi) for c in (wanted.a, wanted.b)] for _ in range(told["pairs"])]
        a, b = np.array([*product(EXTREMES[a_signed], EXTREMES[b_signed]), *drawn], np.int16).T
        expected = products(wanted, tables[kind], a, b)
        for name, value in {"kind": kind, "a_signed": a_signed, "b_signed": b_signed, "align": align}.items():
            getattr(dut, name).value = int(value)
        operands = zip(code_bytes(a, a_signed), code_bytes(b, b_signed), strict=True)
        for (a_byte, b_byte), term in zip(operands, expected.tolist(), strict=True):
            valid = chance.random() < 0.9
            dut.a.value, dut.b.value, dut.valid.value = a_byte, b_byte, int(valid)
            await FallingEdge(dut.clk)
            got, term = dut.product.value.to_signed(), term if valid else 0
            assert got == term, f"kind {kind}, {a_byte:#04x} * {b_byte:#04x}, {valid=}: {got}, not {term}"
            checked, negative, idle = checked + 1, negative + (got < 0), idle + (not valid)
    report({"checked": checked, "negative": negative, "idle": idle})
