"""What the units that move activations promise, as assertions: every byte that is meant, once, and no other.

As in `sim.properties`: a unit, a plain description of what it has to do, inputs free but for what is assumed. Memories
hold their own addresses, so a byte says where it came from.
"""

from __future__ import annotations

from amaranth import Cat, Module, Mux, Signal
from amaranth.hdl import Assert, Assume, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw import isa
from hw.parameters import MultiplierKind, Parameters
from hw.spill import LoadUnit, StoreUnit
from sim.properties import before, constant, first_cycle, is_patient, keeps_offers

# A beat of eight bytes is two vectors of four.
_SMALL = Parameters((MultiplierKind("exact", "exact"),), bus_bits=64, spill=True)
_BEAT, _VECTOR = 8, 4
_THROUGH = 6  # cycles from an address to the beat that it completes


def _small(m: Module, transfer: data.View) -> None:
    """Assume that a transfer is small."""
    m.d.comb += Assume(
        (transfer.count != 0) & (transfer.count < 40) & (transfer.base < 64) & (transfer.base >= _BEAT)
        & (transfer.address < 64), "more is no different in so few cycles",
    )  # fmt: skip


class StoreProperties(wiring.Component):
    """One descriptor, to a receiver that takes and answers when it likes: the request names the beats in which the
    bytes lie, the beats hold them, with strobes for no other, and `done` comes with the answer.
    """

    config: data.View
    request_ready: Signal
    ready: Signal
    answer: Signal
    ended: Signal

    def __init__(self, unit: StoreUnit) -> None:
        self._unit = unit
        super().__init__(
            {"config": In(isa.TRANSFER), "request_ready": In(1), "ready": In(1), "answer": In(1), "ended": Out(1)}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.unit = unit = self._unit
        config = self.config
        constant(m, config)
        _small(m, config)
        place = Value.cast(unit.read_data)
        m.d.sync += place.eq(Cat((unit.read_address + i)[:8] for i in range(_VECTOR)))
        requested, beats, done = Signal(2), Signal(4), Signal()
        first = Signal(8)  # of the byte at the beginning of the next beat, counted from the first that is meant
        total, skip = Signal(4), config.address[:3]
        m.d.comb += [
            unit.config.eq(config),
            unit.start.eq(first_cycle(m)),
            unit.requests.ready.eq(self.request_ready),
            unit.beats.ready.eq(self.ready),
            unit.responses.valid.eq(self.answer & (beats == total) & (requested == 1)),
            total.eq((config.count + skip + _BEAT - 1) >> 3),
            first.eq(beats * _BEAT - skip),
        ]
        with m.If(unit.requests.valid):
            request = unit.requests.payload
            m.d.comb += Assert(requested == 0, "one request")
            m.d.comb += Assert((request.address == config.address - skip) & (request.beats == total), "whole beats")
        with m.If(unit.beats.valid):
            m.d.comb += Assert(beats < total, "no more beats than asked for")
            for i in range(_BEAT):
                number = (first + i)[:8]
                meant = (beats * _BEAT + i >= skip) & (number < config.count)
                byte, strobe = unit.beats.payload.data.word_select(i, 8), unit.beats.payload.strobes[i]
                m.d.comb += Assert(strobe == meant, "strobes for the bytes that are meant")
                m.d.comb += Assert(~meant | (byte == (config.base + number)[:8]), "each from its place")
        m.d.sync += [
            requested.eq(requested + (unit.requests.valid & self.request_ready)),
            beats.eq(beats + (unit.beats.valid & self.ready)),
            done.eq(done | unit.done),
        ]
        m.d.comb += [
            Assert(unit.done == (unit.responses.valid & unit.responses.ready), "done with the answer"),
            self.ended.eq(done & (total > 1)),
        ]
        keeps_offers(m, unit.requests)
        keeps_offers(m, unit.beats)
        waits = unit.requests.valid | unit.beats.valid | ((beats == total) & ~self.answer)
        is_patient(m, ~waits & ~done & ~unit.start, _THROUGH)
        return m


class LoadProperties(wiring.Component):
    """Two descriptors, one after the other, beats with any gaps, other units that write when they like: those go first
    and unchanged; of the loads, every byte that is meant is written once, where it should be, and no other.
    """

    one: data.View
    two: data.View
    offer: Signal
    request_ready: Signal
    valid: Signal
    other: Signal
    ended: Signal

    def __init__(self, unit: LoadUnit) -> None:
        self._unit = unit
        super().__init__({
            "one": In(isa.TRANSFER), "two": In(isa.TRANSFER), "offer": In(1), "request_ready": In(1), "valid": In(1),
            "other": In(1), "ended": Out(1),
        })  # fmt: skip

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.unit = unit = self._unit
        for transfer in (self.one, self.two):
            constant(m, transfer)
            _small(m, transfer)
        given, asked = Signal(2), Signal(2)  # descriptors that were taken, and requests that were
        owed = [Signal(5, name=f"owed_{i}") for i in range(2)]  # beats of each that have not come
        spans = [(t.address[:3] + t.count + _BEAT - 1) >> 3 for t in (self.one, self.two)]
        current = Mux(asked == 0, self.one, self.two)
        wanted = data.View(isa.TRANSFER, current)
        m.d.comb += [
            unit.loads.valid.eq(self.offer & (given != 2)),
            unit.loads.payload.eq(Mux(given == 0, self.one, self.two)),
            unit.requests.ready.eq(self.request_ready),
        ]
        m.d.sync += given.eq(given + (unit.loads.valid & unit.loads.ready))
        asking = unit.requests.valid & self.request_ready
        with m.If(unit.requests.valid):
            begin, end = wanted.address >> 3, (wanted.address + wanted.count + _BEAT - 1) >> 3
            m.d.comb += Assert((asked < given) & (asked != 2), "a request for each descriptor")
            m.d.comb += Assert(unit.requests.payload.address == begin << 3, "from a whole beat on")
            m.d.comb += Assert(unit.requests.payload.beats == end - begin, "as many beats")
        m.d.sync += asked.eq(asked + asking)
        for index, span in enumerate(spans):
            with m.If(asking & (asked == index)):
                m.d.sync += owed[index].eq(span)

        # The memory outside: beats of the first load, then of the second, each byte its address.
        serving = Signal()  # the second
        beat = Signal(5)  # of that load
        m.d.comb += serving.eq((asked != 0) & (owed[0] == 0))
        source = Mux(serving, self.two.address, self.one.address)
        left = Mux(serving, owed[1], owed[0])
        place = Signal(8)
        m.d.comb += [
            place.eq(((source >> 3) + beat) << 3),
            unit.beats.valid.eq(self.valid & (left != 0)),
            unit.beats.payload.eq(Cat((place + i)[:8] for i in range(_BEAT))),
        ]
        came = unit.beats.valid & unit.beats.ready
        with m.If(came):
            m.d.sync += beat.eq(Mux(left == 1, 0, beat + 1))
            for index in range(2):
                with m.If(serving == index):
                    m.d.sync += owed[index].eq(owed[index] - 1)

        # Another unit's write passes; what is written besides is of the load that is served.
        m.d.comb += [unit.write_enable.eq(self.other), unit.write_mask.eq(-1), unit.write_address.eq(0x5A5)]
        m.d.comb += [Value.cast(unit.write_data).eq(0x01020304)]
        now = data.View(isa.TRANSFER, Mux(serving, self.two, self.one))
        bytes_written = [Signal(6, name=f"written_{i}") for i in range(2)]
        with m.If(self.other):
            passed = (unit.port_address == 0x5A5) & (Value.cast(unit.port_data) == 0x01020304) & unit.port_mask.all()
            m.d.comb += Assert(unit.port_enable & passed, "others go first")
            m.d.comb += Assert(~came, "nothing is lost meanwhile")
        with m.Elif(unit.port_enable):
            m.d.comb += Assert(unit.beats.valid, "only what has come")
            number = Mux(serving, bytes_written[1], bytes_written[0])
            count = sum(unit.port_mask[i] for i in range(_VECTOR))
            for i in range(_VECTOR):
                at = (unit.port_address + i)[:8]
                meant = (at - now.base)[:8] < now.count
                value = (now.address + at - now.base)[:8]
                m.d.comb += Assert(~unit.port_mask[i] | meant, "no byte that is not meant")
                byte = Value.cast(unit.port_data).word_select(i, 8)
                m.d.comb += Assert(~unit.port_mask[i] | (byte == value), "each from its place")
                below = sum((unit.port_mask[j] for j in range(i)), start=0)
                m.d.comb += Assert(~unit.port_mask[i] | (at == (now.base + number + below)[:8]), "in order, once")
            for index in range(2):
                with m.If(serving == index):
                    m.d.sync += bytes_written[index].eq(bytes_written[index] + count)
        ends = [bytes_written[0] == self.one.count, bytes_written[1] == self.two.count]
        m.d.comb += [
            Assert(unit.busy | (given == 0) | ends[0], "busy until the first is there"),
            Assert(unit.busy | (given != 2) | (ends[0] & ends[1]), "busy until both are"),
            self.ended.eq((given == 2) & ~unit.busy & before(m, came)),
        ]
        keeps_offers(m, unit.requests)
        waits = unit.requests.valid | self.other | ((left != 0) & ~self.valid)
        is_patient(m, (given != 0) & unit.busy & ~waits & ~unit.port_enable, _THROUGH)
        return m


def store(unit: type[StoreUnit] = StoreUnit) -> StoreProperties:
    """The unit that stores, as small as it shows all, with its properties."""
    return StoreProperties(unit(_SMALL))


def load(unit: type[LoadUnit] = LoadUnit) -> LoadProperties:
    """The unit that loads, as small as it shows all, with its properties."""
    return LoadProperties(unit(_SMALL))
