"""Writing beats by AXI4: stretches of memory in bursts, and two writers on one bus."""

from __future__ import annotations

from typing import Any

from amaranth import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO, SyncFIFOBuffered
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from hw import axi
from hw.axi_read import COUNT, read_request

OUTSTANDING = 8  # bursts whose responses may be missing


def strobed_beat(bus_bits: int) -> data.StructLayout:
    """A beat to be written, and which of its bytes."""
    return data.StructLayout({"data": bus_bits, "strobes": bus_bits // 8})


class BeatWriter(wiring.Component):
    """Answers requests for room in memory (`hw.axi_read.read_request`, of one beat at least) with a response each, when
    as many of the `beats` that come have been written there.

    A burst begins when all its beats are there, and its data go out beside its address, so a started burst always ends
    by itself. The next one does not wait for its response: up to OUTSTANDING may be missing. Bursts end at multiples of
    `burst`, as in `hw.axi_read.BurstReader`; so `halt`, `pending`, `failed` and what goes with it. After an error no
    further burst begins.
    """

    requests: stream.Interface
    beats: stream.Interface
    responses: stream.Interface
    aw: stream.Interface
    w: stream.Interface
    b: stream.Interface
    halt: Signal
    pending: Signal
    failed: Signal
    failed_beat: Signal
    failed_response: Signal

    def __init__(self, bus_bits: int, address_bits: int, burst: int, number: int) -> None:
        self._bus_bits, self._burst, self._number = bus_bits, burst, number
        self._beat_bits = exact_log2(bus_bits // 8)
        beat_address = address_bits - self._beat_bits
        super().__init__({
            "requests": In(stream.Signature(read_request(beat_address))),
            "beats": In(stream.Signature(strobed_beat(bus_bits))), "responses": Out(stream.Signature(0)),
            "aw": Out(stream.Signature(axi.burst_address(address_bits))),
            "w": Out(stream.Signature(axi.write_beat(bus_bits))),
            "b": In(stream.Signature(axi.write_response())),
            "halt": In(1), "pending": Out(1),
            "failed": Out(1), "failed_beat": Out(beat_address), "failed_response": Out(2),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        layout = strobed_beat(self._bus_bits)
        m.submodules.queue = queue = SyncFIFOBuffered(width=layout.size, depth=2 * self._burst)
        # Where the bursts begin whose responses are missing, for the report of an error.
        m.submodules.starts = starts = SyncFIFO(width=len(self.failed_beat), depth=OUTSTANDING)
        out = data.View(layout, queue.r_data)
        beat, remaining = Signal.like(self.failed_beat), Signal(COUNT)
        to_boundary, length = Signal(range(self._burst + 1)), Signal(range(self._burst + 1))
        left = Signal.like(length)  # beats of the burst that W still has to send
        asked = Signal()  # a request is under way
        m.d.comb += [
            to_boundary.eq(self._burst - (beat & (self._burst - 1))),
            length.eq(Mux(remaining < to_boundary, remaining, to_boundary)),
            self.requests.ready.eq(~asked),
            queue.w_data.eq(self.beats.payload),
            queue.w_en.eq(self.beats.valid),
            self.beats.ready.eq(queue.w_rdy),
            self.aw.payload.id.eq(self._number),
            self.w.payload.data.eq(out.data),
            self.w.payload.strb.eq(out.strobes),
            self.w.payload.last.eq(left == 1),
            self.w.valid.eq((left != 0) & queue.r_rdy),
            queue.r_en.eq((left != 0) & self.w.ready),
            self.pending.eq(starts.r_rdy | self.aw.valid | (left != 0)),
        ]
        issue = Signal()
        m.d.comb += [
            issue.eq((remaining != 0) & (queue.r_level >= length) & starts.w_rdy & ~self.halt & ~self.failed
                     & ~self.aw.valid & (left == 0)),
            starts.w_data.eq(beat),
            starts.w_en.eq(issue),
        ]  # fmt: skip
        with m.If(self.requests.valid & self.requests.ready):
            m.d.sync += [asked.eq(1), beat.eq(self.requests.payload.beat), remaining.eq(self.requests.payload.count)]
        with m.If(self.aw.ready):
            m.d.sync += self.aw.valid.eq(0)
        with m.If(self.w.valid & self.w.ready):
            m.d.sync += left.eq(left - 1)
        with m.If(issue):
            m.d.sync += [
                self.aw.valid.eq(1),
                self.aw.payload.addr.eq(beat << self._beat_bits),
                self.aw.payload.len.eq(length - 1),
                left.eq(length),
                beat.eq(beat + length),
                remaining.eq(remaining - length),
            ]

        broken = self.b.payload.resp[1]  # SLVERR or DECERR
        m.d.comb += [
            self.b.ready.eq(1),
            starts.r_en.eq(self.b.valid),
            self.responses.valid.eq(asked & (remaining == 0) & ~starts.r_rdy & ~self.failed),
        ]
        with m.If(self.responses.valid & self.responses.ready):
            m.d.sync += asked.eq(0)
        with m.If(self.b.valid & starts.r_rdy & broken & ~self.failed):
            m.d.sync += [
                self.failed.eq(1),
                self.failed_beat.eq(starts.r_data),
                self.failed_response.eq(self.b.payload.resp),
            ]
        return m


class WriteArbiter(wiring.Component):
    """The write channels of two writers, which send the data of one burst after the other, as one: a burst's data
    follow its address, and whose response it is, its ID says. The second writer goes first.
    """

    aw: stream.Interface
    w: stream.Interface
    b: stream.Interface

    def __init__(self, bus_bits: int, address_bits: int) -> None:
        channels = {name: member for name, member in axi.master_channels(address_bits, bus_bits).items()
                    if name in ("aw", "w", "b")}  # fmt: skip
        super().__init__(
            channels | {f"{name}_{i}": member.flip() for name, member in channels.items() for i in range(2)}
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        aw, w, b = ([getattr(self, f"{name}_{i}") for i in range(2)] for name in ("aw", "w", "b"))
        # A burst is under way until its address and its last beat have been taken, in any order.
        busy, owner, choice = Signal(), Signal(), Signal()
        addressed, ended = Signal(), Signal()
        m.d.comb += choice.eq(Mux(busy, owner, aw[1].valid))
        with m.Switch(choice):
            for i in range(2):
                with m.Case(i):
                    m.d.comb += [
                        self.aw.valid.eq(aw[i].valid & ~addressed),
                        self.aw.payload.eq(aw[i].payload),
                        aw[i].ready.eq(self.aw.ready & ~addressed),
                        self.w.valid.eq(w[i].valid & ~ended & (busy | aw[i].valid)),
                        self.w.payload.eq(w[i].payload),
                        w[i].ready.eq(self.w.ready & ~ended & (busy | aw[i].valid)),
                    ]
        with m.Switch(self.b.payload.id):
            for i in range(2):
                with m.Case(i):
                    m.d.comb += [b[i].valid.eq(self.b.valid), self.b.ready.eq(b[i].ready)]
        m.d.comb += [b[i].payload.eq(self.b.payload) for i in range(2)]
        now_addressed, now_ended = Signal(), Signal()
        m.d.comb += [
            now_addressed.eq(addressed | (self.aw.valid & self.aw.ready)),
            now_ended.eq(ended | (self.w.valid & self.w.ready & self.w.payload.last)),
        ]
        m.d.sync += [addressed.eq(now_addressed), ended.eq(now_ended), owner.eq(choice)]
        m.d.sync += busy.eq(busy | aw[0].valid | aw[1].valid)
        with m.If(now_addressed & now_ended):
            m.d.sync += [busy.eq(0), addressed.eq(0), ended.eq(0)]
        return m
