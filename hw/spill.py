"""Activations that live in external memory: the unit that stores them, and the one that loads them behind the others'
work.

Both move a piece a cycle, which is as many bytes as a vector or a beat of the bus, whichever is less. A beat is of
aligned bytes, so the first and the last one may hold bytes that are not meant: they are masked.
"""

from __future__ import annotations

from typing import Any

from amaranth import Cat, Module, Mux, Signal
from amaranth.hdl import Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from hw import isa
from hw.axi_store import strobed_beat
from hw.parameters import Parameters
from hw.requantizer import wire

# A stretch of external memory in whole beats: bytes from where the spilled activations begin, and how many beats.
BEATS = data.StructLayout({"address": 32, "beats": isa.ADDRESS})
LOADS = 16  # descriptors that may wait for their data


def piece_bytes(parameters: Parameters) -> int:
    """Bytes that move in a cycle."""
    return min(parameters.lanes, parameters.bus_bits // 8)


class _Stretch:
    """`count` bytes that begin `skip` bytes after a beat does, piece by piece from the beginning of that beat."""

    def __init__(self, parameters: Parameters) -> None:
        self.piece = piece_bytes(parameters)
        self.skip, self.left = Signal(exact_log2(parameters.bus_bits // 8)), Signal(isa.ADDRESS + 1)

    def start(self, m: Module, address: Value, count: Value) -> None:
        skip = address[: len(self.skip)]
        m.d.sync += [self.skip.eq(skip), self.left.eq(count + skip)]

    def advance(self, m: Module) -> None:
        m.d.sync += [
            self.skip.eq(Mux(self.skip < self.piece, 0, self.skip - self.piece)),
            self.left.eq(self.left - self.piece),
        ]

    @property
    def last(self) -> Value:
        return self.left <= self.piece

    @property
    def mask(self) -> Value:
        """The bytes of the next piece that are meant."""
        return Cat((i >= self.skip) & (i < self.left) for i in range(self.piece))

    def beats(self, m: Module, transfer: Any) -> tuple[Value, Value]:
        """Where a transfer's first beat begins, and the number of its beats."""
        bits = len(self.skip)
        end = wire(m, transfer.count + transfer.address[:bits] + ((1 << bits) - 1))
        return Cat(transfer.address[:bits] & 0, transfer.address[bits:]), end >> bits


class StoreUnit(wiring.Component):
    """Runs a STORE descriptor (`hw.isa.TRANSFER`): asks for its place by `requests`, sends its beats, and is `done`
    when `responses` says that all of them are in memory.

    Cycles from `start` to `done`: 1 + pieces, those of the first beat before `address` included, and those in which it
    is `stalled`: what takes the beats has no room, or they are on their way.
    """

    config: data.View
    start: Signal
    done: Signal
    stalled: Signal
    read_address: Signal
    read_data: data.View
    requests: stream.Interface
    beats: stream.Interface
    responses: stream.Interface

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        super().__init__({
            "config": In(isa.TRANSFER), "start": In(1), "done": Out(1), "stalled": Out(1),
            "read_address": Out(isa.ADDRESS), "read_data": In(data.ArrayLayout(8, parameters.lanes)),
            "requests": Out(stream.Signature(BEATS)), "beats": Out(stream.Signature(strobed_beat(parameters.bus_bits))),
            "responses": In(stream.Signature(0)),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        p, stretch = self._parameters, _Stretch(self._parameters)
        piece, pieces = stretch.piece, p.bus_bits // 8 // stretch.piece
        layout = strobed_beat(p.bus_bits)
        m.submodules.queue = queue = SyncFIFOBuffered(width=layout.size, depth=8)
        # A piece that is addressed now is in the queue three cycles later at the most.
        room = queue.w_level <= 4
        address = Signal(isa.ADDRESS)
        first, beats = stretch.beats(m, self.config)
        m.d.comb += [
            self.read_address.eq(address),
            self.beats.payload.eq(queue.r_data),
            self.beats.valid.eq(queue.r_rdy),
            queue.r_en.eq(self.beats.ready),
        ]
        with m.If(self.requests.ready):
            m.d.sync += self.requests.valid.eq(0)
        with m.If(self.start):
            m.d.sync += [
                self.requests.valid.eq(1),
                self.requests.payload.address.eq(first),
                self.requests.payload.beats.eq(beats),
                address.eq(self.config.base - self.config.address[: len(stretch.skip)]),
            ]
            stretch.start(m, self.config.address, self.config.count)

        read, read_last, mask = Signal(), Signal(), Signal(piece)  # what was addressed in the cycle before
        m.d.sync += read.eq(0)
        with m.FSM():
            with m.State("IDLE"), m.If(self.start):
                m.next = "READ"
            with m.State("READ"):
                m.d.comb += self.stalled.eq(~room)
                with m.If(room):
                    m.d.sync += [read.eq(1), read_last.eq(stretch.last), mask.eq(stretch.mask)]
                    m.d.sync += address.eq(address + piece)
                    stretch.advance(m)
                    with m.If(stretch.last):
                        m.next = "RESPONSE"
            with m.State("RESPONSE"):
                m.d.comb += [
                    self.responses.ready.eq(1),
                    self.stalled.eq(~self.responses.valid),
                    self.done.eq(self.responses.valid),
                ]
                with m.If(self.responses.valid):
                    m.next = "IDLE"

        place = Signal(range(max(2, pieces)))  # of the next piece in its beat
        filled = data.View(layout, Signal(layout.size, name="filled"))
        m.d.sync += queue.w_en.eq(0)
        m.d.comb += queue.w_data.eq(filled)
        with m.If(read):
            whole = read_last | (place == pieces - 1)
            with m.If(place == 0):
                m.d.sync += filled.strobes.eq(0)
            for index in range(pieces):
                with m.If(place == index):
                    m.d.sync += [
                        filled.data[8 * piece * index : 8 * piece * (index + 1)].eq(
                            self.read_data.as_value()[: 8 * piece]
                        ),
                        filled.strobes[piece * index : piece * (index + 1)].eq(mask),
                    ]
            m.d.sync += [place.eq(Mux(whole, 0, place + 1)), queue.w_en.eq(whole)]
        return m


class LoadUnit(wiring.Component):
    """Answers LOAD descriptors (`hw.isa.TRANSFER`) in order, in the background: asks for their beats by `requests` and
    writes what comes into the activation memory. It lies between the other units' writes (`write_...`), which go first,
    and the memory's write port (`port_...`).

    Up to LOADS descriptors are taken ahead. `busy` until the last byte is written. A descriptor takes a cycle, and one
    for each piece, those of the first beat before `address` included, in which no other unit writes.
    """

    loads: stream.Interface
    requests: stream.Interface
    beats: stream.Interface
    busy: Signal
    write_enable: Signal
    write_address: Signal
    write_data: data.View
    write_mask: Signal
    port_enable: Signal
    port_address: Signal
    port_data: data.View
    port_mask: Signal

    def __init__(self, parameters: Parameters) -> None:
        self._parameters, lanes = parameters, parameters.lanes
        super().__init__({
            "loads": In(stream.Signature(isa.TRANSFER)),
            "requests": Out(stream.Signature(BEATS)), "beats": In(stream.Signature(parameters.bus_bits)),
            "busy": Out(1),
            "write_enable": In(1), "write_address": In(isa.ADDRESS),
            "write_data": In(data.ArrayLayout(8, lanes)), "write_mask": In(lanes),
            "port_enable": Out(1), "port_address": Out(isa.ADDRESS),
            "port_data": Out(data.ArrayLayout(8, lanes)), "port_mask": Out(lanes),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        stretch = _Stretch(self._parameters)
        pieces = self._parameters.bus_bits // 8 // stretch.piece
        m.submodules.requests = requests = SyncFIFOBuffered(width=BEATS.size, depth=LOADS)
        m.submodules.queue = queue = SyncFIFOBuffered(width=isa.TRANSFER.size, depth=LOADS)
        coming = data.View(isa.TRANSFER, queue.r_data)
        first, beats = stretch.beats(m, self.loads.payload)
        taken = self.loads.valid & self.loads.ready
        m.d.comb += [
            self.loads.ready.eq(requests.w_rdy & queue.w_rdy),
            requests.w_data.eq(Cat(first[:32], beats[: isa.ADDRESS])),
            requests.w_en.eq(taken),
            queue.w_data.eq(self.loads.payload),
            queue.w_en.eq(taken),
            self.requests.payload.eq(requests.r_data),
            self.requests.valid.eq(requests.r_rdy),
            requests.r_en.eq(self.requests.ready),
        ]
        active, address, place = Signal(), Signal(isa.ADDRESS), Signal(range(max(2, pieces)))
        writes = Signal()
        m.d.comb += [
            self.busy.eq(active | (queue.w_level != 0)),
            writes.eq(active & self.beats.valid & ~self.write_enable),
            self.beats.ready.eq(active & ~self.write_enable & (stretch.last | (place == pieces - 1))),
            queue.r_en.eq(~active),
            self.port_enable.eq(self.write_enable | writes),
            self.port_address.eq(address),
            self.port_data.as_value().eq(self.beats.payload.word_select(place, 8 * stretch.piece)),
            self.port_mask.eq(stretch.mask),
        ]
        with m.If(self.write_enable):
            m.d.comb += [
                self.port_address.eq(self.write_address),
                self.port_data.eq(self.write_data),
                self.port_mask.eq(self.write_mask),
            ]
        with m.If(~active & queue.r_rdy):
            m.d.sync += [
                active.eq(1), place.eq(0), address.eq(coming.base - coming.address[: len(stretch.skip)]),
            ]  # fmt: skip
            stretch.start(m, coming.address, coming.count)
        with m.If(writes):
            m.d.sync += [address.eq(address + stretch.piece), active.eq(~stretch.last)]
            m.d.sync += place.eq(Mux(place == pieces - 1, 0, place + 1))
            stretch.advance(m)
        return m
