"""The softmax of the routing logits, with their update by the agreement before it (docs/numerics.md)."""

from __future__ import annotations

from itertools import pairwise

from amaranth import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.memory import Bank
from hw.parameters import Parameters
from hw.requantizer import saturate, sign_extend, sign_magnitude, wire

ENTRIES = 256
CLASSES = 64  # at most
BLOCKS = 4  # at work at the same time, one in each stage
QUOTIENT = 14  # bits of floor(one * 2**16 / sum), as one <= 255 and sum >= E[0] = 1023


def dividend(one: int) -> int:
    """The upper part of one * 2**16, already smaller than the sum; the lower part is zero."""
    return (one << 16) >> QUOTIENT


class SoftmaxLane(wiring.Component):
    """The arithmetic of one input capsule of each of the four blocks at work.

    Everything is shared by two stages that take turns cycle by cycle, as `odd` says. With `byte` what the activation
    memory and `stored` what the buffer delivers:

        odd   UPDATE takes `byte` (agreement) and the byte of the cycle before (logit), both one cycle old; SCALE looks
              up the exponential of the distance `stored`
        even  SUM makes a distance of the logit `stored` and looks up its exponential; SCALE multiplies the one looked
              up in the cycle before

    `store` is for the buffer: a logit in odd, a distance in even cycles. `result` is for the memory: the logit stored a
    cycle ago in even, a coupling coefficient in odd cycles. `update` and `sum` say whether the stage's value counts,
    `update_first` and `sum_first` that it is its block's first; `sum_first` moves the complete sum on to the divider,
    which then works in the 14 cycles of `divide`, `scale_first` the quotient from there to the multiplier. With
    `narrow` the code 127 stands for 1, else 255.
    """

    byte: Signal
    stored: Signal
    odd: Signal
    zero: Signal
    update: Signal
    update_first: Signal
    sum: Signal
    sum_first: Signal
    divide: Signal
    scale_first: Signal
    narrow: Signal
    table: Signal
    store: Signal
    result: Signal
    table_write_enable: Signal
    table_write_address: Signal
    table_write_data: Signal

    def __init__(self, pages: int) -> None:
        self.pages = pages
        super().__init__({
            "byte": In(8), "stored": In(8), "odd": In(1), "zero": In(1),
            "update": In(1), "update_first": In(1), "sum": In(1), "sum_first": In(1), "divide": In(1),
            "scale_first": In(1), "narrow": In(1), "table": In(range(max(2, pages))),
            "store": Out(8), "result": Out(8),
            "table_write_enable": In(1), "table_write_address": In(range(ENTRIES * pages)), "table_write_data": In(10),
        })  # fmt: skip

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.exponentials = exponentials = Bank(10, ENTRIES * self.pages)
        m.d.comb += [
            exponentials.write_enable.eq(self.table_write_enable),
            exponentials.write_address.eq(self.table_write_address),
            exponentials.write_data.eq(self.table_write_data),
        ]

        # UPDATE: the new logit, and the largest of its block, which SUM wants when the next block begins.
        fresh, held = Signal(8), Signal(8)
        logit, largest, top = Signal(signed(8)), Signal(signed(8)), Signal(signed(8))
        m.d.sync += [fresh.eq(self.byte), held.eq(fresh)]
        with m.If(~self.zero):
            m.d.comb += logit.eq(saturate(m, sign_extend(held) + sign_extend(fresh), -127, 127))
        with m.If(self.update_first):
            m.d.sync += [largest.eq(logit), top.eq(largest)]
        with m.Elif(self.update & (logit > largest)):
            m.d.sync += largest.eq(logit)

        # SUM: how far a logit is from the largest; its exponential.
        distance, total = Signal(8), Signal(16)
        exponential = exponentials.read_data
        m.d.comb += [
            distance.eq(top - self.stored.as_signed()),
            self.store.eq(Mux(self.odd, logit, distance)),
            exponentials.read_address.eq(Cat(Mux(self.odd, self.stored, distance), self.table)),
        ]
        with m.If(self.sum):
            m.d.sync += total.eq(Mux(self.sum_first, 0, total) + exponential)

        # A restoring divider: the remainder stays below the divisor, and each cycle makes one bit.
        divisor, remainder, quotient = Signal(16), Signal(16), Signal(QUOTIENT)
        twice, fits = Signal(17), Signal()
        m.d.comb += [twice.eq(remainder << 1), fits.eq(twice >= divisor)]
        with m.If(self.divide):
            m.d.sync += [remainder.eq(Mux(fits, twice - divisor, twice)), quotient.eq(Cat(fits, quotient[:-1]))]
        with m.If(self.sum_first):
            m.d.sync += [divisor.eq(total), remainder.eq(Mux(self.narrow, dividend(127), dividend(255)))]

        # SCALE.
        ratio = Signal(QUOTIENT)
        with m.If(self.scale_first):
            m.d.sync += ratio.eq(quotient)
        rounded = wire(m, exponential * ratio + (1 << 15))
        m.d.sync += self.result.eq(Mux(self.odd, sign_magnitude(logit), rounded[16:24]))
        return m


