"""The sum of two tensors of codes in the activation memory, each with a scale and a zero point (docs/numerics.md)."""

from __future__ import annotations

from amaranth import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.parameters import Parameters
from hw.requantizer import HALVES, byte_of, halves, wire

DEPTH = 4  # cycles from the address of a vector of b to its sums


class AddUnit(wiring.Component):
    """Writes q = code(clamp((((qa - za) * ma + (qb - zb) * mb + 2**(shift-1)) >> shift) + zero_point, lo, hi)) of
    `count` codes at `a` and as many at `b` to `destination`.

    In even cycles a vector of a is read, in odd ones that of b: one multiplier of a lane serves both. A signed code
    counts as it is (its zero point is 0), another one relative to its zero point: operands of -255 ... 255.

    `start` and `done` are pulses of one cycle; the configuration holds still from one to the other. 1 <= count,
    1 <= shift <= 16, ma and mb below 2**16. `destination` is `a` or `b` or overlaps neither. Cycles from `start` to
    `done`: 2 * ceil(count / lanes) + 5. The last byte is written before `done`.
    """

    start: Signal
    done: Signal
    a: Signal
    b: Signal
    destination: Signal
    count: Signal
    a_signed: Signal
    b_signed: Signal
    za: Signal
    zb: Signal
    ma: Signal
    mb: Signal
    shift: Signal
    zero_point: Signal
    lo: Signal
    hi: Signal
    signed_out: Signal
    read_address: Signal
    read_data: data.View
    write_enable: Signal
    write_address: Signal
    write_data: data.View
    write_mask: Signal

    def __init__(self, parameters: Parameters) -> None:
        self.lanes = parameters.lanes
        address = ceil_log2(parameters.activation_bytes)
        self.tag = data.StructLayout({"valid": 1, "mask": self.lanes, "address": address})
        super().__init__({
            "start": In(1), "done": Out(1),
            "a": In(address), "b": In(address), "destination": In(address), "count": In(address),
            "a_signed": In(1), "b_signed": In(1), "za": In(8), "zb": In(8), "ma": In(16), "mb": In(16),
            "shift": In(5), "zero_point": In(8), "lo": In(signed(9)), "hi": In(signed(9)), "signed_out": In(1),
            "read_address": Out(address), "read_data": In(data.ArrayLayout(8, self.lanes)),
            "write_enable": Out(1), "write_address": Out(address),
            "write_data": Out(data.ArrayLayout(8, self.lanes)), "write_mask": Out(self.lanes),
        })  # fmt: skip

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # tags[t] says what becomes of the vector of b that was addressed t cycles ago.
        tags = [data.View(self.tag, Signal(self.tag.size, name=f"tag_{age}")) for age in range(DEPTH + 1)]
        for age in range(DEPTH):
            m.d.sync += tags[age + 1].eq(tags[age])
        issue, out = tags[0], tags[DEPTH]

        odd, running = Signal(), Signal()
        offset, left = Signal.like(self.a), Signal.like(self.count)
        last = left <= self.lanes
        m.d.comb += [
            self.read_address.eq(Mux(odd, self.b, self.a) + offset),
            issue.valid.eq(running & odd),
            issue.mask.eq(Cat(lane < left for lane in range(self.lanes))),
            issue.address.eq(self.destination + offset),
        ]
        with m.If(running):
            m.d.sync += odd.eq(~odd)
            with m.If(odd):
                m.d.sync += [offset.eq(offset + self.lanes), left.eq(left - self.lanes), running.eq(~last)]
        with m.If(self.start):
            m.d.sync += [running.eq(1), odd.eq(0), offset.eq(0), left.eq(self.count)]
        final = Signal(DEPTH + 1)  # whether a vector is the last one, as it goes through the tags
        m.d.comb += final[0].eq(issue.valid & last)
        m.d.sync += [final[1:].eq(final[:-1]), self.done.eq(final[DEPTH])]

        # Even cycles deliver what was addressed in odd ones: b.
        is_signed = wire(m, Mux(odd, self.a_signed, self.b_signed))
        zero = wire(m, Mux(odd, self.za, self.zb))
        factor = Signal(16)
        m.d.sync += factor.eq(Mux(odd, self.ma, self.mb))
        for lane in range(self.lanes):
            byte = self.read_data[lane]
            centred = wire(m, byte - zero)
            magnitude, negative = Signal(8, name=f"magnitude_{lane}"), Signal(name=f"negative_{lane}")
            m.d.sync += magnitude.eq(Mux(is_signed, byte[:7], Mux(centred < 0, -centred, centred)))
            m.d.sync += negative.eq(Mux(is_signed, byte[7], centred < 0))

            product = wire(m, magnitude * factor)
            scaled, before = Signal(signed(25), name=f"scaled_{lane}"), Signal(signed(25), name=f"before_{lane}")
            m.d.sync += [scaled.eq(Mux(negative, -product, product)), before.eq(scaled)]

            doubled = Signal(HALVES, name=f"doubled_{lane}")
            m.d.sync += doubled.eq(halves(m, before + scaled, self.shift))
            m.d.comb += self.write_data[lane].eq(
                byte_of(m, doubled, self.zero_point, self.lo, self.hi, self.signed_out)
            )
        m.d.comb += [
            self.write_enable.eq(out.valid),
            self.write_address.eq(out.address),
            self.write_mask.eq(out.mask),
        ]
        return m
