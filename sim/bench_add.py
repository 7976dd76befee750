"""The adder of tensors against `model.qnetwork.Adder`: the whole memory afterwards, and the cycles."""

from __future__ import annotations

from typing import Any

import cocotb
import numpy as np

from model.qnetwork import Adder, Coding, Kind
from sim.bench import begin, check_memory, code_bytes, fill, inputs, report, work


def one_of(chance: np.random.Generator, *numbers: int | np.integer) -> int:
    return int(numbers[chance.integers(len(numbers))])


def random_coding(chance: np.random.Generator) -> Coding:
    scale = 2.0 ** chance.uniform(-10, -4)
    kind: Kind = ("signed", "unsigned", "affine")[chance.integers(3)]
    return Coding(kind, scale, one_of(chance, 0, 255, chance.integers(256)) if kind == "affine" else 0)


def random_adder(chance: np.random.Generator) -> Adder:
    """For two scales, or with extreme multipliers and shifts: ties, sums that saturate, nothing but zero."""
    a, b, out = (random_coding(chance) for _ in range(3))
    if chance.random() < 0.5:
        return Adder.for_codings(a, b, out)
    shift = one_of(chance, 1, 16, chance.integers(1, 17))
    ma, mb = (one_of(chance, 0, 1, 65535, 1 << (shift - 1), chance.integers(65536)) for _ in range(2))
    return Adder(a, b, out, (ma, mb), shift)


def codes(chance: np.random.Generator, coding: Coding, count: int) -> np.ndarray:
    """Codes, a third of them at the ends and at zero."""
    drawn = chance.integers(coding.lo, coding.hi + 1, count)
    special = chance.choice([coding.lo, coding.hi, coding.zero_point], count)
    return np.where(chance.random(count) < 1 / 3, special, drawn).astype(np.int16)


@cocotb.test
async def tensors_are_added(dut: Any) -> None:
    told, chance = inputs(), np.random.default_rng(cocotb.RANDOM_SEED)
    lanes, size = told["lanes"], told["size"]
    await begin(dut, start=0, host=0, host_write=0, host_address=0)
    ties = saturated = 0
    for job in range(told["jobs"]):
        unit = random_adder(chance)
        count = one_of(chance, 1, lanes - 1, lanes, lanes + 1, chance.integers(1, size // 4))
        # Three places in any order, with gaps; sometimes the result takes that of an operand.
        gaps = np.sort(chance.integers(0, size - 3 * count + 1, 3))
        places = chance.permutation(gaps + count * np.arange(3)).tolist()
        a, b, destination = places if chance.random() < 0.6 else (*places[:2], places[chance.integers(2)])
        qa, qb = codes(chance, unit.a, count), codes(chance, unit.b, count)
        memory = bytearray(chance.bytes(size))
        for place, coding, q in ((a, unit.a, qa), (b, unit.b, qb)):
            memory[place : place + count] = code_bytes(q, coding.kind == "signed")
        await fill(dut, lanes, bytes(memory))
        out = unit.out
        cycles = await work(
            dut, 20_000, a=a, b=b, destination=destination, count=count, za=unit.a.zero_point, zb=unit.b.zero_point,
            a_signed=unit.a.kind == "signed", b_signed=unit.b.kind == "signed", ma=unit.multipliers[0],
            mb=unit.multipliers[1], shift=unit.shift, zero_point=out.zero_point, lo=out.lo, hi=out.hi,
            signed_out=out.kind == "signed",
        )  # fmt: skip
        wanted = unit(qa, qb)
        memory[destination : destination + count] = code_bytes(wanted, out.kind == "signed")
        await check_memory(dut, lanes, memory, f"{job}: {count} codes at {a} and {b} to {destination}, {unit}")
        assert cycles == 2 * -(-count // lanes) + 5, f"{cycles} cycles for {count} codes"
        sums = (qa.astype(np.int64) - unit.a.zero_point) * unit.multipliers[0]
        sums += (qb.astype(np.int64) - unit.b.zero_point) * unit.multipliers[1]
        ties += int((sums % (1 << unit.shift) == 1 << (unit.shift - 1)).sum())
        saturated += int(((wanted == out.lo) | (wanted == out.hi)).sum())
    report({"ties": ties, "saturated": saturated})
