"""What the DMA's writers promise, as assertions: every word that came is in memory once, at its place, and no other.

As in `sim.properties`: a unit, a plain description of what it has to do, inputs free but for what is assumed.
"""

from __future__ import annotations

from amaranth import Module, Mux, Signal
from amaranth.hdl import Assert, Assume, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.axi_store import BeatWriter
from hw.axi_write import BurstWriter
from sim.properties import before, first_cycle, is_patient, keeps_offers

_BURST, _ADDRESS = 2, 14
_THROUGH = 5  # cycles in which what came last goes through the writer, where nobody holds it up


class _Memory:
    """The memory's side of the write channels, and what it saw: `beats` that were written, from beat `first` on, and
    whether bursts are `open`, neither sent in full nor answered.

    Asserts that bursts follow each other, end at multiples of their greatest length, wait for nothing but the memory,
    and have LAST on their last beat.
    """

    def __init__(self, m: Module, unit: BeatWriter | BurstWriter, bus_bytes: int, first: Value,
                 ports: tuple[Signal, Signal, Signal]) -> None:  # fmt: skip
        aw_ready, w_ready, answer = ports
        self.beats, asked = Signal(5), Signal(5)  # that were written, and that addresses announced
        inside, length = Signal(2), Signal(2)  # of the burst that is under way: beats so far, and in all
        bursts, ended, answered = Signal(4), Signal(4), Signal(4)
        self.taken = unit.w.valid & w_ready
        addressed = unit.aw.valid & aw_ready
        address = unit.aw.payload.addr >> (bus_bytes.bit_length() - 1)
        now = Signal(2)  # the length of the burst that W sends: its address may not have been taken yet
        m.d.comb += [
            unit.aw.ready.eq(aw_ready),
            unit.w.ready.eq(w_ready),
            now.eq(Mux(unit.aw.valid & (inside == 0) & (bursts == ended), unit.aw.payload.len + 1, length)),
        ]
        last = inside + 1 == now
        with m.If(unit.aw.valid):
            m.d.comb += [
                Assert(address == first + asked, "bursts follow each other"),
                Assert((address & (_BURST - 1)) + unit.aw.payload.len < _BURST, "a burst ends at such a multiple"),
            ]
        with m.If(addressed):
            m.d.sync += [asked.eq(asked + unit.aw.payload.len + 1), bursts.eq(bursts + 1)]
        with m.If(unit.aw.valid & (inside == 0)):
            m.d.sync += length.eq(unit.aw.payload.len + 1)
        with m.If(self.taken):
            m.d.comb += Assert(unit.w.payload.last == last, "LAST is on the last beat")
            m.d.sync += [self.beats.eq(self.beats + 1), inside.eq(Mux(last, 0, inside + 1)), ended.eq(ended + last)]
        sending = Mux(unit.aw.valid, bursts == ended, bursts != ended)
        m.d.comb += Assert(~sending | unit.w.valid, "a burst that has begun has all of its data")
        # An answer comes when address and data have been taken.
        due = (answered != bursts) & (answered != ended)
        m.d.comb += unit.b.valid.eq(answer & due)
        m.d.sync += answered.eq(answered + (unit.b.valid & unit.b.ready))
        self.open = (answered != ended) | (answered != bursts) | (inside != 0)
        self.busy = unit.aw.valid | unit.w.valid | due  # the memory moves, or is waited for
        keeps_offers(m, unit.aw)
        keeps_offers(m, unit.w)


