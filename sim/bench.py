"""What every cocotb bench begins and ends with."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from cocotb.clock import Clock
from cocotb.triggers import FallingEdge

from sim.runner import INPUTS, OUTPUTS


def inputs() -> dict[str, Any]:
    """The inputs that `sim.runner.simulate` was given."""
    return json.loads(Path(os.environ[INPUTS]).read_text())


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
