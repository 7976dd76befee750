"""The sequencer: reads the layer program and runs one unit after the other."""

from __future__ import annotations

from typing import Any

from amaranth import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw import isa
from hw.parameters import Parameters

REQUEST = data.StructLayout({"address": 32, "words": isa.ADDRESS})  # of weights, see isa.FETCH


def units(parameters: Parameters) -> tuple[isa.Opcode, ...]:
    """The opcodes of the units that there are; COUNTERS is the emitter's, too."""
    always = isa.Opcode.MATMUL, isa.Opcode.SQUASH, isa.Opcode.SOFTMAX, isa.Opcode.EMIT
    optional = {isa.Opcode.ADD: parameters.adder, isa.Opcode.STORE: parameters.spill}
    return (*always, *(opcode for opcode, there in optional.items() if there))


class Sequencer(wiring.Component):
    """From `start` at `entry` until a HALT: fetch a descriptor (one word a cycle), start its unit, wait for `done`.

    `running` is high from the cycle after `start` until the HALT; `active` is the unit at work (one-hot, in the order
    of `units`). A FETCH hands its request to `requests`, a LOAD itself to `loads`, and goes on as soon as that is
    taken; a WAIT goes on when nothing is `loading`. `stalled` are the cycles in which the latter two are held up. An
    unknown opcode halts, too. Fetching a descriptor costs WORDS + 2 cycles.
    """

    start: Signal
    entry: Signal
    running: Signal
    fetching: Signal
    program_address: Signal
    program_data: Signal
    descriptor: Signal
    requests: stream.Interface
    loads: stream.Interface
    loading: Signal
    stalled: Signal
    unit_start: Signal
    unit_done: Signal
    active: Signal

    def __init__(self, parameters: Parameters) -> None:
        self._units, self._spill = units(parameters), parameters.spill
        count = len(self._units)
        super().__init__(
            {
                "start": In(1),
                "entry": In(isa.ADDRESS),
                "running": Out(1),
                "fetching": Out(1),
                "program_address": Out(range(parameters.program_words)),
                "program_data": In(32),
                "descriptor": Out(isa.WORDS * isa.WORD_BITS),
                "requests": Out(stream.Signature(REQUEST)),
                "loads": Out(stream.Signature(isa.TRANSFER)),
                "loading": In(1),
                "stalled": Out(1),
                "unit_start": Out(count),
                "unit_done": In(count),
                "active": Out(count),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        address = Signal.like(self.program_address)
        word = Signal(range(isa.WORDS + 1))
        words = data.View(data.ArrayLayout(isa.WORD_BITS, isa.WORDS), self.descriptor)
        opcode = self.descriptor[:4]
        fetch = data.View(isa.FETCH, self.descriptor[: isa.FETCH.size])
        m.d.comb += [
            self.program_address.eq(address),
            self.requests.payload.address.eq(fetch.address),
            self.requests.payload.words.eq(fetch.words),
            self.loads.payload.eq(self.descriptor[: isa.TRANSFER.size]),
        ]
        with m.FSM() as fsm:
            with m.State("IDLE"), m.If(self.start):
                m.d.sync += [address.eq(self.entry), word.eq(0)]
                m.next = "FETCH"
            with m.State("FETCH"):
                # The memory answers a cycle after the address, so word w arrives while w + 1 is asked for.
                m.d.comb += self.fetching.eq(1)
                m.d.sync += word.eq(word + 1)
                with m.If(word != isa.WORDS):
                    m.d.sync += address.eq(address + 1)
                with m.If(word != 0):
                    m.d.sync += words[(word - 1).as_unsigned()].eq(self.program_data)
                with m.If(word == isa.WORDS):
                    m.next = "DISPATCH"
            with m.State("DISPATCH"):
                m.d.comb += self.fetching.eq(1)
                with m.Switch(opcode):
                    with m.Case(isa.Opcode.FETCH):
                        m.d.comb += self.requests.valid.eq(1)
                        with m.If(self.requests.ready):
                            m.d.sync += word.eq(0)
                            m.next = "FETCH"
                    if self._spill:
                        with m.Case(isa.Opcode.LOAD):
                            m.d.comb += [self.loads.valid.eq(1), self.stalled.eq(~self.loads.ready)]
                            with m.If(self.loads.ready):
                                m.d.sync += word.eq(0)
                                m.next = "FETCH"
                        with m.Case(isa.Opcode.WAIT):
                            m.d.comb += self.stalled.eq(self.loading)
                            with m.If(~self.loading):
                                m.d.sync += word.eq(0)
                                m.next = "FETCH"
                    for index, unit in enumerate(self._units):
                        with m.Case(unit, *([isa.Opcode.COUNTERS] if unit == isa.Opcode.EMIT else [])):
                            m.d.comb += self.unit_start[index].eq(1)
                            m.d.sync += self.active.eq(1 << index)
                            m.next = "WAIT"
                    with m.Default():
                        m.next = "IDLE"
            with m.State("WAIT"), m.If((self.unit_done & self.active).any()):
                m.d.sync += [self.active.eq(0), word.eq(0)]
                m.next = "FETCH"
        m.d.comb += self.running.eq(~fsm.ongoing("IDLE"))
        return m
