"""What the units promise about their streams, as assertions beside the unit: nothing lost, doubled or changed.

Each component here holds a unit and a plain description of what it has to do, which shares nothing with the unit but
its ports. Inputs of the component are free; `Assume` says what a unit's surroundings promise it. `sim.formal` proves
them.
"""

from __future__ import annotations

from typing import Any

from amaranth import C, Cat, Module, Mux, Signal
from amaranth.hdl import Assert, Assume, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw import isa
from hw.emitter import Emitter
from hw.loader import Loader
from hw.parameters import MultiplierKind, Parameters

_SMALL = Parameters((MultiplierKind("exact", "exact"),))
PATIENCE = 3  # cycles within which a unit that has something to do offers or takes a beat


def before(m: Module, value: Any) -> Signal:
    """The value in the cycle before; zero in the first."""
    past = Signal(len(Value.cast(value)))
    m.d.sync += past.eq(value)
    return past


def first_cycle(m: Module) -> Signal:
    """1 in the first cycle after reset."""
    first = Signal(init=1)
    m.d.sync += first.eq(0)
    return first


def constant(m: Module, value: Any) -> None:
    """Assume that an input holds the value of the first cycle."""
    value = Value.cast(value)
    m.d.comb += Assume(first_cycle(m) | (value == before(m, value)), "it holds still")


def keeps_offers(m: Module, beats: stream.Interface) -> None:
    """Assert that what is offered stays offered, and the same, until it is taken."""
    payload = Value.cast(beats.payload)
    waiting = before(m, beats.valid & ~beats.ready)
    m.d.comb += Assert(~waiting | (beats.valid & (payload == before(m, payload))), "an offer stays until it is taken")


def is_patient(m: Module, waits: Any, patience: int = PATIENCE) -> None:
    """Assert that `waits` is never 1 for more than `patience` cycles on end."""
    waited = Signal(range(patience + 2))
    with m.If(waits):
        m.d.sync += waited.eq(waited + 1)
        m.d.comb += Assert(waited < patience, "there is no long wait")
    with m.Else():
        m.d.sync += waited.eq(0)


