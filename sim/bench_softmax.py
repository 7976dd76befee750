"""The softmax unit against `model.reference.softmax`: the whole memory afterwards."""

from __future__ import annotations

from typing import Any

import cocotb
import numpy as np

from model.qnetwork import EXP_ENTRIES, EXP_ONE, exp_table
from model.reference import softmax
from sim.bench import begin, check_memory, code_bytes, fill, inputs, load_tables, report, work


def logits(chance: np.random.Generator, classes: int, count: int) -> np.ndarray:
    """Codes (classes, count), an input capsule a column: any, near each other, all equal, at the ends."""
    wide, near = chance.integers(-127, 128, (classes, count)), chance.integers(-3, 4, (classes, count))
    equal, ends = np.full((classes, count), chance.integers(-127, 128)), chance.choice([-127, 127], (classes, count))
    return np.choose(chance.integers(0, 4, count), [wide, near, equal, ends]).astype(np.int16)


@cocotb.test
async def logits_and_coupling_are_the_references(dut: Any) -> None:
    told, chance = inputs(), np.random.default_rng(cocotb.RANDOM_SEED)
    lanes, size, pages = told["lanes"], told["size"], told["pages"]
    await begin(dut, start=0, host=0, host_write=0, host_address=0, table_write_enable=0)
    wild = chance.integers(0, EXP_ONE + 1, EXP_ENTRIES).astype(np.uint16)
    wild[0] = EXP_ONE
    kinds = [exp_table(0.03), exp_table(0.0), wild, exp_table(50.0)]  # usual, all of one size, any, nothing but the top
    tables = np.stack([kinds[page % len(kinds)] for page in range(pages)])
    await load_tables(dut, tables)
    cases = [(1, 1), (1, lanes), (64, 1), (64, size // 200), (10, lanes + 1), (2, 3 * lanes - 1), (3, 2 * lanes)]
    while len(cases) < told["jobs"]:
        classes = int(chance.integers(1, 65))
        cases.append((classes, int(chance.integers(1, min(40, size // (3 * classes)) + 1))))
    saturated = 0
    for classes, count in cases:
        b, a = logits(chance, classes, count), logits(chance, classes, count)
        first, page, narrow = int(chance.random() < 0.25), int(chance.integers(pages)), int(chance.integers(2))
        length = classes * count
        gaps = np.sort(chance.integers(0, size - 3 * length + 1, 3))
        places = [int(gap) + index * length for index, gap in enumerate(gaps)]
        at_logits, at_agreement, at_coupling = (places[i] for i in chance.permutation(3))
        if chance.random() < 0.3:
            at_coupling = at_agreement
        memory = bytearray(chance.bytes(size))
        memory[at_logits : at_logits + length] = code_bytes(b, True)
        memory[at_agreement : at_agreement + length] = code_bytes(a, True)
        await fill(dut, lanes, bytes(memory))
        cycles = await work(
            dut, 50_000, logits=at_logits, agreement=at_agreement, coupling=at_coupling, classes=classes, inputs=count,
            first=first, narrow=narrow, table=page,
        )  # fmt: skip
        updated = np.zeros_like(b) if first else np.clip(b + a, -127, 127).astype(np.int16)
        saturated += int((updated != b + a).sum()) * (1 - first)
        coupling = softmax(tables[page], updated, 127 if narrow else 255)
        memory[at_logits : at_logits + length] = code_bytes(updated, True)
        memory[at_coupling : at_coupling + length] = code_bytes(coupling, False)
        places = [at_logits, at_agreement, at_coupling]
        case = f"{classes} classes, {count} inputs, first {first}, narrow {narrow}, page {page}, at {places}"
        await check_memory(dut, lanes, memory, case)
        assert cycles == (-(-count // lanes) + 2) * 2 * max(classes, 7) + 2 * classes + 8, f"{cycles} cycles for {case}"
    report({"cases": len(cases), "saturated": saturated})
