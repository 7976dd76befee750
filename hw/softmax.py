"""The softmax of the routing logits, with their update by the agreement before it (docs/numerics.md)."""

from __future__ import annotations

from amaranth import Cat, Module, Mux, Signal, signed
from amaranth.hdl import Value
from amaranth.lib import data, enum, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.memory import Bank
from hw.parameters import Parameters
from hw.requantizer import saturate, sign_extend, sign_magnitude, wire

ENTRIES = 256
DEPTH = 4  # cycles from an address on the read port to its result
QUOTIENT = 14  # bits of floor(255 * 2**16 / sum), as sum >= E[0] = 1023
DIVIDEND = (255 << 16) >> QUOTIENT  # its upper part, already smaller than the sum; the lower part is zero


class Pass(enum.Enum, shape=2):
    UPDATE = 0
    SUM = 1
    SCALE = 2


class SoftmaxLane(wiring.Component):
    """The arithmetic of one input capsule, a stage of `Pass` at a time; `byte` is what the memory delivers.

    `result` follows a `byte` by three cycles: the updated logit or the coupling coefficient. `complete` marks the cycle
    after that of a byte which is the last of its operands: it counts for the maximum or the sum. `new_block` clears
    both; `divide` holds for the 14 cycles of the division.
    """

    byte: Signal
    stage: data.View
    complete: Signal
    new_block: Signal
    divide: Signal
    first: Signal
    table: Signal
    result: Signal
    table_write_enable: Signal
    table_write_address: Signal
    table_write_data: Signal

    def __init__(self, pages: int) -> None:
        self.pages = pages
        super().__init__({
            "byte": In(8), "stage": In(Pass), "complete": In(1), "new_block": In(1), "divide": In(1), "first": In(1),
            "table": In(range(max(2, pages))), "result": Out(8),
            "table_write_enable": In(1), "table_write_address": In(range(ENTRIES * pages)), "table_write_data": In(10),
        })  # fmt: skip

    def elaborate(self, platform: object) -> Module:
        m = Module()
        updating = self.stage == Pass.UPDATE
        m.submodules.exponentials = exponentials = Bank(10, ENTRIES * self.pages)
        m.d.comb += [
            exponentials.write_enable.eq(self.table_write_enable),
            exponentials.write_address.eq(self.table_write_address),
            exponentials.write_data.eq(self.table_write_data),
        ]

        # One cycle after the byte: the logit, updated by the agreement that followed it, or how far it is from the top.
        fresh, held = Signal(8), Signal(8)
        m.d.sync += [fresh.eq(self.byte), held.eq(fresh)]
        logit, largest = Signal(signed(8)), Signal(signed(8))
        with m.If(~self.first):
            m.d.comb += logit.eq(saturate(m, sign_extend(held) + sign_extend(fresh), -127, 127))
        with m.If(self.new_block):
            m.d.sync += largest.eq(-127)
        with m.Elif(self.complete & updating & (logit > largest)):
            m.d.sync += largest.eq(logit)
        distance = Signal(8)
        m.d.comb += distance.eq(largest - sign_extend(fresh))
        m.d.comb += exponentials.read_address.eq(Cat(distance, self.table))

        # Two cycles after it: the exponential, into the sum or into the product.
        exponential, updated, counts = exponentials.read_data, Signal(8), Signal()
        total, quotient = Signal(16), Signal(QUOTIENT)
        m.d.sync += [updated.eq(sign_magnitude(logit)), counts.eq(self.complete & (self.stage == Pass.SUM))]
        with m.If(self.new_block):
            m.d.sync += total.eq(0)
        with m.Elif(counts):
            m.d.sync += total.eq(total + exponential)
        rounded = wire(m, exponential * quotient + (1 << 15))
        m.d.sync += self.result.eq(Mux(updating, updated, rounded[16:24]))

        # A restoring divider: the remainder stays below the divisor, and each cycle makes one bit.
        remainder, twice, fits = Signal(16), Signal(17), Signal()
        m.d.comb += [twice.eq(remainder << 1), fits.eq(twice >= total)]
        with m.If(self.new_block):
            m.d.sync += remainder.eq(DIVIDEND)
        with m.Elif(self.divide):
            m.d.sync += [remainder.eq(Mux(fits, twice - total, twice)), quotient.eq(Cat(fits, quotient[:-1]))]
        return m


