"""cocotb bench of the accelerator in a system: the driver on AXI4-Lite, and a memory behind AXI4 that is not Python."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, FallingEdge, First, RisingEdge, SimTimeoutError, with_timeout
from cocotbext.axi import AxiLiteBus, AxiLiteMaster  # type: ignore[import-untyped]  # it has no types
from numpy.typing import NDArray

from model.errors import RedcaneError
from sim.bench import inputs, report
from sim.driver import Driver, Run

CLOCK_NS = 10
MEMORY = Path("memory.hex")  # in the bench's working directory, see sim/axi_memory.v


class LiteBus:
    """The register bus of `sim.driver.Driver` on cocotbext-axi's master."""

    def __init__(self, master: AxiLiteMaster) -> None:
        self._master = master

    async def read(self, offset: int) -> int:
        answer = await self._master.read(offset, 4)
        if answer.resp:
            raise RedcaneError(f"reading the register at {offset:#x}: {answer.resp!r}")
        return int.from_bytes(answer.data, "little")

    async def write(self, offset: int, value: int) -> None:
        answer = await self._master.write(offset, value.to_bytes(4, "little"))
        if answer.resp:
            raise RedcaneError(f"writing the register at {offset:#x}: {answer.resp!r}")


class BenchMemory:
    """The content of sim/axi_memory.v, word by word of `width` bytes."""

    def __init__(self, dut: Any, width: int) -> None:
        self._dut, self._width = dut, width

    async def load(self, pieces: dict[int, NDArray[np.uint8]]) -> None:
        """Put bytes at addresses, which are multiples of the width; the last word of each is filled up with zeros."""
        with MEMORY.open("w") as file:
            for address, content in pieces.items():
                filled = np.pad(content, (0, -len(content) % self._width))
                text = filled.reshape(-1, self._width)[:, ::-1].tobytes().hex()
                step = 2 * self._width
                file.write(f"@{address // self._width:x}\n")
                file.writelines(text[i : i + step] + "\n" for i in range(0, len(text), step))
        await self._pulse(self._dut.load)

    async def read(self, address: int, size: int) -> NDArray[np.uint8]:
        """`size` bytes from `address` on, a multiple of the width."""
        if not size:
            return np.zeros(0, np.uint8)
        self._dut.first.value = address // self._width
        self._dut.last.value = (address + size - 1) // self._width
        await self._pulse(self._dut.store)
        words = [line for line in MEMORY.read_text().split() if line[0] not in "@/"]
        content = np.frombuffer(bytes.fromhex("".join(words)), np.uint8)
        return content.reshape(-1, self._width)[:, ::-1].reshape(-1)[:size]

    async def _pulse(self, signal: Any) -> None:
        await FallingEdge(self._dut.clk)
        signal.value = 1
        await FallingEdge(self._dut.clk)
        signal.value = 0


@cocotb.test()
async def runs(dut: Any) -> None:
    """Fill the memory, do the runs one after the other until waveforms are over, keep results and counters. Inputs: see
    sim.system.
    """
    job = inputs()
    dut.latency.value, dut.hold.value = job["latency"], job["hold"]
    dut.load.value, dut.store.value = 0, 0
    Clock(dut.clk, CLOCK_NS, "ns").start()
    dut.rst.value = 1
    lite = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axi"), dut.clk, dut.rst)
    await ClockCycles(dut.clk, 4)
    dut.rst.value = 0
    driver = Driver(LiteBus(lite))
    memory = BenchMemory(dut, (await driver.identify())["bus_bytes"])
    with np.load(job["memory"], allow_pickle=False) as pieces:
        await memory.load({int(address): pieces[address] for address in pieces.files})

    async def interrupt() -> None:
        if dut.irq.value == 0:
            await First(RisingEdge(dut.irq), RisingEdge(dut.over))

    told, results = [], []
    for number, run in enumerate(Run(**run) for run in job["runs"]):
        begin = time.process_time()
        await driver.start(run)
        try:
            await with_timeout(interrupt(), job["timeout_cycles"] * CLOCK_NS, "ns")
        except SimTimeoutError:
            raise AssertionError(f"run {number}: no interrupt in {job['timeout_cycles']} cycles") from None
        if dut.over.value == 1:
            break
        size = await driver.finish()
        results.append(await memory.read(run.results_address, size))
        told.append(await driver.counters() | {"seconds": time.process_time() - begin})
        breaches = int(dut.violations.value)
        assert breaches == 0, f"run {number}: {breaches} breaches of the AXI4 protocol on m_axi"
        with open(job["done"], "ab") as done:  # one byte a run
            done.write(b".")
    np.savez(job["results"], *results)
    report({"runs": told})
