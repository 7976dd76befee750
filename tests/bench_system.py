"""cocotb bench of `hw.system.System` between the models of cocotbext-axi, with pauses on every channel."""

from __future__ import annotations

from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, FallingEdge, First, RisingEdge, with_timeout
from cocotbext.axi import AxiBus, AxiLiteBus, AxiLiteMaster, AxiRam

from model.errors import RedcaneError
from sim.bench import inputs, report
from sim.bench_system import CLOCK_NS, LiteBus
from sim.driver import Driver, Run
from tests.pauses import pauses

TIMEOUT_CYCLES = 400_000
# The payload of each channel that the system drives; `id` and the constants go with the address.
DRIVEN = {"ar": ("addr", "len", "id"), "aw": ("addr", "len"), "w": ("data", "strb", "last")}


class FaultyRam(AxiRam):
    """Answers SLVERR where an access touches `fault`, a range of addresses."""

    fault = range(0)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.read_if._read = self._faulty(self.read_if._read)
        self.write_if._write = self._faulty(self.write_if._write)

    def _faulty(self, access: Any) -> Any:
        async def checked(address: int, content: Any) -> Any:
            if address in self.fault:
                raise ValueError("as the test wants it")
            return await access(address, content)

        return checked


async def watch(dut: Any, broken: list[str]) -> None:
    """Note every offer on the AXI4 channels that changes or goes away before it was taken."""
    offers: dict[str, tuple] = {}
    while True:
        await FallingEdge(dut.clk)
        for channel, fields in DRIVEN.items():
            name = f"m_axi_{channel}"
            valid = getattr(dut, f"{name}valid").value == 1
            offer = tuple(int(getattr(dut, f"{name}{field}").value) for field in fields) if valid else ()
            if channel in offers and offer != offers[channel]:
                broken.append(f"{channel}: {offers[channel]} became {offer}")
            offers.pop(channel, None)
            if valid and getattr(dut, f"{name}ready").value == 0:
                offers[channel] = offer


@cocotb.test()
async def steps(dut: Any) -> None:
    """Do the runs of `job["steps"]`; keep results, errors and counters of each."""
    job = inputs()
    content = np.load(job["memory"], allow_pickle=False)
    Clock(dut.clk, CLOCK_NS, "ns").start()
    dut.rst.value = 1
    ram = FaultyRam(AxiBus.from_prefix(dut, "m_axi"), dut.clk, dut.rst, size=len(content))
    ram.write(0, content.tobytes())
    lite = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axi"), dut.clk, dut.rst)
    channels = []
    for reading, writing in ((ram.read_if, ram.write_if), (lite.read_if, lite.write_if)):
        reading.log.setLevel("ERROR")
        writing.log.setLevel("ERROR")
        channels += [reading.ar_channel, reading.r_channel]
        channels += [writing.aw_channel, writing.w_channel, writing.b_channel]
    await ClockCycles(dut.clk, 4)
    dut.rst.value = 0
    await ClockCycles(dut.clk, 2)
    if job["pauses"]:
        for number, channel in enumerate(channels):
            channel.set_pause_generator(pauses(job["seed"] + number, job["pauses"]))
    broken: list[str] = []
    cocotb.start_soon(watch(dut, broken))
    bus = LiteBus(lite)
    driver = Driver(bus)
    await driver.identify()

    told, results = [], []
    for step in job["steps"]:
        run = Run(**step["run"])
        ram.fault = range(*step.get("fault", (0, 0)))
        answer = {"error": None}
        await driver.start(run)
        if "reset_after" in step:
            await First(RisingEdge(dut.irq), ClockCycles(dut.clk, step["reset_after"]))
            await driver.reset()
            size = 0
        else:
            await with_timeout(RisingEdge(dut.irq), TIMEOUT_CYCLES * CLOCK_NS, "ns")
            try:
                size = await driver.finish()
            except RedcaneError as error:
                answer = {"error": str(error)}
                await ClockCycles(dut.clk, 500)  # in which nothing more happens
                size = await driver.read("RESULTS_WRITTEN")
                await driver.reset()
        assert dut.irq.value == 0
        assert await driver.fields("STATUS") | {"done": 0} == dict.fromkeys(
            ("busy", "done", "error", "cause", "response"), 0
        )
        told.append(answer | await driver.counters())
        results.append(np.frombuffer(ram.read(run.results_address, size), np.uint8))
    assert not broken, broken[0]
    np.savez(job["results"], *results)
    np.save(job["memory"], np.frombuffer(ram.read(0, len(content)), np.uint8))
    report({"steps": told})
