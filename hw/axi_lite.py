"""The registers of `hw.registers` as an AXI4-Lite slave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amaranth import Cat, Const, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw import axi, registers
from hw.registers import Access, Register


class RegisterFile(wiring.Component):
    """One port a register, by its name in lower case, with its fields.

    WRITE registers are outputs that hold what was written; `masks` says which bits of a register exist, where that is
    not all of them. ACT registers are outputs whose bits are 1 in the cycle after a one was written. READ registers
    are inputs. The ports of CLEAR registers are inputs that set bits; what is set is the output `<name>_set`.

    One access at a time in either direction; a write takes the address and the data in any order. No path leads from
    an input to an output within a cycle.
    """

    def __init__(self, masks: Mapping[str, int]) -> None:
        self._masks = masks
        ports: dict[str, wiring.Member] = {}
        for register in registers.MAP:
            flow = Out if register.access in (Access.WRITE, Access.ACT) else In
            ports[register.port] = flow(register.layout)
            if register.access is Access.CLEAR:
                ports[f"{register.port}_set"] = Out(register.layout)
        super().__init__(axi.lite_channels(registers.ADDRESS_BITS) | ports)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        ports: Any = self
        # A write happens when address and data are both here.
        writing = Signal()
        write_word, read_word = (Signal(registers.ADDRESS_BITS - 2) for _ in range(2))
        data, strobes, have_address, have_data = Signal(32), Signal(4), Signal(), Signal()
        m.d.comb += [
            ports.aw.ready.eq(~have_address),
            ports.w.ready.eq(~have_data),
            writing.eq(have_address & have_data & ~ports.b.valid),
        ]
        with m.If(ports.b.ready):
            m.d.sync += ports.b.valid.eq(0)
        with m.If(writing):
            m.d.sync += [have_address.eq(0), have_data.eq(0), ports.b.valid.eq(1)]
        with m.If(ports.aw.valid & ports.aw.ready):
            m.d.sync += [have_address.eq(1), write_word.eq(ports.aw.payload.addr >> 2)]
        with m.If(ports.w.valid & ports.w.ready):
            m.d.sync += [have_data.eq(1), data.eq(ports.w.payload.data), strobes.eq(ports.w.payload.strb)]

        m.d.comb += ports.ar.ready.eq(~ports.r.valid)
        m.d.comb += read_word.eq(ports.ar.payload.addr >> 2)
        with m.If(ports.r.ready):
            m.d.sync += ports.r.valid.eq(0)
        with m.If(ports.ar.valid & ports.ar.ready):
            m.d.sync += [ports.r.valid.eq(1), ports.r.payload.data.eq(0)]
            m.d.sync += ports.r.payload.resp.eq(axi.Response.SLAVE_ERROR)

        with m.If(writing):
            m.d.sync += ports.b.payload.resp.eq(axi.Response.SLAVE_ERROR)
        bits = Cat(strobe.replicate(8) for strobe in strobes)
        for register in registers.MAP:
            port = getattr(ports, register.port).as_value()
            stored = getattr(ports, f"{register.port}_set").as_value() if register.access is Access.CLEAR else port
            if register.access is Access.ACT:
                m.d.sync += port.eq(0)
            for index in range(register.words):
                part = slice(32 * index, 32 * index + 32)
                mask = self._mask(register, index)
                word = register.offset // 4 + index
                with m.If(writing & (write_word == word)):
                    m.d.sync += ports.b.payload.resp.eq(axi.Response.OKAY)
                    if register.access is Access.WRITE:
                        m.d.sync += port[part].eq(((port[part] & ~bits) | (data & bits)) & mask)
                    elif register.access is Access.ACT:
                        m.d.sync += port[part].eq(data & bits & mask)
                    elif register.access is Access.CLEAR:
                        m.d.sync += stored[part].eq(stored[part] & ~(data & bits))
                with m.If(ports.ar.valid & ports.ar.ready & (read_word == word)):
                    m.d.sync += ports.r.payload.resp.eq(axi.Response.OKAY)
                    if register.access is not Access.ACT:
                        m.d.sync += ports.r.payload.data.eq(stored[part] & mask)
            if register.access is Access.CLEAR:  # what happens now is not cleared by a write of now
                for i in range(len(port)):
                    with m.If(port[i]):
                        m.d.sync += stored[i].eq(1)
        return m

    def _mask(self, register: Register, index: int) -> Const:
        """The bits of word `index` of a register that exist."""
        mask = self._masks.get(register.name, -1)
        if register.fields:
            mask &= sum(((1 << field.width) - 1) << field.low for field in register.fields)
        return Const((mask >> (32 * index)) & 0xFFFFFFFF, 32)
