"""Packed sums of a convolution: vectors of lanes that go on from one row of the kernel into the next.

The terms of a kernel with rows of L bytes are, row by row, L bytes of memory, and the rows are one pitch of the tensor
apart. With a pitch that is congruent to L modulo the lanes of the memory, term t lies in bank (first + t) modulo lanes
whatever its row. So any terms t ... t + lanes - 1 come from different banks, and a sum of kh rows takes ceil(kh L / R)
words of weights in place of kh ceil(L / R). Banks behind the end of a row are addressed one jump (pitch - L) further,
for each row that has ended (`hw.memory`).
"""

from __future__ import annotations

from typing import Any

from amaranth import Cat, Module, Mux, Signal
from amaranth.hdl import Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.loops import LEVELS, LoopAddress
from hw.requantizer import wire

RUN = 10  # bits of the length of a kernel's row in bytes
CHUNK = LEVELS.index("chunk")


def row_ends(lanes: int, kernel_rows: int, run: int) -> int:
    """The most rows of `run` terms that end within a vector of the kernel's terms or right behind it, other than with
    the very last term.
    """
    total = kernel_rows * run
    return max(min(first + lanes, total - 1) // run - first // run for first in range(0, total, lanes))


def times(m: Module, ended: Value, value: Value) -> Value:
    """`value` for each row that has `ended`, which is a thermometer of that many ones."""
    result: Value = value & 0
    for number, bit in enumerate(ended, 1):
        result = Mux(bit, value * number, result)
    return wire(m, result)


class RowEnds(wiring.Component):
    """Which lanes of a step's vector lie behind the end of a row of the kernel.

    Bit l of `behind[k]` says that k + 1 rows end before lane l; bit k of `ended`, that they end before the next chunk.
    While `packed` is low none does. `run` is the length of a row in bytes; `start` and `advance` are those of the loop
    nest.
    """

    start: Signal
    advance: Signal
    packed: Signal
    run: Signal
    behind: data.View
    ended: Signal

    def __init__(self, rows: int, ends: int) -> None:
        self._rows, self._ends = rows, ends
        super().__init__({
            "start": In(1), "advance": In(len(LEVELS)), "packed": In(1), "run": In(RUN),
            "behind": Out(data.ArrayLayout(rows, ends)), "ended": Out(ends),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        # Bytes from the first lane to the end of its row: fewer by a vector, more by every row that has ended.
        m.submodules.left = left = LoopAddress(RUN, [CHUNK])
        m.d.comb += [
            left.start.eq(self.start),
            left.advance.eq(self.advance),
            left.base.eq(self.run),
            left.strides[CHUNK].eq(times(m, self.ended, self.run) - self._rows),
        ]
        for k in range(self._ends):
            end = wire(m, left.address + k * self.run)
            m.d.comb += self.behind[k].eq(Cat(self.packed & (lane >= end) for lane in range(self._rows)))
            m.d.comb += self.ended[k].eq(self.packed & (end <= self._rows))
        return m
