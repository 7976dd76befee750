"""What every cocotb bench begins and ends with."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge
from numpy.typing import NDArray

from model.multipliers.product_table import Table
from sim.runner import INPUTS, OUTPUTS


def inputs() -> dict[str, Any]:
    """The inputs that `sim.runner.simulate` was given."""
    return json.loads(Path(os.environ[INPUTS]).read_text())


def kinds_tables(told: dict[str, Any]) -> list[Table]:
    """The product tables of the PE's multipliers, from the file `tables` (kinds, 256, 256) and the list `signed`."""
    words = np.load(told["tables"], allow_pickle=False)
    return [table.view(np.int16) if signed else table for table, signed in zip(words, told["signed"], strict=True)]


def report(outputs: dict[str, Any]) -> None:
    """What `sim.runner.simulate` returns. Call it once, at the end."""
    Path(os.environ[OUTPUTS]).write_text(json.dumps(outputs))


async def begin(dut: Any, **values: int) -> None:
    """Set inputs to `values`, start the clock (10 ns) and hold the reset for two cycles.

    Returns at a falling edge. A bench reads and drives there, half a cycle from where registers change.
    """
    for name, value in values.items():
        getattr(dut, name).value = value
    dut.rst.value = 1
    Clock(dut.clk, 10, "ns").start()
    await FallingEdge(dut.clk)
    await FallingEdge(dut.clk)
    dut.rst.value = 0
    await FallingEdge(dut.clk)


def code_bytes(codes: NDArray[np.integer], is_signed: bool) -> bytes:
    """Codes as the hardware's bytes: sign and magnitude, or as they are."""
    wide = np.asarray(codes, np.int64)
    return np.where(is_signed & (wide < 0), -wide | 0x80, wide).astype(np.uint8).tobytes()


async def fill(dut: Any, lanes: int, content: bytes) -> None:
    """Write the whole memory of a `sim.harness.Harness`."""
    dut.host.value, dut.host_write.value = 1, 1
    for address in range(0, len(content), lanes):
        dut.host_address.value = address
        dut.host_in.value = int.from_bytes(content[address : address + lanes], "little")
        await FallingEdge(dut.clk)
    dut.host.value, dut.host_write.value = 0, 0


async def dump(dut: Any, lanes: int, size: int) -> bytes:
    """Read the whole memory of a `sim.harness.Harness`."""
    content = b""
    dut.host.value = 1
    for address in range(0, size, lanes):
        dut.host_address.value = address
        await FallingEdge(dut.clk)
        content += dut.host_data.value.to_unsigned().to_bytes(lanes, "little")
    dut.host.value = 0
    return content


async def check_memory(dut: Any, lanes: int, wanted: bytes | bytearray, case: str) -> None:
    """Compare the whole memory: the result is there, and nothing else was touched."""
    got = await dump(dut, lanes, len(wanted))
    wrong = [address for address in range(len(wanted)) if got[address] != wanted[address]]
    if wrong:
        at = wrong[0]
        raise AssertionError(
            f"{case}: {len(wrong)} bytes are wrong, the first at {at}: {got[at]:#04x}, not {wanted[at]:#04x}"
        )


async def load_tables(dut: Any, tables: NDArray[np.integer]) -> None:
    """Write all pages (pages, entries) of a unit's table."""
    dut.table_write_enable.value = 1
    for address, entry in enumerate(tables.ravel().tolist()):
        dut.table_write_address.value, dut.table_write_data.value = address, entry
        await FallingEdge(dut.clk)
    dut.table_write_enable.value = 0


async def work(dut: Any, limit: int, **configuration: int) -> int:
    """Configure and start a unit; the cycles from `start` to `done`. Fails after `limit`."""
    for name, value in configuration.items():
        getattr(dut, name).value = value
    dut.start.value = 1
    for cycles in range(limit):
        await FallingEdge(dut.clk)
        dut.start.value = 0
        if dut.done.value == 1:
            await FallingEdge(dut.clk)
            return cycles + 1
    raise AssertionError(f"the unit is not done after {limit} cycles: {configuration}")
