"""The DMA: commands and weights from memory to the accelerator, results back."""

from __future__ import annotations

from typing import Any

from amaranth import Cat, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from hw import axi
from hw.axi_read import COUNT, BurstReader, Narrower, ReadArbiter
from hw.axi_write import BurstWriter
from hw.registers import Cause

COMMANDS, WEIGHTS = range(2)  # the readers, and the numbers of their bursts

# Words of weights that the accelerator asks for: bytes from the weights' base, and how many words from there on.
WEIGHT_REQUEST = data.StructLayout({"address": 32, "words": 24})


class Dma(wiring.Component):
    """Two readers and a writer on one AXI4 bus. Addresses of its configuration count beats of the bus, lengths 32-bit
    words.

    `start` begins a run: the `commands_count` words at `commands_beat` go out of `commands` (`commanding` until the
    last is taken), and what comes in at `results` goes to `results_beat`, where there is room for `results_size`.
    `requests` are answered by `weights` at all times. `flush` says that no further result comes; `writing` falls when
    all are in memory. `halt` lets no burst begin; `pending` says that some are under way. `cause` tells an error until
    reset, and with it `failed_beat` and `failed_response`. `owing` weights: asked for and not delivered.
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

    def __init__(self, bus_bits: int, word_bytes: int, address_bits: int, burst: int, outstanding: int) -> None:
        self._beat_bits = exact_log2(bus_bits // 8)
        self._word_beats = exact_log2(word_bytes) - self._beat_bits
        sizes = bus_bits, address_bits, burst
        self._commands = BurstReader(*sizes, 2, COMMANDS)
        self._weights = BurstReader(*sizes, outstanding, WEIGHTS)
        self._arbiter = ReadArbiter(bus_bits, address_bits, 2)
        self._narrower = Narrower(bus_bits)
        self._writer = BurstWriter(*sizes)
        beat = address_bits - self._beat_bits
        super().__init__(axi.master_channels(address_bits, bus_bits) | {
            "commands": Out(stream.Signature(32)), "requests": In(stream.Signature(WEIGHT_REQUEST)),
            "weights": Out(stream.Signature(bus_bits)), "results": In(stream.Signature(32)),
            "start": In(1), "flush": In(1), "halt": In(1),
            "commands_beat": In(beat), "commands_count": In(COUNT), "weights_beat": In(beat),
            "results_beat": In(beat), "results_size": In(COUNT), "results_written": Out(COUNT),
            "commanding": Out(1), "writing": Out(1), "owing": Out(1), "pending": Out(1),
            "cause": Out(Cause), "failed_beat": Out(beat), "failed_response": Out(2),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        commands, weights, writer = self._commands, self._weights, self._writer
        arbiter, narrower = self._arbiter, self._narrower
        m.submodules.commands, m.submodules.weights, m.submodules.writer = commands, weights, writer
        m.submodules.arbiter, m.submodules.narrower = arbiter, narrower
        for number, reader in ((COMMANDS, commands), (WEIGHTS, weights)):
            connect(m, reader.ar, getattr(arbiter, f"ar_{number}"))
            connect(m, getattr(arbiter, f"r_{number}"), reader.r)
        connect(m, arbiter.ar, flipped(self.ar))
        connect(m, flipped(self.r), arbiter.r)
        connect(m, writer.aw, flipped(self.aw))
        connect(m, writer.w, flipped(self.w))
        connect(m, flipped(self.b), writer.b)
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
            weights.requests.payload.count.eq(request.words << self._word_beats),
            writer.start.eq(self.start),
            writer.beat.eq(self.results_beat),
            writer.size.eq(self.results_size),
            writer.flush.eq(self.flush),
            self.results_written.eq(writer.written),
            self.commanding.eq(narrower.busy),
            self.writing.eq(writer.busy),
            self.owing.eq(weights.owing),
            self.pending.eq(Cat(unit.pending for unit in (commands, weights, writer)).any()),
        ]
        m.d.comb += [unit.halt.eq(self.halt) for unit in (commands, weights, writer)]
        with m.If(writer.overflow):
            m.d.comb += self.cause.eq(Cause.RESULTS_OVERFLOW)
        for cause, unit in (
            (Cause.COMMANDS_READ, commands),
            (Cause.WEIGHTS_READ, weights),
            (Cause.RESULTS_WRITE, writer),
        ):
            with m.If(unit.failed):
                m.d.comb += [
                    self.cause.eq(cause),
                    self.failed_beat.eq(unit.failed_beat),
                    self.failed_response.eq(unit.failed_response),
                ]
        return m