class EmitterProperties(wiring.Component):
    """One packet, of any kind and length, to a receiver that may stall at any time: header and every word once, in
    order, LAST on the last of them, then nothing more.

    The memories hold their own addresses, so a word says where it came from.
    """

    config: data.View
    ready: Signal
    ended: Signal

    def __init__(self, emitter: Emitter, parameters: Parameters) -> None:
        self._emitter, self._word_bytes = emitter, parameters.square**2
        super().__init__({"config": In(isa.EMIT), "ready": In(1), "ended": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.emitter = emitter = self._emitter
        beats, config = emitter.beats, self.config
        constant(m, config)
        m.d.comb += Assume((config.count < 64) & (config.base < 256), "more is no different in so few cycles")
        bytes_of = [Value.cast(emitter.read_data), Value.cast(emitter.vote_data)]
        places = [emitter.read_address, emitter.vote_address * self._word_bytes]
        for memory, place in zip(bytes_of, places, strict=True):
            m.d.sync += memory.eq(Cat((place + i)[:8] for i in range(len(memory) // 8)))
        numbered = Cat(C(i, 32) for i in range(2 * len(isa.COUNTERS)))
        counts = Signal()
        m.d.comb += [
            emitter.config.eq(config),
            emitter.start.eq(first_cycle(m)),
            emitter.counters.eq(numbered),
            beats.ready.eq(self.ready),
            counts.eq(config.opcode == isa.Opcode.COUNTERS),
        ]

        unit = Mux(config.votes, self._word_bytes, 1)
        size, base, word = Signal(24), Signal(8), Signal(16)  # words of the payload that were taken
        sent = Signal()  # the header was taken
        m.d.comb += [
            size.eq(Mux(counts, 8 * len(isa.COUNTERS), config.count * unit)),
            base.eq(config.base * unit),
        ]
        payload = Mux(counts, word, Cat((base + 4 * word + i)[:8] for i in range(4)))
        taken = beats.valid & beats.ready
        last = Mux(sent, word + 1 == (size + 3) >> 2, size == 0)
        with m.If(taken):
            wanted = Mux(sent, payload, Cat(size, config.tag))
            m.d.comb += Assert(beats.payload.data == wanted, "the next word, once")
            m.d.comb += Assert(beats.payload.last == last, "LAST comes with the last word")
            m.d.sync += [sent.eq(1), word.eq(word + sent), self.ended.eq(last)]
        m.d.comb += [
            Assert(emitter.done == (taken & last), "done comes with the last word"),
            Assert(~(self.ended & beats.valid), "nothing follows"),
            Assert(emitter.stalled == (beats.valid & ~beats.ready), "stalls are counted"),
        ]
        keeps_offers(m, beats)
        is_patient(m, ~beats.valid & ~self.ended)
        return m


class LoaderProperties(wiring.Component):
    """Any packets, with any gaps: every word is written once, where and as the packets say, in the cycle after its last
    beat; START starts once; nothing is taken while a program runs.

    Of a beat the four highest and the eight lowest bits are open.
    """

    valid: Signal
    target: Signal
    low: Signal
    run: Signal
    wrote: Signal

    def __init__(self, loader: Loader, parameters: Parameters) -> None:
        self._loader, self._columns = loader, parameters.columns
        super().__init__({"valid": In(1), "target": In(4), "low": In(8), "run": In(1), "wrote": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.loader = loader = self._loader
        payload = Signal(32)
        m.d.comb += [
            loader.packets.valid.eq(self.valid),
            payload.eq(Cat(self.low, C(0, 20), self.target)),
            loader.packets.payload.eq(payload),
            loader.run.eq(self.run),
            Assume(~self.run | before(m, self.run | loader.start), "only a start lets a program run"),
        ]
        taken = loader.packets.valid & loader.packets.ready
        m.d.comb += Assert(~(taken & self.run), "nothing is taken while a program runs")
        is_patient(m, ~loader.packets.ready & ~self.run)

        # A reader of packets of its own: which beat this is, and what is to be written after it.
        at = Signal(2)  # header, address, payload
        target, remaining, address = Signal(4), Signal(28), Signal(isa.ADDRESS)
        part, words = Signal(8), Signal(32 * self._columns)
        wide = target == isa.Target.BIAS
        complete, starts = Signal(), Signal()
        step = Mux(target == isa.Target.ACTIVATIONS, 4, 1)
        with m.If(taken), m.Switch(at):
            with m.Case(0):
                # the targets that this description knows
                known = [isa.Target[name] for name in ("START", "PROGRAM", "BIAS", "ACTIVATIONS", "EXP_TABLE")]
                m.d.comb += Assume(Cat(payload[28:] == t for t in known).any(), "the target is known")
                m.d.sync += [target.eq(payload[28:]), remaining.eq(payload[:28]), at.eq(1), part.eq(0)]
            with m.Case(1):
                m.d.comb += starts.eq(target == isa.Target.START)
                m.d.sync += [address.eq(payload), at.eq(Mux(starts | (remaining == 0), 0, 2))]
            with m.Case(2):
                m.d.comb += complete.eq(~wide | (part == self._columns - 1))
                m.d.sync += [remaining.eq(remaining - 1), words.word_select(part, 32).eq(payload)]
                m.d.sync += part.eq(Mux(complete, 0, part + 1))
                with m.If(complete):
                    m.d.sync += address.eq(address + step)
                with m.If(remaining == 1):
                    m.d.sync += at.eq(0)

        started, ended = before(m, starts), before(m, complete)
        where = before(m, Mux(starts, payload[: isa.ADDRESS], address))
        enable = Mux(ended, 1 << before(m, target), 0)[: len(loader.enable)]
        whole = Mux(before(m, wide), loader.data[: len(words)] == words, loader.data[:32] == words[:32])
        m.d.comb += [
            Assert(loader.start == started, "START starts"),
            Assert(loader.enable == enable, "a complete word is written, once"),
            Assert(~(started | ended) | (loader.address == where), "at its place"),
            Assert(~ended | whole, "with its content"),
        ]
        m.d.comb += self.wrote.eq(ended)
        return m


def emitter(unit: type[Emitter] = Emitter) -> EmitterProperties:
    """The emitter, as small as the parameters allow, with its properties."""
    return EmitterProperties(unit(_SMALL), _SMALL)


def loader(unit: type[Loader] = Loader) -> LoaderProperties:
    """The loader, as small as the parameters allow, with its properties."""
    return LoaderProperties(unit(_SMALL), _SMALL)