class SoftmaxUnit(wiring.Component):
    """Updates logits b and makes coupling coefficients k of them, for `lanes` input capsules at once.

    `logits`, `agreement` and `coupling` are the addresses of arrays of bytes (J, I), J = `classes` output capsules,
    I = `inputs`. A block of `lanes` input capsules passes four stages, a period in each, and four blocks are at work:

        UPDATE  b = first ? 0 : clamp(b + a, -127, 127), written back and to a buffer; the largest of them is kept
        SUM     e = E[max - b], summed; max - b takes the place of b in the buffer
        DIVIDE  r = floor(one * 2**16 / sum), one bit a cycle, where one = narrow ? 127 : 255
        SCALE   k = (e * r + 2**15) >> 16, written to `coupling`

    A class takes two cycles, in which UPDATE reads twice, and UPDATE and SCALE write once each: both ports of the
    memory are always busy, and SUM and SCALE share a look-up. The period is 14 cycles at least, for the divider.

    With `first`, neither logits nor agreement count. Only what the last block really has is written. `coupling` may be
    the very array of `agreement`. E is page `table` of 256 entries of 10 bits with E[0] = 1023, on which the width of
    the divider relies; each lane has its copy, all written through one port (page p from 256 * p) while the unit rests.

    `start` and `done` are pulses of one cycle; the configuration holds still from one to the other; 1 <= J <= 64,
    1 <= I. Cycles from `start` to `done`: (ceil(I / lanes) + 2) * 2 * max(J, 7) + 2 * J + 8.
    """

    start: Signal
    done: Signal
    logits: Signal
    agreement: Signal
    coupling: Signal
    classes: Signal
    inputs: Signal
    first: Signal
    narrow: Signal
    table: Signal
    read_address: Signal
    read_data: data.View
    write_enable: Signal
    write_address: Signal
    write_data: data.View
    write_mask: Signal
    table_write_enable: Signal
    table_write_address: Signal
    table_write_data: Signal

    def __init__(self, parameters: Parameters) -> None:
        self.lanes, self.pages = parameters.lanes, parameters.exp_tables
        address = ceil_log2(parameters.activation_bytes)
        self.step = data.StructLayout({
            "present": 1, "first": 1, "number": ceil_log2(CLASSES), "slot": ceil_log2(BLOCKS), "row": address,
            "update": 1, "update_last": 1, "scale": 1, "scale_last": 1, "end": 1,
        })  # fmt: skip
        super().__init__({
            "start": In(1), "done": Out(1),
            "logits": In(address), "agreement": In(address), "coupling": In(address),
            "classes": In(7), "inputs": In(address), "first": In(1), "narrow": In(1),
            "table": In(range(max(2, self.pages))),
            "read_address": Out(address), "read_data": In(data.ArrayLayout(8, self.lanes)),
            "write_enable": Out(1), "write_address": Out(address),
            "write_data": Out(data.ArrayLayout(8, self.lanes)), "write_mask": Out(self.lanes),
            "table_write_enable": In(1), "table_write_address": In(range(ENTRIES * self.pages)),
            "table_write_data": In(10),
        })  # fmt: skip

    def elaborate(self, platform: object) -> Module:
        m = Module()
        odd, number = Signal(), Signal(ceil_log2(CLASSES))
        row, block = Signal.like(self.logits), Signal.like(self.logits)
        slot = Signal(ceil_log2(BLOCKS))  # of the buffer, where UPDATE's block lies; those of the stages after it below
        update, sum, divide, scale = valid = Signal(BLOCKS)  # which stages have a block
        last_block = block + self.lanes >= self.inputs

        # steps[t] says what class stages work at t steps, of two cycles each, after it was addressed for UPDATE.
        steps = [data.View(self.step, Signal(self.step.size, name=f"step_{age}")) for age in range(5)]
        now, updated, summed, looked_up, scaled = steps
        m.d.comb += [
            now.present.eq(valid.any() & (number < self.classes)),
            now.first.eq(number == 0),
            now.number.eq(number),
            now.slot.eq(slot),
            now.row.eq(row),
            now.update.eq(update),
            now.update_last.eq(last_block),
            now.scale.eq(scale),
            now.scale_last.eq(~divide),
            now.end.eq(scale & ~divide & (number == self.classes - 1)),
        ]
        m.d.sync += odd.eq(~odd)
        with m.If(odd):
            m.d.sync += [after.eq(before) for before, after in pairwise(steps)]
        with m.If(odd & valid.any()):
            m.d.sync += [number.eq(number + 1), row.eq(row + self.inputs)]
            with m.If((number + 1 >= self.classes) & (number + 1 >= QUOTIENT // 2)):
                following = wire(m, (block + self.lanes)[: len(block)])
                m.d.sync += [number.eq(0), block.eq(following), row.eq(following), slot.eq(slot + 1)]
                m.d.sync += valid.eq(Cat(update & ~last_block, update, sum, divide))
        with m.If(self.start):
            m.d.sync += [odd.eq(0), number.eq(0), block.eq(0), row.eq(0), valid.eq(1)]
        m.d.comb += self.done.eq(odd & scaled.end)

        # The memory: SCALE is three blocks behind UPDATE, whose rows it is told.
        is_last = Mux(odd, scaled.scale_last, summed.update_last)
        rest = (self.inputs - 1)[: ceil_log2(self.lanes)]
        m.d.comb += [
            self.read_address.eq(Mux(odd, self.agreement, self.logits) + row),
            self.write_enable.eq(Mux(odd, scaled.present & scaled.scale, summed.present & summed.update)),
            self.write_address.eq(Mux(odd, self.coupling - 3 * self.lanes + scaled.row, self.logits + summed.row)),
            self.write_mask.eq(Cat(1, *(~is_last | (lane <= rest) for lane in range(1, self.lanes)))),
        ]

        # The buffer: for four blocks of all classes first the logits, then how far each is from the largest.
        m.submodules.buffer = buffer = Bank(8 * self.lanes, BLOCKS * CLASSES)
        m.d.comb += [
            buffer.read_address.eq(
                Mux(odd, Cat(updated.number, (updated.slot - 1)[:2]), Cat(looked_up.number, (looked_up.slot - 3)[:2]))
            ),
            buffer.write_address.eq(
                Mux(odd, Cat(updated.number, updated.slot), Cat(summed.number, (summed.slot - 1)[:2]))
            ),
            buffer.write_enable.eq(Mux(odd, updated.present, summed.present)),
        ]

        bits = Signal(range(QUOTIENT + 1))  # of the quotient that are still to come
        sum_first = odd & summed.present & summed.first
        with m.If(sum_first):
            m.d.sync += bits.eq(QUOTIENT)
        with m.Elif(bits != 0):
            m.d.sync += bits.eq(bits - 1)
        stores = []
        for index in range(self.lanes):
            m.submodules[f"lane_{index}"] = lane = SoftmaxLane(self.pages)
            m.d.comb += [
                lane.byte.eq(self.read_data[index]),
                lane.stored.eq(buffer.read_data[8 * index : 8 * index + 8]),
                lane.odd.eq(odd),
                lane.zero.eq(self.first),
                lane.update.eq(odd & updated.present),
                lane.update_first.eq(odd & updated.present & updated.first),
                lane.sum.eq(odd & summed.present),
                lane.sum_first.eq(sum_first),
                lane.divide.eq(bits != 0),
                lane.scale_first.eq(~odd & looked_up.present & looked_up.first),
                lane.narrow.eq(self.narrow),
                lane.table.eq(self.table),
                lane.table_write_enable.eq(self.table_write_enable),
                lane.table_write_address.eq(self.table_write_address),
                lane.table_write_data.eq(self.table_write_data),
                self.write_data[index].eq(lane.result),
            ]
            stores.append(lane.store)
        m.d.comb += buffer.write_data.eq(Cat(*stores))
        return m
