"""The weight buffer: weights on their way from external memory to the array, in the order of their use."""

from __future__ import annotations

from typing import Any

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.memory import Bank
from hw.parameters import Parameters


class WeightBuffer(wiring.Component):
    """A ring of `weight_words` array words, filled from `beats` and emptied from its front.

    The layer program takes weights in one fixed order and each word once, so no address is needed: a beat of
    `bus_bits` bits is the next piece of a word, the lowest bytes first, and a word is `available` when all of it has
    come. `word` is the front word of the cycle before; `next` drops the front word at the end of its cycle, so a
    reader that holds it low uses the same word again. Loading goes on while words are used: what fits into the ring is
    fetched ahead.
    """

    beats: stream.Interface
    available: Signal
    next: Signal
    word: data.View

    def __init__(self, parameters: Parameters) -> None:
        p = self._parameters = parameters
        super().__init__({
            "beats": In(stream.Signature(p.bus_bits)),
            "available": Out(1),
            "next": In(1),
            "word": Out(data.ArrayLayout(data.ArrayLayout(8, p.columns), p.rows)),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        p = self._parameters
        depth, pieces = p.weight_words, p.word_beats
        front, back, level = Signal(range(depth)), Signal(range(depth)), Signal(range(depth + 1))
        piece = Signal(range(max(2, pieces)))
        taken, whole = Signal(), Signal()
        m.d.comb += [
            self.beats.ready.eq(level != depth),
            taken.eq(self.beats.valid & self.beats.ready),
            whole.eq(taken & (piece == pieces - 1)),
            self.available.eq(level != 0),
        ]
        with m.If(taken):
            m.d.sync += piece.eq(Mux(whole, 0, piece + 1))
        with m.If(whole):
            m.d.sync += back.eq(Mux(back == depth - 1, 0, back + 1))
        with m.If(self.next):
            m.d.sync += front.eq(Mux(front == depth - 1, 0, front + 1))
        m.d.sync += level.eq(level + whole - self.next)

        banks = [Bank(p.bus_bits, depth) for _ in range(pieces)]
        for index, bank in enumerate(banks):
            m.submodules[f"piece_{index}"] = bank
            m.d.comb += [
                bank.read_address.eq(front),
                bank.write_address.eq(back),
                bank.write_data.eq(self.beats.payload),
                bank.write_enable.eq(taken & (piece == index)),
            ]
        m.d.comb += self.word.as_value().eq(Cat(bank.read_data for bank in banks))
        return m
