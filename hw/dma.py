"""The DMA: commands, weights and spilled activations from memory to the accelerator, results and activations back."""

from __future__ import annotations

from typing import Any

from amaranth import Cat, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from hw import axi
from hw.axi_read import COUNT, BurstReader, Narrower, ReadArbiter
from hw.axi_store import BeatWriter, WriteArbiter, strobed_beat
from hw.axi_write import BurstWriter
from hw.registers import Cause

COMMANDS, WEIGHTS, LOADS = range(3)  # the readers, and the numbers of their bursts
RESULTS, STORES = range(2)  # the writers

# Words of weights that the accelerator asks for, or beats of activations that it asks for or sends: bytes from the
# beginning of the weights, or of the spilled activations, and how many from there on.
REQUEST = data.StructLayout({"address": 32, "count": 24})


class Dma(wiring.Component):
    """Two readers and a writer on one AXI4 bus; with `spill` one more of each. Addresses of its configuration count
    beats of the bus, lengths 32-bit words.

    `start` begins a run: the `commands_count` words at `commands_beat` go out of `commands` (`commanding` until the
    last is taken), and what comes in at `results` goes to `results_beat`, where there is room for `results_size`.
    `requests` are answered by `weights` at all times. `flush` says that no further result comes; `writing` falls when
    all are in memory. `halt` lets no burst begin; `pending` says that some are under way. `cause` tells an error until
    reset, and with it `failed_beat` and `failed_response`. `owing` weights: asked for and not delivered.

    With `spill`, `load_requests` are answered by `loads`, and `store_requests` are followed by their beats in `stores`
    and answered by `store_responses`; all of them count from `activations_beat`.
    """

    ar: stream.Interface
    r: stream.Interface
    aw: stream.Interface
    w: stream.Interface
    b: stream.Interface
    commands: stream.Interface
    requests: stream.Interface
    weights: stream.Interface
    results: stream.Interface
    start: Signal
    flush: Signal
    halt: Signal
    commands_beat: Signal
    commands_count: Signal
    weights_beat: Signal
    results_beat: Signal
    results_size: Signal
    results_written: Signal
    commanding: Signal
    writing: Signal
    owing: Signal
    pending: Signal
    cause: Signal
    failed_beat: Signal
    failed_response: Signal
    # with `spill` only
    activations_beat: Signal
    load_requests: stream.Interface
    loads: stream.Interface
    store_requests: stream.Interface
    stores: stream.Interface
    store_responses: stream.Interface

    def __init__(
        self, bus_bits: int, word_bytes: int, address_bits: int, burst: int, outstanding: int, spill: bool = False
    ) -> None:
        self.spill = spill
        self._beat_bits = exact_log2(bus_bits // 8)
        self._word_beats = exact_log2(word_bytes) - self._beat_bits
        sizes = bus_bits, address_bits, burst
        self._commands = BurstReader(*sizes, 2, COMMANDS)
        self._weights = BurstReader(*sizes, outstanding, WEIGHTS)
        self._arbiter = ReadArbiter(bus_bits, address_bits, 2 + spill)
        self._narrower = Narrower(bus_bits)
        self._writer = BurstWriter(*sizes)
        beat = address_bits - self._beat_bits
        spilled: dict[str, wiring.Member] = {}
        if spill:
            self._loads = BurstReader(*sizes, outstanding, LOADS)
            self._stores = BeatWriter(*sizes, STORES)
            self._write_arbiter = WriteArbiter(bus_bits, address_bits)
            spilled = {
                "activations_beat": In(beat),
                "load_requests": In(stream.Signature(REQUEST)), "loads": Out(stream.Signature(bus_bits)),
                "store_requests": In(stream.Signature(REQUEST)),
                "stores": In(stream.Signature(strobed_beat(bus_bits))), "store_responses": Out(stream.Signature(0)),
            }  # fmt: skip
        super().__init__(axi.master_channels(address_bits, bus_bits) | {
            "commands": Out(stream.Signature(32)), "requests": In(stream.Signature(REQUEST)),
            "weights": Out(stream.Signature(bus_bits)), "results": In(stream.Signature(32)),
            "start": In(1), "flush": In(1), "halt": In(1),
            "commands_beat": In(beat), "commands_count": In(COUNT), "weights_beat": In(beat),
            "results_beat": In(beat), "results_size": In(COUNT), "results_written": Out(COUNT),
            "commanding": Out(1), "writing": Out(1), "owing": Out(1), "pending": Out(1),
            "cause": Out(Cause), "failed_beat": Out(beat), "failed_response": Out(2),
        } | spilled)  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        commands, weights, writer = self._commands, self._weights, self._writer
        arbiter, narrower = self._arbiter, self._narrower
        m.submodules.commands, m.submodules.weights, m.submodules.writer = commands, weights, writer
        m.submodules.arbiter, m.submodules.narrower = arbiter, narrower
        readers = [commands, weights]
        units: dict[Cause, BurstReader | BurstWriter | BeatWriter] = {
            Cause.COMMANDS_READ: commands, Cause.WEIGHTS_READ: weights, Cause.RESULTS_WRITE: writer
        }  # fmt: skip
        write: Any = writer  # the write channels
        if self.spill:
            readers.append(self._loads)
            units |= {Cause.ACTIVATIONS_READ: self._loads, Cause.ACTIVATIONS_WRITE: self._stores}
            write = self._write_arbiter
            self._connect_spill(m)
        for number, reader in enumerate(readers):
            connect(m, reader.ar, getattr(arbiter, f"ar_{number}"))
            connect(m, getattr(arbiter, f"r_{number}"), reader.r)
        connect(m, arbiter.ar, flipped(self.ar))
        connect(m, flipped(self.r), arbiter.r)
        connect(m, write.aw, flipped(self.aw))
        connect(m, write.w, flipped(self.w))
        connect(m, flipped(self.b), write.b)
        connect(m, commands.beats, narrower.beats)
        connect(m, narrower.words, flipped(self.commands))
        connect(m, weights.beats, flipped(self.weights))
        connect(m, flipped(self.results), writer.words)

        words_a_beat = 1 << (self._beat_bits - 2)
        request = self.requests.payload
        m.d.comb += [
            commands.requests.valid.eq(self.start),  # it is idle then
            commands.requests.payload.beat.eq(self.commands_beat),
            commands.requests.payload.count.eq((self.commands_count + words_a_beat - 1) >> (self._beat_bits - 2)),
            narrower.start.eq(self.start),
            narrower.count.eq(self.commands_count),
            weights.requests.valid.eq(self.requests.valid),
            self.requests.ready.eq(weights.requests.ready),
            weights.requests.payload.beat.eq(self.weights_beat + (request.address >> self._beat_bits)),
            weights.requests.payload.count.eq(request.count << self._word_beats),
            writer.start.eq(self.start),
            writer.beat.eq(self.results_beat),
            writer.size.eq(self.results_size),
            writer.flush.eq(self.flush),
            self.results_written.eq(writer.written),
            self.commanding.eq(narrower.busy),
            self.writing.eq(writer.busy),
            self.owing.eq(weights.owing),
            self.pending.eq(Cat(unit.pending for unit in units.values()).any()),
        ]
        m.d.comb += [unit.halt.eq(self.halt) for unit in units.values()]
        with m.If(writer.overflow):
            m.d.comb += self.cause.eq(Cause.RESULTS_OVERFLOW)
        for cause, unit in units.items():
            with m.If(unit.failed):
                m.d.comb += [
                    self.cause.eq(cause),
                    self.failed_beat.eq(unit.failed_beat),
                    self.failed_response.eq(unit.failed_response),
                ]
        return m

    def _connect_spill(self, m: Module) -> None:
        """The streams of activations, and both writers on the write channels."""
        loads, stores, arbiter = self._loads, self._stores, self._write_arbiter
        m.submodules.loads, m.submodules.stores, m.submodules.write_arbiter = loads, stores, arbiter
        for number, writer in ((RESULTS, self._writer), (STORES, stores)):
            connect(m, writer.aw, getattr(arbiter, f"aw_{number}"))
            connect(m, writer.w, getattr(arbiter, f"w_{number}"))
            connect(m, getattr(arbiter, f"b_{number}"), writer.b)
        connect(m, loads.beats, flipped(self.loads))
        connect(m, flipped(self.stores), stores.beats)
        connect(m, stores.responses, flipped(self.store_responses))
        for requests, unit in ((self.load_requests, loads), (self.store_requests, stores)):
            m.d.comb += [
                unit.requests.valid.eq(requests.valid),
                requests.ready.eq(unit.requests.ready),
                unit.requests.payload.beat.eq(self.activations_beat + (requests.payload.address >> self._beat_bits)),
                unit.requests.payload.count.eq(requests.payload.count),
            ]
