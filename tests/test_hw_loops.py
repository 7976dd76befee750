"""The loop nest and its addresses against nested Python loops."""

import itertools
import random

from amaranth import Module
from amaranth.sim import Simulator
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.loops import EVERY, LEVELS, LoopAddress, LoopNest


def run_nest(levels: set[int], counts: list[int], base: int, strides: list[int]) -> list[tuple[int, int, int]]:
    """(first, last, address) of every step that the hardware takes."""
    m = Module()
    m.submodules.nest = nest = LoopNest(levels)
    strided = {level for level, stride in enumerate(strides) if stride}
    m.submodules.address = address = LoopAddress(levels=strided or {0})
    m.d.comb += [address.advance.eq(nest.advance), address.start.eq(nest.start)]
    steps = []
    holds = random.Random(base)

    async def bench(ctx):
        ctx.set(nest.counts, counts)
        ctx.set(address.base, base)
        ctx.set(address.strides, strides)
        ctx.set(nest.start, 1)
        await ctx.tick()
        ctx.set(nest.start, 0)
        while ctx.get(nest.running):
            ctx.set(nest.ready, holds.random() < 0.7)
            assert ctx.get(nest.valid) == ctx.get(nest.ready)
            if ctx.get(nest.valid):
                steps.append((ctx.get(nest.first), ctx.get(nest.last), ctx.get(address.address)))
            await ctx.tick()
        ctx.set(nest.ready, 1)
        await ctx.tick().repeat(3)
        assert not ctx.get(nest.valid)

    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return steps


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 3), min_size=len(LEVELS), max_size=len(LEVELS)),
    st.integers(0, 1000),
    st.lists(st.sampled_from((0, 1, 7, 500)), min_size=len(LEVELS), max_size=len(LEVELS)),
    st.sets(st.sampled_from(EVERY)),
)
def test_every_step_of_the_nest(counts: list[int], base: int, strides: list[int], absent: set[int]) -> None:
    """Levels that the nest lacks run once, whatever is counted there; addresses keep levels with a stride only."""
    levels = set(EVERY) - absent
    rounds = [count if level in levels else 1 for level, count in enumerate(counts)]
    expected = [
        (
            sum((i == 0) << level for level, i in enumerate(index)),
            sum((i == count - 1) << level for level, (i, count) in enumerate(zip(index, rounds, strict=True))),
            base + sum(i * stride for i, stride in zip(index, strides, strict=True)),
        )
        for index in itertools.product(*(range(count) for count in rounds))
    ]
    assert run_nest(levels, counts, base, strides) == expected
