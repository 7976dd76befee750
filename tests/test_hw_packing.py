"""Where rows of kernels end within vectors of lanes: the counters against plain division."""

from __future__ import annotations

import random

from amaranth import Module
from amaranth.sim import Simulator, SimulatorContext  # type: ignore[attr-defined]  # amaranth-stubs are older
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.loops import LEVELS, LoopNest
from hw.packing import RowEnds, row_ends


@settings(max_examples=40, deadline=None)
@given(st.sampled_from((4, 8, 16)), st.integers(1, 9), st.integers(1, 40), st.booleans(), st.data())
def test_lanes_behind_the_ends_of_rows(
    lanes: int, kernel_rows: int, run: int, packed: bool, data: st.DataObject
) -> None:
    """Every step of a nest of blocks, chunks and pixels: the valid lanes, and what the next chunk is told."""
    total = kernel_rows * run
    ends = row_ends(lanes, kernel_rows, run) + data.draw(st.integers(0, 2))  # an accelerator may follow more
    blocks, chunks, pixels = data.draw(st.integers(1, 3)), -(-total // lanes), data.draw(st.integers(1, 3))
    counts = [{"block": blocks, "chunk": chunks, "row": pixels}.get(level, 1) for level in LEVELS]
    m = Module()
    m.submodules.nest, m.submodules.unit = nest, unit = LoopNest(), RowEnds(lanes, ends)
    m.d.comb += [unit.start.eq(nest.start), unit.advance.eq(nest.advance)]
    seen = []

    async def bench(ctx: SimulatorContext) -> None:
        ctx.set(nest.counts, counts)
        ctx.set(unit.run, run)
        ctx.set(unit.packed, packed)
        ctx.set(nest.start, 1)
        await ctx.tick()
        ctx.set(nest.start, 0)
        holds = random.Random(total)
        while ctx.get(nest.running):
            ctx.set(nest.ready, holds.random() < 0.7)
            if ctx.get(nest.valid):
                seen.append(([ctx.get(mask) for mask in unit.behind], ctx.get(unit.ended)))
            await ctx.tick()

    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert len(seen) == blocks * chunks * pixels
    for step, (behind, ended) in enumerate(seen):
        first = step // pixels % chunks * lanes
        for lane in range(min(lanes, total - first)):
            rows = ((first + lane) // run - first // run) * packed
            assert [mask >> lane & 1 for mask in behind] == [int(k < rows) for k in range(ends)]
        if first + lanes < total:
            assert ended == (1 << ((first + lanes) // run - first // run) * packed) - 1
