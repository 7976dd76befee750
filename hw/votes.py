"""The vote memory: votes of dynamic routing, written a capsule at a time and read as square words."""

from __future__ import annotations

from typing import Any

from amaranth import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.memory import Bank


class VoteMemory(wiring.Component):
    """`depth` words of size x size bytes. Word (block of capsules i, output capsule j, block of dims d) has lane = i,
    column = d.

    A vote job writes one lane (one input capsule) at a time, or with `write_pair` an even lane and, from `write_upper`,
    the next; routing reads whole words, one cycle after the address: as they lie for the weighted sum over i,
    transposed by the reader for the agreement over d. So the votes are stored once.
    """

    read_address: Signal
    read_data: data.View
    write_enable: Signal
    write_pair: Signal
    write_lane: Signal
    write_address: Signal
    write_data: data.View
    write_upper: data.View

    def __init__(self, size: int, depth: int) -> None:
        self._size, self._depth = size, depth
        super().__init__(
            {
                "read_address": In(range(depth)),
                "read_data": Out(data.ArrayLayout(data.ArrayLayout(8, size), size)),
                "write_enable": In(1),
                "write_pair": In(1),
                "write_lane": In(range(size)),
                "write_address": In(range(depth)),
                "write_data": In(data.ArrayLayout(8, size)),
                "write_upper": In(data.ArrayLayout(8, size)),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        for lane in range(self._size):
            m.submodules[f"bank_{lane}"] = bank = Bank(8 * self._size, self._depth)
            written: Any = self.write_data.as_value()
            selected: Any = self.write_lane == lane
            if lane % 2:
                paired = self.write_pair & (self.write_lane == lane - 1)
                written, selected = Mux(paired, self.write_upper.as_value(), written), selected | paired
            m.d.comb += [
                bank.read_address.eq(self.read_address),
                self.read_data[lane].as_value().eq(bank.read_data),
                bank.write_address.eq(self.write_address),
                bank.write_data.eq(written),
                bank.write_enable.eq(self.write_enable & selected),
            ]
        return m
