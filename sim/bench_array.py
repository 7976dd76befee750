"""The array against sums of `model.reference.products`, new operands every cycle."""

from __future__ import annotations

from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import FallingEdge

from model.qnetwork import Coding, Product, Requantizer
from model.reference import products
from sim.bench import begin, code_bytes, inputs, kinds_tables, report

LATENCY = 2


def random_product(chance: np.random.Generator, signed_table: bool, affine: bool) -> Product:
    """A product of a format that goes with the table, with zero points and alignment of any value."""
    out, requantizer = Coding("signed", 1.0), Requantizer(2**15, 15, 0, -127, 127)
    if signed_table:
        return Product("twos-complement", out, out, out, requantizer, "", int(chance.integers(2)))
    if affine:
        a, b = (Coding("affine", 1.0, int(chance.choice([0, 255, int(chance.integers(256))]))) for _ in range(2))
        return Product("affine", a, b, out, requantizer, "")
    a, b = (Coding(chance.choice(["signed", "unsigned"]), 1.0) for _ in range(2))
    return Product("sign-magnitude", a, b, out, requantizer, "", int(chance.integers(2)))


def codes(chance: np.random.Generator, coding: Coding, shape: tuple[int, ...]) -> np.ndarray:
    """Codes of a coding: all at one end, all at the other, or random."""
    ends = chance.choice([coding.lo, coding.hi])
    drawn = chance.integers(coding.lo, coding.hi + 1, shape)
    return (np.full(shape, ends) if chance.random() < 0.2 else drawn).astype(np.int16)


@cocotb.test
async def every_sum_is_the_references(dut: Any) -> None:
    told, chance = inputs(), np.random.default_rng(cocotb.RANDOM_SEED)
    tables = kinds_tables(told)
    rows, columns = told["rows"], told["columns"]
    await begin(dut, a=0, b=0, row_valid=0, a_signed=0, b_signed=0, align=0, kind=0, za=0, zb=0)
    width = len(dut.sums) // columns
    greatest = 0
    for job in range(told["jobs"]):
        kind = int(chance.integers(len(tables)))
        job_product = random_product(chance, told["signed"][kind], told["affine"] and job % 2 == 0)
        a_coding, b_coding = job_product.a, job_product.b
        for name, value in {
            "a_signed": a_coding.kind == "signed", "b_signed": b_coding.kind == "signed", "align": job_product.align,
            "kind": kind, "za": a_coding.zero_point, "zb": b_coding.zero_point,
        }.items():  # fmt: skip
            getattr(dut, name).value = int(value)
        expected: list[list[int]] = []
        for cycle in range(told["words"] + LATENCY):
            if cycle >= LATENCY:
                word = dut.sums.value.to_unsigned()
                fields = [word >> (width * c) & ((1 << width) - 1) for c in range(columns)]
                got = [field - ((field >> (width - 1)) << width) for field in fields]
                assert got == expected[cycle - LATENCY], f"{job_product}: {got}, not {expected[cycle - LATENCY]}"
                greatest = max(greatest, *map(abs, got))
            if cycle < told["words"]:
                a, b = codes(chance, a_coding, (rows,)), codes(chance, b_coding, (rows, columns))
                valid = chance.random(rows) < chance.choice([0.0, 0.5, 1.0])
                terms = products(job_product, tables[kind], a[:, None], b) * valid[:, None]
                expected.append(terms.sum(axis=0).tolist())
                dut.a.value = int.from_bytes(code_bytes(a, a_coding.kind == "signed"), "little")
                dut.b.value = int.from_bytes(code_bytes(b, b_coding.kind == "signed"), "little")
                dut.row_valid.value = sum(int(bit) << row for row, bit in enumerate(valid))
            await FallingEdge(dut.clk)
    report({"sums": told["jobs"] * told["words"] * columns, "greatest": greatest})
