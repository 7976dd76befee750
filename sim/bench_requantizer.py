"""The requantiser against `model.qnetwork.Requantizer`, bit for bit, one result every cycle."""

from __future__ import annotations

import random
from dataclasses import asdict
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import FallingEdge

from hw.program import to_bytes
from model.qnetwork import FLOAT_LIMIT, Coding, Requantizer
from sim.bench import begin, code_bytes, inputs, report

LATENCY = 3
FLOAT = Coding("float", 1.0)


def ties(requantizer: Requantizer) -> list[int]:
    """Accumulators whose scaled value is, or is next to, half way between two codes, where there are any."""
    around = []
    codes = [-128, -127, -2, -1, 0, 1, 126, 127, 254, 255]
    if requantizer.floats:  # where the last bit that is kept changes, too
        codes += [-1985, -1984, -1953, -1952, -34, -33, 32, 33, 34, 1007, 1008, 1951, 1952, 1983, 1984]
    for code in codes:
        exact = ((2 * code + 1) << requantizer.shift) // (2 * requantizer.multiplier)
        around += [exact - 1, exact, exact + 1]
    return [acc for acc in around if -(2**31) <= acc < 2**31]


def jobs(chance: random.Random, count: int) -> list[tuple[Requantizer, bool, list[int]]]:
    """Requantisers (extreme, exact in their ties, random) with accumulators that try them."""
    extremes = [-(2**31), 2**31 - 1, -(2**31) + 1, -1, 0, 1]
    made = []
    for multiplier in (2**15, 2**15 + 1, 2**16 - 1, 0xAAAB):
        for shift in (1, 2, 15, 16, 17, 31, 32, 33, 46, 47):
            for lo, hi, z in ((-127, 127, 0), (0, 255, 0), (0, 255, 255), (77, 255, 77), (-1984, 1984, 0)):
                made.append((Requantizer(multiplier, shift, z, lo, hi, hi == FLOAT_LIMIT), lo < 0, extremes))
    for _ in range(count):
        signed_out, floats = chance.random() < 0.5, chance.random() < 0.3
        z = 0 if signed_out or floats else chance.randrange(256)
        lo, hi = (-127, 127) if signed_out else (chance.choice([0, z]), 255)
        if floats:
            lo, hi = -FLOAT_LIMIT, FLOAT_LIMIT
        requantizer = Requantizer(chance.randrange(2**15, 2**16), chance.randrange(1, 48), z, lo, hi, floats)
        width = chance.randrange(2, 33)
        made.append((requantizer, signed_out, [chance.getrandbits(width) - (1 << (width - 1)) for _ in range(24)]))
    return [(r, s, accs + ties(r)) for r, s, accs in made]


@cocotb.test
async def every_byte_is_the_references(dut: Any) -> None:
    await begin(dut, acc=0, multiplier=0, shift=1, zero_point=0, lo=0, hi=0, signed_out=0, floats=0)
    results = saturated = 0
    for requantizer, signed_out, accs in jobs(random.Random(cocotb.RANDOM_SEED), inputs()["jobs"]):
        codes = requantizer(np.array(accs, np.int64))
        expected = to_bytes(FLOAT, codes).tobytes() if requantizer.floats else code_bytes(codes, signed_out)
        for name, value in asdict(requantizer).items():
            if not (requantizer.floats and name in ("lo", "hi")):  # which then say nothing
                getattr(dut, name).value = value
        dut.signed_out.value = int(signed_out)
        for cycle in range(len(accs) + LATENCY):
            if cycle >= LATENCY:
                got, acc = dut.byte.value.to_unsigned(), accs[cycle - LATENCY]
                wanted = expected[cycle - LATENCY]
                assert got == wanted, f"{requantizer} of {acc}: {got:#04x}, not {wanted:#04x}"
            if cycle < len(accs):
                dut.acc.value = accs[cycle]
            await FallingEdge(dut.clk)
        results += len(accs)
        saturated += int(((codes == requantizer.lo) | (codes == requantizer.hi)).sum())
    report({"results": results, "saturated": saturated})