class SoftmaxUnit(wiring.Component):
    """Updates logits b and makes coupling coefficients k of them, for `lanes` input capsules at once.

    `logits`, `agreement` and `coupling` are the addresses of arrays of bytes (J, I), J = `classes` output capsules,
    I = `inputs`. Three passes over the classes of a block of input capsules, the pipeline empty between them:

        UPDATE  b = first ? 0 : clamp(b + a, -127, 127), written back; the largest of them is kept
        SUM     e = E[max - b], summed; then r = floor(255 * 2**16 / sum), one bit a cycle
        SCALE   k = (e * r + 2**15) >> 16, written to `coupling`

    With `first`, neither logits nor agreement count. Only what the last block really has is written. `coupling` may be
    the very array of `agreement`. E is page `table` of 256 entries of 10 bits with E[0] = 1023, on which the width of
    the divider relies; each lane has its copy, all written through one port (page p from 256 * p) while the unit rests.

    `start` and `done` are pulses of one cycle; the configuration holds still from one to the other; 1 <= J <= 64,
    1 <= I. Cycles from `start` to `done`: ceil(I / lanes) * ((first ? 3 : 4) * J + 29).
    """

    start: Signal
    done: Signal
    logits: Signal
    agreement: Signal
    coupling: Signal
    classes: Signal
    inputs: Signal
    first: Signal
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
        self.lanes, self.pages = parameters.lanes, parameters.tables
        address = ceil_log2(parameters.activation_bytes)
        self.tag = data.StructLayout({"valid": 1, "row": address})
        super().__init__({
            "start": In(1), "done": Out(1),
            "logits": In(address), "agreement": In(address), "coupling": In(address),
            "classes": In(7), "inputs": In(address), "first": In(1), "table": In(range(max(2, self.pages))),
            "read_address": Out(address), "read_data": In(data.ArrayLayout(8, self.lanes)),
            "write_enable": Out(1), "write_address": Out(address),
            "write_data": Out(data.ArrayLayout(8, self.lanes)), "write_mask": Out(self.lanes),
            "table_write_enable": In(1), "table_write_address": In(range(ENTRIES * self.pages)),
            "table_write_data": In(10),
        })  # fmt: skip

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # tags[t] says what the data are that were addressed t cycles ago.
        tags = [data.View(self.tag, Signal(self.tag.size, name=f"tag_{age}")) for age in range(DEPTH + 1)]
        for age in range(DEPTH):
            m.d.sync += tags[age + 1].eq(tags[age])
        busy = Cat(tag.valid for tag in tags[1:]).any()

        stage = Signal(Pass)
        block, row, left = Signal.like(self.logits), Signal.like(self.logits), Signal.like(self.inputs)
        number, bit = Signal(7), Signal(range(QUOTIENT))
        second = Signal()  # of the two reads for a class in UPDATE: logits, then agreement
        updating = stage == Pass.UPDATE
        complete = second | self.first | ~updating
        new_block, divide = Signal(), Signal()

        m.d.comb += [
            self.read_address.eq(Mux(updating & second, self.agreement, self.logits) + row),
            tags[0].row.eq(row),
            self.write_enable.eq(tags[DEPTH].valid & (stage != Pass.SUM)),
            self.write_address.eq(Mux(updating, self.logits, self.coupling) + tags[DEPTH].row),
            self.write_mask.eq(Cat(lane < left for lane in range(self.lanes))),
        ]

        for index in range(self.lanes):
            m.submodules[f"lane_{index}"] = lane = SoftmaxLane(self.pages)
            m.d.comb += [
                lane.byte.eq(self.read_data[index]),
                lane.stage.eq(stage),
                lane.complete.eq(tags[2].valid),
                lane.new_block.eq(new_block),
                lane.divide.eq(divide),
                lane.first.eq(self.first),
                lane.table.eq(self.table),
                lane.table_write_enable.eq(self.table_write_enable),
                lane.table_write_address.eq(self.table_write_address),
                lane.table_write_data.eq(self.table_write_data),
                self.write_data[index].eq(lane.result),
            ]

        def begin(following: Pass, at: Value | int) -> None:
            m.d.sync += [stage.eq(following), row.eq(at), number.eq(0), second.eq(0)]
            m.next = "READ"

        with m.FSM():
            with m.State("IDLE"), m.If(self.start):
                m.d.sync += [block.eq(0), left.eq(self.inputs)]
                m.d.comb += new_block.eq(1)
                begin(Pass.UPDATE, 0)
            with m.State("READ"):
                m.d.comb += tags[0].valid.eq(complete)
                m.d.sync += second.eq(~complete)
                with m.If(complete):
                    m.d.sync += [row.eq(row + self.inputs), number.eq(number + 1)]
                    with m.If(number + 1 == self.classes):
                        m.next = "SETTLE"
            with m.State("SETTLE"), m.If(~busy), m.Switch(stage):
                with m.Case(Pass.UPDATE):
                    begin(Pass.SUM, block)
                with m.Case(Pass.SUM):
                    m.d.sync += bit.eq(0)
                    m.next = "DIVIDE"
                with m.Case(Pass.SCALE):
                    with m.If(left <= self.lanes):
                        m.d.comb += self.done.eq(1)
                        m.next = "IDLE"
                    with m.Else():
                        m.d.sync += [block.eq(block + self.lanes), left.eq(left - self.lanes)]
                        m.d.comb += new_block.eq(1)
                        begin(Pass.UPDATE, block + self.lanes)
            with m.State("DIVIDE"):
                m.d.comb += divide.eq(1)
                m.d.sync += bit.eq(bit + 1)
                with m.If(bit == QUOTIENT - 1):
                    begin(Pass.SCALE, block)
        return m
