"""Seven nested loops and the addresses that follow them, one step a cycle and no multiplier."""

from __future__ import annotations

from typing import Any

from amaranth import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.isa import ADDRESS, COUNT

LEVELS = ("group", "block", "segment", "chunk", "image", "row", "col")  # outermost first


class LoopNest(wiring.Component):
    """Counts through the nest: `valid` marks a step, `advance` the level that moves at its end (inner ones restart).

    `start` puts every counter to zero; from the next cycle on `running` is high and each cycle with `ready` is a step,
    until the last one. `first`/`last` hold, level by level, whether the current step is in the first or the last round
    of that loop.
    """

    start: Signal
    counts: data.View
    ready: Signal
    running: Signal
    valid: Signal
    first: Signal
    last: Signal
    advance: Signal  # one-hot; zero at the very last step

    def __init__(self) -> None:
        levels = len(LEVELS)
        super().__init__({
            "start": In(1), "counts": In(data.ArrayLayout(COUNT, levels)),
            "ready": In(1), "running": Out(1), "valid": Out(1),
            "first": Out(levels), "last": Out(levels), "advance": Out(levels),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        counters = [Signal(COUNT, name=f"{name}_counter") for name in LEVELS]
        m.d.comb += self.valid.eq(self.running & self.ready)
        inner_last: Any = 1
        for level in reversed(range(len(LEVELS))):
            counter = counters[level]
            m.d.comb += [
                self.first[level].eq(counter == 0),
                self.last[level].eq(counter == self.counts[level] - 1),
                self.advance[level].eq(self.valid & inner_last & ~self.last[level]),
            ]
            with m.If(self.valid & inner_last):
                m.d.sync += counter.eq(Mux(self.last[level], 0, counter + 1))
            inner_last = inner_last & self.last[level]
        with m.If(self.valid & inner_last):
            m.d.sync += self.running.eq(0)
        with m.If(self.start):
            m.d.sync += [self.running.eq(1), *[counter.eq(0) for counter in counters]]
        return m


class LoopAddress(wiring.Component):
    """An address that grows by `strides[level]` whenever that level advances.

    Each level keeps the address at which its current round began: advancing a level adds its stride to that and
    restarts all inner levels there. A level without a stride has stride 0.
    """

    start: Signal
    base: Signal
    strides: data.View
    advance: Signal
    address: Signal

    def __init__(self, width: int = ADDRESS) -> None:
        self._width = width
        super().__init__(
            {
                "start": In(1),
                "base": In(width),
                "strides": In(data.ArrayLayout(width, len(LEVELS))),
                "advance": In(len(LEVELS)),
                "address": Out(width),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        rounds = [Signal(self._width, name=f"{name}_address") for name in LEVELS]
        m.d.comb += self.address.eq(rounds[-1])
        for level in range(len(LEVELS)):
            with m.If(self.advance[level]):
                moved = Signal(self._width, name=f"{LEVELS[level]}_next")
                m.d.comb += moved.eq(rounds[level] + self.strides[level])
                m.d.sync += [inner.eq(moved) for inner in rounds[level:]]
        with m.If(self.start):
            m.d.sync += [address.eq(self.base) for address in rounds]
        return m
