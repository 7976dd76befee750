"""Eight nested loops and the addresses that follow them, one step a cycle and no multiplier."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from amaranth import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.isa import ADDRESS, COUNT

LEVELS = ("group", "block", "segment", "window", "chunk", "image", "row", "col")  # outermost first
EVERY = range(len(LEVELS))


class LoopNest(wiring.Component):
    """Counts through the nest: `valid` marks a step, `advance` the level that moves at its end (inner ones restart).

    `start` puts every counter to zero; from the next cycle on `running` is high and each cycle with `ready` is a step,
    until the last one. `first`/`last` hold, level by level, whether the current step is in the first or the last round
    of that loop. A level that is not in `levels` has one round, whatever its count.
    """

    start: Signal
    counts: data.View
    ready: Signal
    running: Signal
    valid: Signal
    first: Signal
    last: Signal
    advance: Signal  # one-hot; zero at the very last step

    def __init__(self, levels: Collection[int] = EVERY) -> None:
        self._levels = levels
        count = len(LEVELS)
        super().__init__({
            "start": In(1), "counts": In(data.ArrayLayout(COUNT, count)),
            "ready": In(1), "running": Out(1), "valid": Out(1),
            "first": Out(count), "last": Out(count), "advance": Out(count),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        counters = {level: Signal(COUNT, name=f"{LEVELS[level]}_counter") for level in self._levels}
        m.d.comb += self.valid.eq(self.running & self.ready)
        inner_last: Any = 1
        for level in reversed(EVERY):
            if level not in counters:
                m.d.comb += [self.first[level].eq(1), self.last[level].eq(1)]
                continue
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
            m.d.sync += [self.running.eq(1), *[counter.eq(0) for counter in counters.values()]]
        return m


class LoopAddress(wiring.Component):
    """An address that grows by `strides[level]` whenever that level advances.

    Each level keeps the address at which its current round began: advancing a level adds its stride to that and
    restarts all inner levels there. A level that is not in `levels` has stride 0, and nothing to keep: its rounds begin
    where those of the next level outside of it do. `base` holds still.
    """

    start: Signal
    base: Signal
    strides: data.View
    advance: Signal
    address: Signal

    def __init__(self, width: int = ADDRESS, levels: Collection[int] = EVERY) -> None:
        self._width, self._levels = width, sorted(levels)
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
        rounds = {level: Signal(self._width, name=f"{LEVELS[level]}_address") for level in self._levels}
        m.d.comb += self.address.eq(rounds[self._levels[-1]])
        begun: Any = self.base  # the address at which the current round of the level began
        for level in EVERY:
            with m.If(self.advance[level]):
                moved = begun
                if level in rounds:
                    begun = rounds[level]
                    moved = Signal(self._width, name=f"{LEVELS[level]}_next")
                    m.d.comb += moved.eq(begun + self.strides[level])
                m.d.sync += [rounds[inner].eq(moved) for inner in self._levels if inner >= level]
        with m.If(self.start):
            m.d.sync += [address.eq(self.base) for address in rounds.values()]
        return m
