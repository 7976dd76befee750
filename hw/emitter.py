"""The emitter: a region of memory, or the performance counters, as one packet of the output stream."""

from __future__ import annotations

from typing import Any

from amaranth import Array as Select
from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw import isa
from hw.parameters import Parameters

BEAT = data.StructLayout({"data": 32, "last": 1})


class Emitter(wiring.Component):
    """Runs an EMIT or COUNTERS descriptor: a header beat {payload bytes: bits 23-0, tag: bits 31-24}, then the
    payload, lowest byte first.

    Vote words leave lane by lane. A counter is two beats, the low one first. A beat takes three cycles (address,
    data, hand over), more when the receiver is not ready; `stalled` marks those cycles.
    """

    config: data.View
    start: Signal
    done: Signal
    counters: data.View
    read_address: Signal
    read_data: data.View
    vote_address: Signal
    vote_data: data.View
    beats: stream.Interface
    stalled: Signal

    def __init__(self, parameters: Parameters) -> None:
        p = self._parameters = parameters
        super().__init__(
            {
                "config": In(isa.EMIT),
                "start": In(1),
                "done": Out(1),
                "counters": In(data.ArrayLayout(64, len(isa.COUNTERS))),
                "read_address": Out(isa.ADDRESS),
                "read_data": In(data.ArrayLayout(8, p.lanes)),
                "vote_address": Out(isa.ADDRESS),
                "vote_data": In(data.ArrayLayout(data.ArrayLayout(8, p.square), p.square)),
                "beats": Out(stream.Signature(BEAT)),
                "stalled": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        p = self._parameters
        beats_per_word = p.square * p.square // 4
        config = self.config
        remaining = Signal(isa.ADDRESS)  # payload beats still to come
        address = Signal(isa.ADDRESS)
        part = Signal(range(max(beats_per_word, 2 * len(isa.COUNTERS))))  # beat within a vote word, or of the counters
        beat = Signal(32)
        payload_bytes = Signal(isa.ADDRESS)
        is_counters = config.opcode == isa.Opcode.COUNTERS
        word, counters = self.vote_data.as_value(), self.counters.as_value()
        vote_beats = Select(word[32 * i : 32 * i + 32] for i in range(beats_per_word))
        counter_beats = Select(counters[32 * i : 32 * i + 32] for i in range(2 * len(isa.COUNTERS)))
        m.d.comb += [
            payload_bytes.eq(
                Mux(
                    is_counters,
                    8 * len(isa.COUNTERS),
                    Mux(config.votes, config.count * (p.square * p.square), config.count),
                )
            ),
            self.read_address.eq(address),
            self.vote_address.eq(address),
            self.beats.payload.data.eq(beat),
            self.beats.payload.last.eq(remaining == 0),
        ]
        with m.FSM():
            with m.State("IDLE"), m.If(self.start):
                m.d.sync += [
                    beat.eq(Cat(payload_bytes, config.tag)),
                    remaining.eq((payload_bytes + 3) >> 2),
                    address.eq(config.base),
                    part.eq(0),
                ]
                m.next = "SEND"
            with m.State("READ"):
                m.next = "TAKE"
            with m.State("TAKE"):
                m.d.sync += [
                    beat.eq(
                        Mux(
                            is_counters,
                            counter_beats[part],
                            Mux(config.votes, vote_beats[part], Cat(self.read_data[i] for i in range(4))),
                        )
                    ),
                    remaining.eq(remaining - 1),
                ]
                with m.If(is_counters):
                    m.d.sync += part.eq(part + 1)
                with m.Elif(~config.votes):
                    m.d.sync += address.eq(address + 4)
                with m.Elif(part == beats_per_word - 1):
                    m.d.sync += [part.eq(0), address.eq(address + 1)]
                with m.Else():
                    m.d.sync += part.eq(part + 1)
                m.next = "SEND"
            with m.State("SEND"):
                m.d.comb += [self.beats.valid.eq(1), self.stalled.eq(~self.beats.ready)]
                with m.If(self.beats.ready):
                    with m.If(remaining == 0):
                        m.d.comb += self.done.eq(1)
                        m.next = "IDLE"
                    with m.Else():
                        m.next = "READ"
        return m
