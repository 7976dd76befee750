"""Reading by AXI4: bursts far enough ahead to hide the memory's latency, and beats cut into words."""

from __future__ import annotations

from typing import Any

from amaranth import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO, SyncFIFOBuffered
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from hw import axi

COUNT = 32  # bits of a request's length


def read_request(beat_address_bits: int) -> data.StructLayout:
    """`count` beats of the bus from beat address `beat` on; zero of them is nothing."""
    return data.StructLayout({"beat": beat_address_bits, "count": COUNT})


class BurstReader(wiring.Component):
    """Answers requests for stretches of memory with their beats, in order.

    A burst is asked for only when the queue has room for all of it, so the memory never waits: `r.ready` is always 1,
    and several readers can share a bus, whatever the order of their data. Up to `burst` * `outstanding` beats are
    under way or in the queue; as room comes free burst by burst, a latency of up to (`outstanding` - 1) * `burst` - 4
    cycles, from the address to the first beat, costs no bandwidth. Bursts end at multiples of `burst` beats, a power
    of two that divides 4 KiB, so none crosses that boundary.

    With `halt` no further burst begins. A response other than OKAY raises `failed`, which stays until reset, with the
    `failed_beat` (first of the burst) and the `failed_response`; no beat from there on is handed out. `pending` says
    that bursts are under way, `owing` that a request has not been answered in full.
    """

    requests: stream.Interface
    ar: stream.Interface
    r: stream.Interface
    beats: stream.Interface
    halt: Signal
    pending: Signal
    owing: Signal
    failed: Signal
    failed_beat: Signal
    failed_response: Signal

    def __init__(self, bus_bits: int, address_bits: int, burst: int, outstanding: int, number: int) -> None:
        self._bus_bits, self._burst, self._outstanding, self._number = bus_bits, burst, outstanding, number
        self._beat_bits = exact_log2(bus_bits // 8)  # address bits within a beat
        beat_address = address_bits - self._beat_bits
        super().__init__({
            "requests": In(stream.Signature(read_request(beat_address))),
            "ar": Out(stream.Signature(axi.burst_address(address_bits))),
            "r": In(stream.Signature(axi.read_beat(bus_bits))),
            "beats": Out(stream.Signature(bus_bits)),
            "halt": In(1), "pending": Out(1), "owing": Out(1),
            "failed": Out(1), "failed_beat": Out(beat_address), "failed_response": Out(2),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        depth = self._burst * self._outstanding
        m.submodules.queue = queue = SyncFIFOBuffered(width=self._bus_bits, depth=depth)
        # Where the bursts under way begin, for the report of an error.
        m.submodules.starts = starts = SyncFIFO(width=len(self.failed_beat), depth=self._outstanding)

        beat, remaining = Signal.like(self.failed_beat), Signal(COUNT)
        room = Signal(range(depth + 1), init=depth)
        to_boundary, length = Signal(range(self._burst + 1)), Signal(range(self._burst + 1))
        m.d.comb += [
            to_boundary.eq(self._burst - (beat & (self._burst - 1))),
            length.eq(Mux(remaining < to_boundary, remaining, to_boundary)),
        ]
        issue, taken = Signal(), Signal()
        m.d.comb += [
            issue.eq(
                (remaining != 0) & (length <= room) & starts.w_rdy & ~self.halt & (~self.ar.valid | self.ar.ready)
            ),
            taken.eq(self.beats.valid & self.beats.ready),
            self.requests.ready.eq(remaining == 0),
        ]
        with m.If(self.requests.valid & self.requests.ready):
            m.d.sync += [beat.eq(self.requests.payload.beat), remaining.eq(self.requests.payload.count)]
        with m.If(self.ar.ready):
            m.d.sync += self.ar.valid.eq(0)
        with m.If(issue):
            m.d.sync += [
                self.ar.valid.eq(1),
                self.ar.payload.addr.eq(beat << self._beat_bits),
                self.ar.payload.len.eq(length - 1),
                beat.eq(beat + length),
                remaining.eq(remaining - length),
            ]
        m.d.sync += room.eq(room - Mux(issue, length, 0) + taken)

        done, broken = Signal(), Signal()
        m.d.comb += [
            self.ar.payload.id.eq(self._number),
            starts.w_data.eq(beat),
            starts.w_en.eq(issue),
            starts.r_en.eq(done),
            done.eq(self.r.valid & self.r.payload.last),
            broken.eq(self.r.valid & self.r.payload.resp[1]),  # SLVERR or DECERR
            self.r.ready.eq(1),
            queue.w_data.eq(self.r.payload.data),
            queue.w_en.eq(self.r.valid & ~broken & ~self.failed),
            self.beats.payload.eq(queue.r_data),
            self.beats.valid.eq(queue.r_rdy),
            queue.r_en.eq(self.beats.ready),
            self.pending.eq(starts.r_rdy),
            self.owing.eq((remaining != 0) | starts.r_rdy | (queue.r_level != 0)),
        ]
        with m.If(broken & ~self.failed):
            m.d.sync += [
                self.failed.eq(1),
                self.failed_beat.eq(starts.r_data),
                self.failed_response.eq(self.r.payload.resp),
            ]
        return m


class ReadArbiter(wiring.Component):
    """The read channels of `readers` BurstReaders, as one pair. The higher number goes first: it is the one that is
    waited for.
    """

    ar: stream.Interface
    r: stream.Interface

    def __init__(self, bus_bits: int, address_bits: int, readers: int) -> None:
        self._readers = readers
        ar, r = stream.Signature(axi.burst_address(address_bits)), stream.Signature(axi.read_beat(bus_bits))
        super().__init__(
            {"ar": Out(ar), "r": In(r)}
            | {f"ar_{i}": In(ar) for i in range(readers)}
            | {f"r_{i}": Out(r) for i in range(readers)}
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        bursts = [getattr(self, f"ar_{i}") for i in range(self._readers)]
        beats = [getattr(self, f"r_{i}") for i in range(self._readers)]
        choice, held_choice = Signal(range(self._readers)), Signal(range(self._readers))
        held = Signal()  # what was offered has to stay
        for i, burst in enumerate(bursts):
            with m.If(burst.valid):
                m.d.comb += choice.eq(i)
        with m.If(held):
            m.d.comb += choice.eq(held_choice)
        m.d.sync += [held.eq(self.ar.valid & ~self.ar.ready), held_choice.eq(choice)]
        with m.Switch(choice):
            for i, burst in enumerate(bursts):
                with m.Case(i):
                    m.d.comb += [
                        self.ar.valid.eq(burst.valid),
                        self.ar.payload.eq(burst.payload),
                        burst.ready.eq(self.ar.ready),
                    ]
        m.d.comb += self.r.ready.eq(1)  # as all readers are, always
        for i, beat in enumerate(beats):
            m.d.comb += [
                beat.payload.eq(self.r.payload),
                beat.valid.eq(self.r.valid & (self.r.payload.id == i)),
            ]
        return m


class Narrower(wiring.Component):
    """Beats of the bus as 32-bit words, the lowest first: `count` words from `start` on, then the rest of the last
    beat is dropped. `busy` until the last word has gone.
    """

    beats: stream.Interface
    words: stream.Interface
    start: Signal
    count: Signal
    busy: Signal

    def __init__(self, bus_bits: int) -> None:
        self._lanes = bus_bits // 32
        super().__init__({
            "beats": In(stream.Signature(bus_bits)), "words": Out(stream.Signature(32)),
            "start": In(1), "count": In(COUNT), "busy": Out(1),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        held = Signal.like(self.beats.payload)
        lanes = Signal(range(self._lanes + 1))  # that are still in `held`
        remaining = Signal(COUNT)
        taken = self.words.valid & self.words.ready
        m.d.comb += [
            self.busy.eq(remaining != 0),
            self.words.payload.eq(held[:32]),
            self.words.valid.eq(self.busy & (lanes != 0)),
            self.beats.ready.eq(self.busy & ((lanes == 0) | (taken & (lanes == 1) & (remaining != 1)))),
        ]
        with m.If(taken):
            m.d.sync += [held.eq(held >> 32), lanes.eq(lanes - 1), remaining.eq(remaining - 1)]
            with m.If(remaining == 1):
                m.d.sync += lanes.eq(0)
        with m.If(self.beats.valid & self.beats.ready):
            m.d.sync += [held.eq(self.beats.payload), lanes.eq(self._lanes)]
        with m.If(self.start):
            m.d.sync += remaining.eq(self.count)
        return m
