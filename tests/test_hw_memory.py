"""VectorMemory against a bytearray, in Amaranth's own simulator; and what becomes of memories in Verilog."""

from __future__ import annotations

import random

import pytest
from amaranth import Module, Signal
from amaranth.hdl import Value
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.sim import Simulator, SimulatorContext  # type: ignore[attr-defined]  # amaranth-stubs are older

from hw.memory import VectorMemory
from hw.verilog import to_verilog
from model.errors import RedcaneError


@pytest.mark.parametrize(("lanes", "size"), [(4, 8), (4, 100), (16, 256)])
def test_any_address_any_mask_in_any_order(lanes: int, size: int) -> None:
    memory, chance = VectorMemory(lanes, size), random.Random(lanes * size)
    depth = memory.depth
    assert depth & (depth - 1) == 0
    assert size <= depth < 2 * size or depth == 2 * lanes

    async def bench(ctx: SimulatorContext) -> None:
        truth = bytearray(depth)
        ctx.set(memory.write_enable, 1)
        ctx.set(memory.write_mask, (1 << lanes) - 1)
        for address in range(0, depth, lanes):  # RAM starts with anything
            ctx.set(memory.write_address, address)
            ctx.set(memory.write_data.as_value(), 0)
            await ctx.tick()
        expected = None
        for _ in range(400):
            if expected is not None:
                assert ctx.get(memory.read_data.as_value()).to_bytes(lanes, "little") == expected
            read = chance.randrange(depth)
            write = chance.choice([chance.randrange(depth), read, depth - 1])
            mask, data, enable = chance.getrandbits(lanes), chance.randbytes(lanes), chance.random() < 0.7
            expected = bytes(truth[(read + k) % depth] for k in range(lanes))  # before this cycle's write
            ctx.set(memory.read_address, read)
            ctx.set(memory.write_enable, enable)
            ctx.set(memory.write_address, write)
            ctx.set(memory.write_mask, mask)
            ctx.set(memory.write_data.as_value(), int.from_bytes(data, "little"))
            for k in range(lanes):
                if enable and mask >> k & 1:
                    truth[(write + k) % depth] = data[k]
            await ctx.tick()

    simulator = Simulator(memory)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize(("lanes", "jumps"), [(4, 1), (8, 3)])
def test_lanes_that_lie_apart(lanes: int, jumps: int) -> None:
    """Lanes behind the k-th mark come from k jumps further on, wherever the vector begins; addresses wrap."""
    memory, chance = VectorMemory(lanes, 32 * lanes, jumps), random.Random(jumps)
    truth = chance.randbytes(memory.depth)

    async def bench(ctx: SimulatorContext) -> None:
        ctx.set(memory.write_mask, (1 << lanes) - 1)
        ctx.set(memory.write_enable, 1)
        for address in range(0, memory.depth, lanes):
            ctx.set(memory.write_address, address)
            ctx.set(memory.write_data.as_value(), int.from_bytes(truth[address : address + lanes], "little"))
            await ctx.tick()
        ctx.set(memory.write_enable, 0)
        for _ in range(300):
            address, jump = chance.randrange(memory.depth), lanes * chance.randrange(32)
            marks = sorted(chance.randrange(lanes + 1) for _ in range(jumps))
            ctx.set(memory.read_address, address)
            ctx.set(memory.read_jump, jump)
            for mask, mark in zip(memory.read_behind, marks, strict=True):
                ctx.set(mask, (1 << lanes) - (1 << mark))
            await ctx.tick()
            places = [address + lane + jump * sum(lane >= mark for mark in marks) for lane in range(lanes)]
            expected = bytes(truth[place % memory.depth] for place in places)
            assert ctx.get(memory.read_data.as_value()).to_bytes(lanes, "little") == expected

    simulator = Simulator(memory)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


def test_every_bank_is_a_module_without_initial_content() -> None:
    text = to_verilog(VectorMemory(4, 64), "store")
    for bank in range(4):
        assert f"module \\store.bank_{bank} " in text
    assert "initial" not in text
    assert "src" not in text
    assert text == to_verilog(VectorMemory(4, 64), "store")


def test_initial_content_is_refused() -> None:
    class Rom(wiring.Component):
        address: Signal
        content: Signal

        def __init__(self) -> None:
            super().__init__({"address": wiring.In(2), "content": wiring.Out(8)})

        def elaborate(self, platform: object) -> Module:
            m = Module()
            memory: Memory[int, Value] = Memory(shape=8, depth=4, init=[0, 3, 0, 0])
            m.submodules.memory = memory
            port = memory.read_port()
            m.d.comb += [port.addr.eq(self.address), self.content.eq(port.data)]
            return m

    with pytest.raises(RedcaneError, match="initial content"):
        to_verilog(Rom(), "rom")
