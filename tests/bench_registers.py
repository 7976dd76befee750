"""cocotb bench of the registers of `hw.system.System`: every bit as `hw.registers` says, with pauses everywhere."""

from __future__ import annotations

import random
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles
from cocotbext.axi import AxiLiteBus, AxiLiteMaster, AxiResp

from hw import registers
from hw.registers import REGISTERS, Access
from sim.bench import inputs, report
from sim.bench_system import CLOCK_NS, LiteBus
from sim.driver import Driver
from tests.pauses import pauses


@cocotb.test()
async def bits(dut: Any) -> None:
    job = inputs()
    Clock(dut.clk, CLOCK_NS, "ns").start()
    for name in ("arready", "awready", "wready", "rvalid", "bvalid"):
        getattr(dut, f"m_axi_{name}").value = 0
    dut.rst.value = 1
    lite = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axi"), dut.clk, dut.rst)
    await ClockCycles(dut.clk, 4)
    dut.rst.value = 0
    for number, channel in enumerate((lite.read_if.ar_channel, lite.read_if.r_channel, lite.write_if.aw_channel,
                                      lite.write_if.w_channel, lite.write_if.b_channel)):  # fmt: skip
        channel.set_pause_generator(pauses(job["seed"] + number, 0.5))
    driver = Driver(LiteBus(lite))
    assert await driver.identify() == job["sizes"]

    # Byte by byte in any order: what is written is there, in the bits that exist and in no other register.
    choose = random.Random(job["seed"])
    model = {r.name: 0 for r in registers.MAP if r.access is Access.WRITE}
    for _ in range(150):
        name = choose.choice(list(model))
        first = choose.randrange(REGISTERS[name].words * 4)
        size = choose.randint(1, 4 - first % 4)
        value, mask = choose.getrandbits(8 * size) << 8 * first, ((1 << 8 * size) - 1) << 8 * first
        model[name] = (model[name] & ~mask) | (value & job["masks"][name])
        await lite.write(REGISTERS[name].offset + first, (value >> 8 * first).to_bytes(size, "little"))
    for name, value in model.items():
        assert await driver.read(name) == value, name

    # What only can be read does not change, and no register lies beyond the map.
    known = {r.offset + 4 * i for r in registers.MAP for i in range(r.words)}
    for offset in range(0, 1 << registers.ADDRESS_BITS, 4):
        response = (await lite.read(offset, 4)).resp
        assert response == (AxiResp.OKAY if offset in known else AxiResp.SLVERR), hex(offset)
        if offset not in known:
            assert (await lite.write(offset, b"1234")).resp == AxiResp.SLVERR, hex(offset)
    for register in registers.MAP:
        if register.access is Access.READ:
            before = await driver.read(register.name)
            await driver.write(register.name, (1 << register.width) - 1)
            assert await driver.read(register.name) == before

    # A run without commands ends at once; its interrupt shows when it is let through, and goes when it is cleared.
    await driver.write("IRQ_ENABLE", 0)
    await driver.write("COMMANDS_BEATS", 0)
    await driver.write("CONTROL", 1)
    await ClockCycles(dut.clk, 20)
    assert await driver.fields("STATUS") == {"busy": 0, "done": 1, "error": 0, "cause": 0, "response": 0}
    assert (await driver.read("IRQ_STATUS"), await driver.read("CONTROL"), dut.irq.value) == (1, 0, 0)
    await driver.write("IRQ_ENABLE", 1)
    await ClockCycles(dut.clk, 2)
    assert dut.irq.value == 1
    await driver.write("IRQ_STATUS", 2)
    assert await driver.read("IRQ_STATUS") == 1
    await driver.write("IRQ_STATUS", 1)
    await ClockCycles(dut.clk, 2)
    assert (await driver.read("IRQ_STATUS"), dut.irq.value) == (0, 0)
    report({"registers": len(known)})