class BurstWriterProperties(wiring.Component):
    """Words with any gaps until `flush`, a memory that takes and answers when it likes: the words, which are numbered,
    lie one after the other where they should, none beyond the room there is, and `busy` falls when all are there.
    """

    beat: Signal
    size: Signal
    offer: Signal
    flush: Signal
    aw_ready: Signal
    w_ready: Signal
    answer: Signal
    ended: Signal

    def __init__(self, writer: BurstWriter) -> None:
        self._writer = writer
        super().__init__({
            "beat": In(4), "size": In(3), "offer": In(1), "flush": In(1), "aw_ready": In(1), "w_ready": In(1),
            "answer": In(1), "ended": Out(1),
        })  # fmt: skip

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.writer = writer = self._writer
        started, first, size = Signal(), Signal(4), Signal(3)
        begin = first_cycle(m)
        words = Signal(4)  # that were taken
        taken = writer.words.valid & writer.words.ready
        m.d.comb += [
            writer.start.eq(begin),
            writer.beat.eq(self.beat),
            writer.size.eq(self.size),
            writer.words.valid.eq(started & self.offer & ~self.flush),
            writer.words.payload.eq(words),
            writer.flush.eq(started & self.flush),
            Assume(~before(m, self.flush) | self.flush, "nothing follows the flush"),
        ]
        with m.If(begin):
            m.d.sync += [started.eq(1), first.eq(self.beat), size.eq(self.size)]
        m.d.sync += words.eq(words + taken)
        memory = _Memory(m, writer, 8, first, (self.aw_ready, self.w_ready, self.answer))
        beat = memory.beats
        for lane in range(2):
            strobes, data = writer.w.payload.strb[4 * lane : 4 * lane + 4], writer.w.payload.data.word_select(lane, 32)
            number = 2 * beat + lane
            with m.If(memory.taken):
                m.d.comb += [
                    Assert((strobes == 0) | (strobes == 0b1111), "a word is written in full"),
                    Assert((strobes != 0) == (number < words), "each word that came, and no other"),
                    Assert((strobes == 0) | (data == number), "at its place"),
                ]
        m.d.comb += [
            Assert(words <= size, "no word beyond the room"),
            Assert(writer.written == words, "what was taken is told"),
            Assert(writer.overflow == (writer.words.valid & (words == size)), "what was not is told"),
            Assert(writer.busy | ~started | ((words + 1) >> 1 == beat) & ~memory.open, "busy until all is there"),
            self.ended.eq(started & ~writer.busy & (words > 2)),
        ]
        is_patient(m, started & self.flush & writer.busy & ~memory.busy, _THROUGH)
        return m


class BeatWriterProperties(wiring.Component):
    """One request of any place and length, its beats with any gaps, a memory that takes and answers when it likes: the
    beats, which are numbered, lie one after the other where they should, and the answer comes once, when all are there.
    """

    beat: Signal
    count: Signal
    offer: Signal
    ready: Signal
    aw_ready: Signal
    w_ready: Signal
    answer: Signal
    ended: Signal

    def __init__(self, writer: BeatWriter) -> None:
        self._writer = writer
        super().__init__({
            "beat": In(4), "count": In(3), "offer": In(1), "ready": In(1), "aw_ready": In(1), "w_ready": In(1),
            "answer": In(1), "ended": Out(1),
        })  # fmt: skip

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.writer = writer = self._writer
        begin = first_cycle(m)
        asked, first, count = Signal(), Signal(4), Signal(3)
        given, responses = Signal(4), Signal(2)
        m.d.comb += [
            writer.requests.valid.eq(begin),
            writer.requests.payload.beat.eq(self.beat),
            writer.requests.payload.count.eq(self.count),
            Assume(~begin | (self.count != 0), "a beat at least"),
            Assert(~begin | writer.requests.ready, "it takes a request when it has none"),
            writer.beats.valid.eq(asked & self.offer & (given != count)),
            writer.beats.payload.data.eq(given),
            writer.beats.payload.strobes.eq(given),
            writer.responses.ready.eq(self.ready),
        ]
        with m.If(begin):
            m.d.sync += [asked.eq(1), first.eq(self.beat), count.eq(self.count)]
        m.d.sync += given.eq(given + (writer.beats.valid & writer.beats.ready))
        memory = _Memory(m, writer, 4, first, (self.aw_ready, self.w_ready, self.answer))
        with m.If(memory.taken):
            m.d.comb += [
                Assert(memory.beats < given, "a beat that came"),
                Assert(writer.w.payload.data == memory.beats, "the next one, once"),
                Assert(writer.w.payload.strb == memory.beats[:4], "with its strobes"),
            ]
        with m.If(writer.responses.valid):
            m.d.comb += Assert(asked & (memory.beats == count) & ~memory.open & (responses == 0), "when all are there")
        m.d.sync += responses.eq(responses + (writer.responses.valid & self.ready))
        m.d.comb += [
            Assert(writer.pending | ~memory.open, "what is under way is told"),
            self.ended.eq((responses == 1) & (count > _BURST)),
        ]
        keeps_offers(m, writer.responses)
        done = (responses != 0) | writer.responses.valid
        is_patient(m, asked & (given == count) & ~done & ~memory.busy, _THROUGH)
        return m


def burst_writer(unit: type[BurstWriter] = BurstWriter) -> BurstWriterProperties:
    """The writer of results, with bursts of two beats of two words, with its properties."""
    return BurstWriterProperties(unit(64, _ADDRESS, _BURST))


def beat_writer(unit: type[BeatWriter] = BeatWriter) -> BeatWriterProperties:
    """The writer of activations, with bursts of two beats, with its properties."""
    return BeatWriterProperties(unit(32, _ADDRESS, _BURST, 1))
