"""What brings weights to the array promises, as assertions: every beat of the memory once, in order, whatever stalls.

As in `sim.properties`: a unit, a plain description of what it has to do, inputs free but for what is assumed.
"""

from __future__ import annotations

from amaranth import Array, Module, Mux, Signal
from amaranth.hdl import Assert, Assume, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.axi_read import BurstReader
from hw.parameters import MultiplierKind, Parameters
from hw.weights import WeightBuffer
from sim.properties import before, is_patient, keeps_offers

# A word of 16 bytes in two beats; a ring of three words, so that it wraps where no power of two does.
_RING = Parameters((MultiplierKind("exact", "exact"),), bus_bits=64, weight_words=3)
_BURST, _OUTSTANDING, _ADDRESS = 2, 2, 14


class WeightBufferProperties(wiring.Component):
    """Beats that come with any gaps, a reader that takes words when it likes: every word whole, once, in order, and
    available as soon as its last beat has come; beats are taken while there is room.

    The beats are numbered, so a word says which beats it was made of.
    """

    valid: Signal
    next: Signal
    read: Signal

    def __init__(self, buffer: WeightBuffer, parameters: Parameters) -> None:
        self._buffer, self._parameters = buffer, parameters
        super().__init__({"valid": In(1), "next": In(1), "read": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        p = self._parameters
        m.submodules.buffer = buffer = self._buffer
        pieces = p.word_beats
        beats, words = Signal(8), Signal(8)  # that came, and that were dropped
        taken = buffer.beats.valid & buffer.beats.ready
        m.d.comb += [
            buffer.beats.valid.eq(self.valid),
            buffer.beats.payload.eq(beats),
            buffer.next.eq(self.next),
            Assume(~self.next | buffer.available, "only a word that is there is dropped"),
        ]
        m.d.sync += [beats.eq(beats + taken), words.eq(words + self.next)]
        held = Signal(8)  # whole words in the ring
        m.d.comb += [
            held.eq((beats >> (pieces.bit_length() - 1)) - words),
            Assert(buffer.available == (held != 0), "a whole word is available, at once"),
            Assert(buffer.beats.ready == (held != p.weight_words), "beats are taken while there is room"),
        ]
        front = Value.cast(buffer.word)
        for piece in range(pieces):
            was = before(m, words * pieces + piece)
            found = front[p.bus_bits * piece : p.bus_bits * (piece + 1)]
            m.d.comb += Assert(~before(m, buffer.available) | (found == was), "the front word, whole")
        m.d.comb += self.read.eq((words == p.weight_words) & before(m, self.next))
        return m


class BurstReaderProperties(wiring.Component):
    """One request of any place and length, a memory that answers when it likes: every beat of the request once, in
    order, and no other; bursts follow each other and end at multiples of their greatest length; while something is
    missing and the memory has answered all, there is no long wait.

    The memory holds its own addresses, so a beat says where it came from.
    """

    beat: Signal
    count: Signal
    ask: Signal
    ar_ready: Signal
    answer: Signal
    ready: Signal
    ended: Signal

    def __init__(self, reader: BurstReader) -> None:
        self._reader = reader
        super().__init__({
            "beat": In(5), "count": In(4), "ask": In(1), "ar_ready": In(1), "answer": In(1), "ready": In(1),
            "ended": Out(1),
        })  # fmt: skip

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.reader = reader = self._reader
        asked, first, count = Signal(), Signal(5), Signal(4)
        request = reader.requests
        m.d.comb += [
            request.valid.eq(self.ask & ~asked),
            request.payload.beat.eq(self.beat),
            request.payload.count.eq(self.count),
            reader.ar.ready.eq(self.ar_ready),
            reader.beats.ready.eq(self.ready),
        ]
        with m.If(request.valid & request.ready):
            m.d.sync += [asked.eq(1), first.eq(self.beat), count.eq(self.count)]

        # The memory: bursts as they came, answered in order, each from its address on.
        slots = 4
        places = Array(Signal(6, name=f"place_{i}") for i in range(slots))
        lengths = Array(Signal(2, name=f"length_{i}") for i in range(slots))
        came, done, inside = Signal(4), Signal(4), Signal(2)
        burst = reader.ar.payload
        address = burst.addr >> 2  # of 32-bit beats
        here = Signal(6)
        under_way = Signal(4)
        waiting = under_way != 0
        m.d.comb += [under_way.eq(came - done), here.eq(places[done[:2]] + inside)]
        with m.If(reader.ar.valid & self.ar_ready):
            m.d.sync += [places[came[:2]].eq(address), lengths[came[:2]].eq(burst.len), came.eq(came + 1)]
            m.d.comb += Assert(came - done < slots, "no more bursts under way than told")
        last = inside == lengths[done[:2]]
        m.d.comb += [
            reader.r.valid.eq(self.answer & waiting),
            reader.r.payload.data.eq(here),
            reader.r.payload.last.eq(last),
        ]
        with m.If(self.answer & waiting):
            m.d.sync += [inside.eq(Mux(last, 0, inside + 1)), done.eq(done + last)]

        wanted, given = Signal(5), Signal(5)  # beats that were asked of the memory, and those handed out
        with m.If(reader.ar.valid & self.ar_ready):
            m.d.sync += wanted.eq(wanted + burst.len + 1)
            end = (address & (_BURST - 1)) + burst.len + 1
            m.d.comb += [
                Assert(address == first + wanted, "bursts follow each other"),
                Assert(wanted + burst.len < count, "no more is asked for than wanted"),
                Assert(end <= _BURST, "a burst ends at a multiple of its greatest length"),
            ]
        with m.If(reader.beats.valid & self.ready):
            m.d.sync += given.eq(given + 1)
            m.d.comb += Assert(reader.beats.payload == first + given, "the next beat, once")
            m.d.comb += Assert(given < count, "no more than wanted")
        m.d.comb += [
            Assert(reader.r.ready, "the memory never waits"),
            Assert(~asked | reader.owing | (given == count), "what is owed is told"),
            self.ended.eq(asked & (given == count) & (count > _BURST)),
        ]
        keeps_offers(m, reader.ar)
        keeps_offers(m, reader.beats)
        unheard = reader.ar.valid & ~self.ar_ready
        is_patient(m, asked & (given != count) & ~waiting & ~unheard & ~reader.beats.valid)
        return m


def weight_buffer(unit: type[WeightBuffer] = WeightBuffer) -> WeightBufferProperties:
    """The weight buffer, as small as it shows all, with its properties."""
    return WeightBufferProperties(unit(_RING), _RING)


def burst_reader(unit: type[BurstReader] = BurstReader) -> BurstReaderProperties:
    """The reader of the DMA, with bursts of two beats, with its properties."""
    return BurstReaderProperties(unit(32, _ADDRESS, _BURST, _OUTSTANDING, 1))
