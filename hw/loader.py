"""The loader: packets of the input stream into the memories, and the word that starts an inference."""

from __future__ import annotations

from typing import Any

from amaranth import Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw import isa
from hw.parameters import Parameters


class Loader(wiring.Component):
    """Reads packets (`hw.isa.Target`) from `packets` while `run` is low and takes nothing while a program runs.

    Every write appears for one cycle: the target's bit of `enable`, `address`, and `data`, in which a beat is the
    lowest 32 bits for targets of one beat a word and a whole word for biases. START raises `start` with
    the program's entry in `address`.
    """

    packets: stream.Interface
    run: Signal
    start: Signal
    enable: Signal
    address: Signal
    data: Signal

    def __init__(self, parameters: Parameters) -> None:
        self._columns = parameters.columns
        self._width = 32 * parameters.columns
        super().__init__(
            {
                "packets": In(stream.Signature(32)),
                "run": In(1),
                "start": Out(1),
                "enable": Out(len(isa.Target)),
                "address": Out(isa.ADDRESS),
                "data": Out(self._width),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        target, remaining = Signal(4), Signal(28)
        beat = Signal(range(self._columns))
        shift = Signal(self._width)
        stepped = Signal()  # the address moves on the cycle after a write
        taken = self.packets.valid & self.packets.ready
        m.d.sync += [self.enable.eq(0), self.start.eq(0), stepped.eq(0)]
        with m.If(stepped):
            with m.If(target == isa.Target.ACTIVATIONS):
                m.d.sync += self.address.eq(self.address + 4)
            with m.Else():
                m.d.sync += self.address.eq(self.address + 1)

        with m.FSM():
            with m.State("HEADER"):
                m.d.comb += self.packets.ready.eq(~self.run & ~self.start & ~stepped)
                with m.If(taken):
                    m.d.sync += [Cat(remaining, target).eq(self.packets.payload), beat.eq(0)]
                    m.next = "ADDRESS"
            with m.State("ADDRESS"):
                m.d.comb += self.packets.ready.eq(1)
                with m.If(taken):
                    m.d.sync += self.address.eq(self.packets.payload)
                    with m.If(target == isa.Target.START):
                        m.d.sync += self.start.eq(1)
                        m.next = "HEADER"
                    with m.Elif(remaining == 0):
                        m.next = "HEADER"
                    with m.Else():
                        m.next = "PAYLOAD"
            with m.State("PAYLOAD"):
                m.d.comb += self.packets.ready.eq(~stepped)
                with m.If(taken):
                    m.d.sync += remaining.eq(remaining - 1)
                    with m.If(target == isa.Target.BIAS):
                        # word = the beats so far, the newest on top
                        m.d.sync += [shift.eq(Cat(shift[32:], self.packets.payload)), beat.eq(beat + 1)]
                        with m.If(beat == self._columns - 1):
                            m.d.sync += [beat.eq(0), self.enable[isa.Target.BIAS].eq(1), stepped.eq(1)]
                    with m.Else():
                        m.d.sync += shift[:32].eq(self.packets.payload)
                        m.d.sync += [self.enable.bit_select(target, 1).eq(1), stepped.eq(1)]
                    with m.If(remaining == 1):
                        m.next = "HEADER"
        m.d.comb += self.data.eq(shift)
        return m
