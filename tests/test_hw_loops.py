"""The loop nest and its addresses against nested Python loops."""

import itertools
import random

from amaranth import Module
from amaranth.sim import Simulator
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.loops import LEVELS, LoopAddress, LoopNest


def run_nest(counts: list[int], base: int, strides: list[int]) -> list[tuple[int, int, int]]:
    """(first, last, address) of every step that the hardware takes."""
    m = Module()
    m.submodules.nest = nest = LoopNest()
    m.submodules.address = address = LoopAddress()
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
    st.lists(st.integers(0, 500), min_size=len(LEVELS), max_size=len(LEVELS)),
)
def test_every_step_of_the_nest(counts: list[int], base: int, strides: list[int]) -> None:
    expected = [
        (
            sum((i == 0) << level for level, i in enumerate(index)),
            sum((i == count - 1) << level for level, (i, count) in enumerate(zip(index, counts, strict=True))),
            base + sum(i * stride for i, stride in zip(index, strides, strict=True)),
        )
        for index in itertools.product(*(range(count) for count in counts))
    ]
    assert run_nest(counts, base, strides) == expected
