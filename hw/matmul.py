"""The matmul engine: convolutions, votes, weighted sums and agreements, one array word a cycle."""

from __future__ import annotations

import itertools
from itertools import pairwise
from typing import Any

from amaranth import C, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw import isa
from hw.array import Array
from hw.loops import EVERY, LEVELS, LoopAddress, LoopNest
from hw.memory import Bank
from hw.packing import RUN, RowEnds, times
from hw.parameters import Parameters
from hw.requantizer import Requantizer, saturate, wire

GROUP, BLOCK, SEGMENT, WINDOW, CHUNK, IMAGE, ROW, COL = EVERY

# Cycles from a step of the loop nest to its place in the pipeline.
OPERANDS = 1  # memories answer
SUMS = 3  # the array's latency is 2
ACCUMULATED = 4  # the sum with bias or earlier chunks, in a register
RESULT = 7  # the requantiser's latency is 3


class MatmulEngine(wiring.Component):
    """Runs one MATMUL descriptor (`hw.isa`): `start` with a stable `config`, `done` when the last result has been
    written.

    A step of the loop nest fetches a vector of A and a word of B; the array multiplies and sums its lanes; the sum is
    added to the accumulator of its output pixel (`bias` or zero for the first chunk) and, for the last chunk,
    requantised and written. So weights are taken once for all pixels of all images, results leave at one pixel a cycle
    without a drain, and no step ever waits for another: a sum that is wanted again in the very next step goes around
    the accumulator memory. The one thing to wait for is a word of weights that has not come yet (`stalled`); without
    that every step takes one cycle, and a job steps + RESULT + 2 cycles from `start` to `done`.

    With `split`, rows hold the elements of two input capsules and their weights, and each column makes two votes a
    step; sums then are of one chunk and without bias, so the second one needs no accumulator.

    With `parameters.row_ends`, sums may be packed (`hw.packing`): their vectors go on in the next rows of a kernel.

    With `parameters.padding`, lanes outside of the job's image (`hw.isa.BOUNDS`) read as the code of zero, which is the
    zero point `za` of A: no memory holds the padding.
    """

    config: data.View
    start: Signal
    done: Signal
    read_address: Signal
    read_jump: Signal
    read_behind: data.View
    read_data: data.View
    weights_available: Signal
    weights_next: Signal
    weight_data: data.View
    vote_address: Signal
    vote_data: data.View
    bias_address: Signal
    bias_data: data.View
    write_enable: Signal
    write_votes: Signal
    write_pair: Signal
    write_lane: Signal
    write_address: Signal
    write_data: data.View
    write_upper: data.View
    write_mask: Signal
    busy_pes: Signal
    stalled: Signal

    def __init__(self, parameters: Parameters) -> None:
        p = self._parameters = parameters
        apart = {"read_jump": Out(isa.ADDRESS), "read_behind": Out(data.ArrayLayout(p.rows, p.row_ends))}
        super().__init__(
            (apart if p.row_ends else {})
            | {
                "config": In(isa.MATMUL),
                "start": In(1),
                "done": Out(1),
                "read_address": Out(isa.ADDRESS),
                "read_data": In(data.ArrayLayout(8, p.lanes)),
                "weights_available": In(1),
                "weights_next": Out(1),
                "weight_data": In(data.ArrayLayout(data.ArrayLayout(8, p.columns), p.rows)),
                "vote_address": Out(isa.ADDRESS),
                "vote_data": In(data.ArrayLayout(data.ArrayLayout(8, p.square), p.square)),
                "bias_address": Out(isa.ADDRESS),
                "bias_data": In(data.ArrayLayout(signed(32), p.columns)),
                "write_enable": Out(1),
                "write_votes": Out(1),
                "write_pair": Out(1),
                "write_lane": Out(range(p.square)),
                "write_address": Out(isa.ADDRESS),
                "write_data": Out(data.ArrayLayout(8, p.columns)),
                "write_upper": Out(data.ArrayLayout(8, p.columns)),
                "write_mask": Out(p.columns),
                "busy_pes": Out(range(p.rows * p.columns + 1)),
                "stalled": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        p, config = self._parameters, self.config
        levels = [level for level in EVERY if level != WINDOW or p.shared_kernels]
        m.submodules.nest = nest = LoopNest(levels)
        for level, name in enumerate(LEVELS):
            m.d.comb += nest.counts[level].eq(config[f"{name}s"])
        uses_weights = ~config.b_votes
        m.d.comb += [
            nest.start.eq(self.start),
            nest.ready.eq(config.b_votes | self.weights_available),
            self.stalled.eq(nest.running & ~nest.ready),
            # the last use of a word: every loop within the chunk is in its last round
            self.weights_next.eq(nest.valid & uses_weights & nest.last[IMAGE:].all()),
        ]

        def address(name: str, base: Any, strides: dict[int, Any], width: int = isa.ADDRESS) -> Signal:
            strides = {level: stride for level, stride in strides.items() if level in levels}
            m.submodules[f"{name}_addresses"] = unit = LoopAddress(width, strides.keys())
            m.d.comb += [unit.start.eq(self.start), unit.advance.eq(nest.advance), unit.base.eq(base)]
            m.d.comb += [unit.strides[level].eq(stride) for level, stride in strides.items()]
            return unit.address

        # Issue: where the step's operands lie and what will become of its sum.
        step_layout = data.StructLayout(
            {
                "valid": 1,
                "first": 1,
                "last": 1,
                "pixel": range(p.pixels),
                "bias": isa.ADDRESS,
                "address": isa.ADDRESS,
                "lane": range(p.square),
                "rows": p.rows,
                "inside": p.rows if p.padding else 0,
                "columns": p.columns,
            }
        )
        steps = [data.View(step_layout, Signal(step_layout.size, name=f"step_{stage}")) for stage in range(RESULT + 1)]
        step = steps[0]
        pixel, bias, lane = Signal(range(p.pixels)), Signal(isa.ADDRESS), Signal(range(p.square))
        with m.If(nest.advance[:IMAGE].any()):
            m.d.sync += pixel.eq(0)
        with m.Elif(nest.advance.any()):
            m.d.sync += pixel.eq(pixel + 1)
        with m.If(nest.advance[:SEGMENT].any()):
            m.d.sync += bias.eq(bias + 1)
        # One vote word holds `square` input capsules, one a lane: its address moves on when the lanes are full.
        by_type = config.by_type if p.shared_kernels else C(0)
        with m.If(nest.advance[GROUP] | (by_type & nest.advance[COL])):
            m.d.sync += lane.eq(lane + Mux(config.split, 2, 1))
        with m.Elif(by_type & nest.advance.any()):
            m.d.sync += lane.eq(config.lane)
        with m.If(self.start):
            m.d.sync += [pixel.eq(0), bias.eq(config.bias_base), lane.eq(config.lane)]
        hold = config.to_votes & (lane != Mux(config.split, p.square - 2, p.square - 1))

        # Behind the end of a row of the kernel, lanes jump to the next one, and later chunks begin there.
        jump, run = config.a_segment, config.a_window[:RUN]
        jumped: Any = 0
        ended: Any = 0  # bytes of the rows that have ended
        if p.row_ends:
            m.submodules.row_ends = ends = RowEnds(p.rows, p.row_ends)
            jumped, ended = times(m, ends.ended, jump), times(m, ends.ended, run)
            m.d.comb += [
                ends.start.eq(self.start),
                ends.advance.eq(nest.advance),
                ends.packed.eq(config.packed),
                ends.run.eq(run),
                self.read_jump.eq(jump),
                self.read_behind.eq(ends.behind),
            ]

        a_address = address("a", config.a_base, {
            GROUP: config.a_group, SEGMENT: config.a_segment, WINDOW: config.a_window, CHUNK: config.a_chunk + jumped,
            IMAGE: config.a_image, ROW: config.a_row, COL: config.a_col,
        })  # fmt: skip
        votes = config.b.votes
        b_address = address("b", 0, {GROUP: votes.group, BLOCK: votes.block, CHUNK: votes.chunk, IMAGE: votes.image})
        o_address = address("o", config.o_base, {
            GROUP: Mux(hold, 0, config.o_group), BLOCK: config.o_block, IMAGE: config.o_image, ROW: config.o_row,
            COL: Mux(hold & by_type, 0, config.o_col),
        })  # fmt: skip
        if p.padding:
            bounds = config.b.bounds
            y_strides = {SEGMENT: config.a_segment, ROW: config.a_row}
            if p.row_ends:
                y_strides[CHUNK] = jumped + ended
            x_strides = {WINDOW: config.a_window, CHUNK: config.a_chunk - ended, COL: config.a_col}
            y = address("y", bounds.y, y_strides)
            x = address("x", bounds.x, x_strides, isa.OFFSET).as_signed()
            inside: Any = 0
            for k in range(p.row_ends + 1):  # of the lanes behind k ends of rows
                begin, end = (wire(m, saturate(m, edge + k * run - x, 0, p.rows)) for edge in (0, bounds.columns))
                here = wire(m, (y + k * (jump + run))[: isa.ADDRESS])
                is_row = here < bounds.rows  # y below zero is a large one
                held = Cat(is_row & (index >= begin) & (index < end) for index in range(p.rows))
                inside = ends.behind[k - 1] & held | ~ends.behind[k - 1] & inside if k else held
            m.d.comb += step.inside.eq(inside | config.b_votes.replicate(p.rows))
        lanes = Mux(nest.last[CHUNK], config.last_lanes, config.lanes)
        columns = Mux(nest.last[BLOCK], config.last_columns, config.columns)
        m.d.comb += [
            step.valid.eq(nest.valid),
            step.first.eq(nest.first[SEGMENT:IMAGE].all()),
            step.last.eq(nest.last[SEGMENT:IMAGE].all()),
            step.pixel.eq(pixel),
            step.bias.eq(bias),
            step.address.eq(o_address),
            step.lane.eq(lane),
            step.rows.eq(Cat(index < lanes for index in range(p.rows))),
            step.columns.eq(Cat(index < columns for index in range(p.columns))),
            self.read_address.eq(a_address),
            self.vote_address.eq(b_address),
        ]
        for earlier, later in pairwise(steps):
            m.d.sync += later.eq(earlier)
        m.d.sync += self.busy_pes.eq(Mux(step.valid, lanes * columns, 0))

        # Operands, products, sums over the lanes.
        m.submodules.array = array = Array(p)
        operands = steps[OPERANDS]
        m.d.comb += [
            array.row_valid.eq(Mux(operands.valid, operands.rows, 0)),
            array.a_signed.eq(config.a_signed),
            array.b_signed.eq(config.b_signed),
            array.align.eq(config.align),
            array.kind.eq(config.kind),
            array.za.eq(config.za),
            array.zb.eq(config.zb),
            array.split.eq(config.split),
        ]
        for row in range(p.rows):
            activation: Any = self.read_data[row]
            if p.padding:
                activation = Mux(operands.inside[row], activation, config.za)
            m.d.comb += array.a[row].eq(activation)
            for column in range(p.columns):
                b: Any = Mux(config.b_votes, 0, self.weight_data[row][column])
                if row < p.square and column < p.square:
                    vote = Mux(config.transposed, self.vote_data[column][row], self.vote_data[row][column])
                    b = Mux(config.b_votes, vote, self.weight_data[row][column])
                m.d.comb += array.b[row][column].eq(b)

        # Accumulate: one 32-bit number for each output pixel and column.
        m.submodules.accumulators = accumulators = Bank(32 * p.columns, p.pixels)
        summed = steps[SUMS]
        wide = data.ArrayLayout(signed(32), p.columns)
        sums, total = data.View(wide, Signal(wide.size, name="sums")), data.View(wide, Signal(wide.size, name="total"))
        before = data.View(wide, Signal(wide.size, name="before"))
        # The memory answers with the old word when the same one is written: then the new word goes around it.
        around, passed = Signal(), Signal(32 * p.columns)
        m.d.sync += [
            around.eq(accumulators.write_enable & (accumulators.write_address == accumulators.read_address)),
            passed.eq(sums.as_value()),
        ]
        bias_data = data.View(wide, Signal(wide.size, name="bias_data"))
        m.d.comb += [
            before.eq(Mux(around, passed, accumulators.read_data)),
            accumulators.read_address.eq(steps[SUMS - 1].pixel),
            self.bias_address.eq(steps[SUMS - 1].bias),
            accumulators.write_address.eq(summed.pixel),
            accumulators.write_data.eq(sums.as_value()),
            accumulators.write_enable.eq(summed.valid & ~summed.last),
            bias_data.eq(Mux(config.has_bias, self.bias_data.as_value(), 0)),
        ]
        for column in range(p.columns):
            start = Mux(summed.first, bias_data[column], before[column])
            m.d.comb += sums[column].eq(start + array.sums[column])
        m.d.sync += total.eq(sums)
        if p.split:
            upper = data.View(wide, Signal(wide.size, name="upper"))
            m.d.sync += [upper[column].eq(array.upper[column]) for column in range(p.columns)]

        # Requantise and write.
        result = steps[RESULT]
        ways = [("requantizer", total, self.write_data)]
        if p.split:
            ways.append(("upper_requantizer", upper, self.write_upper))
        for (name, acc, byte), column in itertools.product(ways, range(p.columns)):
            m.submodules[f"{name}_{column}"] = unit = Requantizer()
            m.d.comb += [
                unit.acc.eq(acc[column]),
                unit.multiplier.eq(config.requantize.multiplier),
                unit.shift.eq(config.requantize.shift),
                unit.zero_point.eq(config.requantize.zero_point),
                unit.lo.eq(config.requantize.lo),
                unit.hi.eq(config.requantize.hi),
                unit.signed_out.eq(config.requantize.signed_out),
                unit.floats.eq(config.requantize.floats),
                byte[column].eq(unit.byte),
            ]
        m.d.comb += [
            self.write_enable.eq(result.valid & result.last),
            self.write_votes.eq(config.to_votes),
            self.write_pair.eq(config.split),
            self.write_lane.eq(result.lane),
            self.write_address.eq(result.address),
            self.write_mask.eq(result.columns),
        ]

        # Done when the nest has ended and the pipeline is empty.
        active, busy = Signal(), nest.running | Cat(s.valid for s in steps[1:]).any()
        with m.If(self.start):
            m.d.sync += active.eq(1)
        with m.Elif(active & ~busy):
            m.d.sync += active.eq(0)
            m.d.comb += self.done.eq(1)
        return m
