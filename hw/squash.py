"""The squash of capsules in the activation memory, and the class as the longest of them (docs/numerics.md)."""

from __future__ import annotations

from amaranth import C, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.array import tree
from hw.memory import Bank
from hw.parameters import Parameters
from hw.requantizer import HALVES, byte_of, float_index, float_parts, halves, wire

ENTRIES = 512  # of a page; the contract has fewer
MOST_POWER = 6  # of two, in a float
DEPTH = 4  # cycles from an address on the read port to its result


class SquashUnit(wiring.Component):
    """Squashes `count` capsules of `dim` float codes, packed one after the other at `source`, to `destination`.

    A capsule is read twice, ceil(dim / lanes) words each time: first its elements are squared and summed to n, then
    each is multiplied by the gain G[index(n)] of page `table`, shifted, offset, clamped and coded. Both use the same
    multiplier of a lane, which has the element's magnitude on one side and either that again or the gain on the other:
    in even cycles one capsule is measured, in odd ones the capsule before it is scaled. Squashing in place
    (`destination` = `source`) is allowed.

    With `classify` there is no second reading: the number of the capsule with the largest sum of squares (of equals
    the lowest) is written to `destination` as one byte. Elements then are signed bytes or, without `in_signed`, codes
    with zero point `in_zero_point`: operands of -255 ... 255.

    `start` and `done` are pulses of one cycle; the configuration holds still from one to the other. 1 <= dim <= 64,
    1 <= count (<= 256 with `classify`), 1 <= shift <= 15. Cycles from `start` to `done`, w = ceil(dim / lanes):

        squash    (count + 1) * 2 * w + 5
        classify  count * w + 5

    The last byte is written before `done` or with it. The table's pages are written through its own port, page p from
    512 * p; not while the unit works.
    """

    start: Signal
    done: Signal
    source: Signal
    destination: Signal
    dim: Signal
    count: Signal
    table: Signal
    shift: Signal
    zero_point: Signal
    lo: Signal
    hi: Signal
    signed_out: Signal
    classify: Signal
    in_zero_point: Signal
    in_signed: Signal
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
        self.lanes, self.pages = parameters.lanes, parameters.squash_tables
        address = ceil_log2(parameters.activation_bytes)
        self.tag = data.StructLayout(
            {"valid": 1, "first": 1, "last": 1, "scale": 1, "mask": self.lanes, "address": address}
        )
        super().__init__({
            "start": In(1), "done": Out(1),
            "source": In(address), "destination": In(address), "dim": In(7), "count": In(address),
            "table": In(range(max(2, self.pages))), "shift": In(4), "zero_point": In(8),
            "lo": In(signed(9)), "hi": In(signed(9)), "signed_out": In(1),
            "classify": In(1), "in_zero_point": In(8), "in_signed": In(1),
            "read_address": Out(address), "read_data": In(data.ArrayLayout(8, self.lanes)),
            "write_enable": Out(1), "write_address": Out(address),
            "write_data": Out(data.ArrayLayout(8, self.lanes)), "write_mask": Out(self.lanes),
            "table_write_enable": In(1), "table_write_address": In(range(ENTRIES * self.pages)),
            "table_write_data": In(16),
        })  # fmt: skip

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # tags[t] says what the data are that were addressed t cycles ago.
        tags = [data.View(self.tag, Signal(self.tag.size, name=f"tag_{age}")) for age in range(DEPTH + 1)]
        for age in range(DEPTH):
            m.d.sync += tags[age + 1].eq(tags[age])
        busy = Cat(tag.valid for tag in tags[1:]).any()
        best = self.datapath(m, tags)

        # `left` capsules are still to be measured; the one before `capsule`, if any, is scaled at the same `offset`.
        capsule, previous, squashed = Signal.like(self.source), Signal.like(self.source), Signal.like(self.source)
        left, offset, odd = Signal.like(self.count), Signal(7), Signal()
        measured = Signal()  # whether one is
        issue = tags[0]
        last = offset + self.lanes >= self.dim
        m.d.comb += [
            self.read_address.eq(Mux(odd, previous, capsule) + offset),
            issue.address.eq(squashed + offset),
            issue.first.eq(offset == 0),
            issue.last.eq(last),
            issue.scale.eq(odd),
            issue.mask.eq(Cat(offset + lane < self.dim for lane in range(self.lanes))),
        ]
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [capsule.eq(self.source), squashed.eq(self.destination), left.eq(self.count)]
                m.d.sync += [offset.eq(0), odd.eq(0), measured.eq(0)]
                with m.If(self.start):
                    m.next = "WORK"
            with m.State("WORK"):
                m.d.comb += issue.valid.eq(Mux(odd, measured, left != 0))
                m.d.sync += odd.eq(~odd & ~self.classify)
                with m.If(odd | self.classify):
                    m.d.sync += offset.eq(Mux(last, 0, offset + self.lanes))
                    with m.If(last):
                        m.d.sync += [previous.eq(capsule), capsule.eq(capsule + self.dim)]
                        m.d.sync += [left.eq(left - 1), measured.eq(1)]
                        with m.If(measured):
                            m.d.sync += squashed.eq(squashed + self.dim)
                        with m.If(left == self.classify):
                            m.next = "DRAIN"
            with m.State("DRAIN"), m.If(~busy):
                m.d.comb += self.done.eq(1)
                with m.If(self.classify):
                    m.d.comb += [
                        self.write_enable.eq(1),
                        self.write_address.eq(self.destination),
                        self.write_data[0].eq(best),
                        self.write_mask.eq(1),
                    ]
                m.next = "IDLE"
        return m

    def datapath(self, m: Module, tags: list[data.View]) -> Signal:
        """Magnitudes; products; sum or shift; table or write port. Returns the number of the longest capsule so far."""
        n, so_far, gain = Signal(28), Signal(28), Signal(16)  # n of the last capsule that is complete
        m.submodules.gains = gains = Bank(16, ENTRIES * self.pages)
        m.d.comb += [
            gains.read_address.eq(Cat(float_index(m, n), self.table)),
            gain.eq(gains.read_data),
            gains.write_enable.eq(self.table_write_enable),
            gains.write_address.eq(self.table_write_address),
            gains.write_data.eq(self.table_write_data),
        ]
        out = tags[4]
        squares = []
        for lane in range(self.lanes):
            byte = self.read_data[lane]
            centred = wire(m, byte - self.in_zero_point)
            # A magnitude is an integer of 8 bits times a power of two, which is left to the shifts behind the product.
            magnitude, negative = Signal(8, name=f"magnitude_{lane}"), Signal(name=f"negative_{lane}")
            power, later = Signal(3, name=f"power_{lane}"), Signal(3, name=f"later_{lane}")
            mantissa, exponent = float_parts(byte)
            compared = Mux(self.in_signed, byte[:7], Mux(centred < 0, -centred, centred))
            m.d.sync += magnitude.eq(Mux(self.classify, compared, mantissa))
            m.d.sync += [power.eq(Mux(self.classify, 0, exponent)), later.eq(power)]
            m.d.sync += negative.eq(byte[7])  # of squares nobody asks

            product = wire(m, magnitude * Mux(tags[2].scale, gain, magnitude))
            scaled, square = Signal(signed(25), name=f"scaled_{lane}"), Signal(22, name=f"square_{lane}")
            m.d.sync += scaled.eq(Mux(negative, -product, product))
            m.d.sync += square.eq(Mux(tags[2].mask[lane], product[:16] << Cat(C(0, 1), power), 0))
            squares.append(square)

            doubled = Signal(HALVES, name=f"doubled_{lane}")
            down = wire(m, (self.shift + MOST_POWER - later).as_unsigned()[:5])
            m.d.sync += doubled.eq(halves(m, scaled << MOST_POWER, down))
            m.d.comb += self.write_data[lane].eq(
                byte_of(m, doubled, self.zero_point, self.lo, self.hi, self.signed_out)
            )
        with m.If(tags[3].valid & ~tags[3].scale):
            total = wire(m, (Mux(tags[3].first, 0, so_far) + tree(squares))[: len(n)])
            m.d.sync += so_far.eq(total)
            with m.If(tags[3].last):
                m.d.sync += n.eq(total)
        m.d.comb += [
            self.write_enable.eq(out.valid & out.scale),
            self.write_address.eq(out.address),
            self.write_mask.eq(out.mask),
        ]

        number, best, longest = Signal(8), Signal(8), Signal.like(n)
        with m.If(self.start):
            m.d.sync += [number.eq(0), best.eq(0), longest.eq(0)]
        with m.Elif(out.valid & out.last & self.classify):
            m.d.sync += number.eq(number + 1)
            with m.If(n > longest):
                m.d.sync += [best.eq(number), longest.eq(n)]
        return best
