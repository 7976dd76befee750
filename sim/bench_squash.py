"""The squash unit against `model.reference.squash`, and its class against argmax: the whole memory afterwards."""

from __future__ import annotations

from typing import Any

import cocotb
import numpy as np

from hw.program import to_bytes
from hw.squash import ENTRIES
from model.qnetwork import SQUASH_ENTRIES, Coding, Squash, significant
from model.reference import squash
from sim.bench import begin, check_memory, code_bytes, fill, inputs, load_tables, report, work

FLOAT = Coding("float", 1.0)


def capsules(chance: np.random.Generator, coding: Coding, count: int, dim: int) -> np.ndarray:
    """Codes (count, dim): small, large, all zero, all at one end, or any, a capsule each."""
    limits = chance.choice([1, 4, 30, 255, 2000], (count, 1))
    drawn = np.clip(chance.integers(-limits, limits + 1, (count, dim)) + coding.zero_point, coding.lo, coding.hi)
    special = chance.integers(0, 8, count)
    drawn[special == 0] = coding.zero_point
    drawn[special == 1] = coding.hi
    drawn[special == 2] = coding.lo
    return significant(drawn.astype(np.int16)) if coding == FLOAT else drawn.astype(np.int16)


def place(chance: np.random.Generator, size: int, length: int, result: int) -> tuple[int, int]:
    """Addresses of operands and result, not aligned and not overlapping, in either order."""
    gap = size - length - result
    first = int(chance.integers(gap + 1))
    second = int(chance.integers(gap - first + 1))
    if chance.random() < 0.5:
        return first, first + length + second
    return first + result + second, first


def random_coding(chance: np.random.Generator) -> Coding:
    if chance.random() < 0.5:
        return Coding("signed", 1 / 127)
    return Coding("affine", 1 / 127, int(chance.choice([0, 128, 255, int(chance.integers(256))])))


@cocotb.test
async def capsules_are_squashed(dut: Any) -> None:
    told, chance = inputs(), np.random.default_rng(cocotb.RANDOM_SEED)
    lanes, size, pages = told["lanes"], told["size"], told["pages"]
    await begin(dut, start=0, host=0, host_write=0, host_address=0, table_write_enable=0, classify=0, in_signed=0)
    made = [Squash.for_scales(scale, Coding("signed", 1 / 127)) for scale in (0.001, 0.05)]
    made += [Squash(chance.integers(0, 65536, SQUASH_ENTRIES).astype(np.uint16), 15, Coding("signed", 1 / 127))]
    tables = np.zeros((pages, ENTRIES), np.uint16)
    tables[:, :SQUASH_ENTRIES] = [made[page % len(made)].table for page in range(pages)]
    await load_tables(dut, tables)
    cases = [(dim, 1) for dim in (1, lanes - 1, lanes, lanes + 1, 64)] + [(64, 5), (8, 30), (1, 40)]
    cases += [(int(chance.integers(1, 65)), int(chance.integers(1, 9))) for _ in range(told["jobs"])]
    for dim, count in cases:
        page, coding = int(chance.integers(pages)), random_coding(chance)
        shift = made[page % len(made)].shift if chance.random() < 0.5 else int(chance.integers(1, 16))
        unit = Squash(made[page % len(made)].table, shift, coding)
        q = capsules(chance, FLOAT, count, dim)
        source, destination = place(chance, size, q.size, q.size)
        if chance.random() < 0.3:
            destination = source
        memory = bytearray(chance.bytes(size))
        memory[source : source + q.size] = to_bytes(FLOAT, q).tobytes()
        await fill(dut, lanes, bytes(memory))
        cycles = await work(
            dut, 20_000, source=source, destination=destination, dim=dim, count=count, table=page, shift=shift,
            zero_point=coding.zero_point, lo=coding.lo, hi=coding.hi, signed_out=coding.kind == "signed",
            classify=0, in_signed=int(chance.integers(2)), in_zero_point=int(chance.integers(256)),
        )  # fmt: skip
        memory[destination : destination + q.size] = code_bytes(squash(unit, q), coding.kind == "signed")
        case = f"{count} capsules of {dim} from {source} to {destination}, shift {shift}, {coding}"
        await check_memory(dut, lanes, memory, case)
        assert cycles == (count + 1) * 2 * -(-dim // lanes) + 5, f"{cycles} cycles for {case}"
    report({"cases": len(cases)})


@cocotb.test
async def the_longest_capsule_is_the_class(dut: Any) -> None:
    told, chance = inputs(), np.random.default_rng(cocotb.RANDOM_SEED)
    lanes, size = told["lanes"], told["size"]
    await begin(dut, start=0, host=0, host_write=0, host_address=0, table_write_enable=0)
    ties = 0
    for job in range(told["jobs"]):
        coding = random_coding(chance)
        count, dim = int(chance.integers(1, 30)), int(chance.choice([1, lanes, 16, 64, int(chance.integers(1, 65))]))
        v = capsules(chance, coding, count, dim) if job else np.full((count, dim), coding.zero_point, np.int16)
        v[chance.integers(count)] = v[chance.integers(count)]
        lengths = ((v.astype(np.int64) - coding.zero_point) ** 2).sum(axis=1)
        ties += int((lengths == lengths.max()).sum() > 1)
        source, destination = place(chance, size, v.size, 1)
        memory = bytearray(chance.bytes(size))
        memory[source : source + v.size] = code_bytes(v, coding.kind == "signed")
        await fill(dut, lanes, bytes(memory))
        cycles = await work(
            dut, 20_000, source=source, destination=destination, dim=dim, count=count, classify=1,
            in_signed=coding.kind == "signed", in_zero_point=coding.zero_point,
        )  # fmt: skip
        memory[destination] = int(lengths.argmax())
        await check_memory(dut, lanes, memory, f"class of {v.tolist()}, {coding}")
        assert cycles == count * -(-dim // lanes) + 5
    report({"cases": told["jobs"], "ties": ties})
