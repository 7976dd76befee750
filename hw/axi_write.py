"""Writing by AXI4: words of a stream packed into beats, beats into bursts."""

from __future__ import annotations

from typing import Any

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from hw import axi

COUNT = 32


class BurstWriter(wiring.Component):
    """Puts the 32-bit words that come into memory, one after the other, from beat address `beat` on.

    `start` takes `beat` and `size`, the number of words there is room for. A word beyond `size` is not taken; it raises
    `overflow`. `flush` says that no further word comes: what is left is written, the last beat with strobes for the
    words it has, and then `busy` falls. `written` are the words taken since `start`.

    A burst begins when all its beats are there, and its data go out beside its address, so a started burst always
    ends by itself. One burst at a time: `burst` beats of results take the core longer than the memory. Bursts end at
    multiples of `burst`, as in `hw.axi_read.BurstReader`; so `halt`, `pending`, `failed` and what goes with it.
    """

    words: stream.Interface
    aw: stream.Interface
    w: stream.Interface
    b: stream.Interface
    start: Signal
    beat: Signal
    size: Signal
    flush: Signal
    busy: Signal
    written: Signal
    overflow: Signal
    halt: Signal
    pending: Signal
    failed: Signal
    failed_beat: Signal
    failed_response: Signal

    def __init__(self, bus_bits: int, address_bits: int, burst: int) -> None:
        self._bus_bits, self._burst = bus_bits, burst
        self._beat_bits = exact_log2(bus_bits // 8)
        beat_address = address_bits - self._beat_bits
        super().__init__({
            "words": In(stream.Signature(32)),
            "aw": Out(stream.Signature(axi.burst_address(address_bits))),
            "w": Out(stream.Signature(axi.write_beat(bus_bits))),
            "b": In(stream.Signature(axi.write_response())),
            "start": In(1), "beat": In(beat_address), "size": In(COUNT), "flush": In(1), "busy": Out(1),
            "written": Out(COUNT), "overflow": Out(1), "halt": In(1), "pending": Out(1),
            "failed": Out(1), "failed_beat": Out(beat_address), "failed_response": Out(2),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        packed = data.StructLayout({"data": self._bus_bits, "strb": self._bus_bits // 8})
        m.submodules.queue = queue = SyncFIFOBuffered(width=packed.size, depth=2 * self._burst)
        out = data.View(packed, queue.r_data)
        self._pack(m, queue)

        address, length = Signal.like(self.beat), Signal(range(self._burst + 1))
        to_boundary = Signal(range(self._burst + 1))
        remaining = Signal.like(length)  # beats of the burst that W still has to send
        addressed = Signal()  # AW has been taken
        m.d.comb += [
            to_boundary.eq(self._burst - (address & (self._burst - 1))),
            self.aw.payload.addr.eq(address << self._beat_bits),
            self.aw.payload.len.eq(length - 1),
            self.w.payload.data.eq(out.data),
            self.w.payload.strb.eq(out.strb),
            self.w.payload.last.eq(remaining == 1),
        ]
        with m.If(self.start):
            m.d.sync += address.eq(self.beat)
        with m.FSM() as fsm:
            with m.State("GATHER"):
                whole = queue.r_level >= to_boundary
                last = self.flush & ~self._holding & (queue.r_level != 0)
                start = Mux(whole, to_boundary, queue.r_level)
                m.d.sync += [length.eq(start), remaining.eq(start), addressed.eq(0)]
                with m.If((whole | last) & ~self.halt & ~self.failed):
                    m.next = "BURST"
            with m.State("BURST"):
                m.d.comb += [
                    self.aw.valid.eq(~addressed),
                    self.w.valid.eq((remaining != 0) & queue.r_rdy),
                    queue.r_en.eq((remaining != 0) & self.w.ready),
                ]
                with m.If(self.aw.ready):
                    m.d.sync += addressed.eq(1)
                with m.If(self.w.valid & self.w.ready):
                    m.d.sync += remaining.eq(remaining - 1)
                with m.If(addressed & (remaining == 0)):
                    m.next = "RESPONSE"
            with m.State("RESPONSE"):
                m.d.comb += self.b.ready.eq(1)
                with m.If(self.b.valid):
                    m.d.sync += address.eq(address + length)
                    with m.If(self.b.payload.resp[1]):  # SLVERR or DECERR
                        m.d.sync += [
                            self.failed.eq(1),
                            self.failed_beat.eq(address),
                            self.failed_response.eq(self.b.payload.resp),
                        ]
                    m.next = "GATHER"
        m.d.comb += [
            self.pending.eq(~fsm.ongoing("GATHER")),
            self.busy.eq(self.pending | self._holding | (queue.r_level != 0)),
        ]
        return m

    def _pack(self, m: Module, queue: SyncFIFOBuffered) -> None:
        """Words into beats, and beats into the queue."""
        lanes = self._bus_bits // 32
        words = Signal(data.ArrayLayout(32, lanes))
        present = Signal(lanes)  # words of the beat that are there
        lane = Signal(range(max(2, lanes)))
        last_lane = lane == lanes - 1
        full = Signal()  # the beat waits for the queue
        left = Signal(COUNT)  # room in memory, in words
        self._holding = Signal()
        taken = self.words.valid & self.words.ready
        m.d.comb += [
            self._holding.eq(present != 0),
            queue.w_data.eq(Cat(words, *(bit.replicate(4) for bit in present))),
            queue.w_en.eq(full),
            self.words.ready.eq((left != 0) & (~full | queue.w_rdy)),
            self.overflow.eq(self.words.valid & (left == 0)),
        ]
        with m.If(full & queue.w_rdy):
            m.d.sync += [present.eq(0), full.eq(0)]
        with m.Elif(self.flush & self._holding & ~taken):
            m.d.sync += full.eq(1)
        with m.If(taken):
            m.d.sync += [
                words[lane].eq(self.words.payload),  # type: ignore[index]  # stubs know no index by a signal
                present.bit_select(lane, 1).eq(1),
                full.eq(last_lane),
                lane.eq(Mux(last_lane, 0, lane + 1)),
                left.eq(left - 1),
                self.written.eq(self.written + 1),
            ]
        with m.If(self.start):
            m.d.sync += [left.eq(self.size), lane.eq(0), self.written.eq(0)]
