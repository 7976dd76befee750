"""The processing element: one approximate product a cycle, in any of the three number formats."""

from __future__ import annotations

from amaranth import Cat, Module, Mux, Signal, signed
from amaranth.hdl import Instance, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.parameters import MultiplierKind


def magnitude(byte: Value, is_signed: Value, align: Value) -> Value:
    """The 8 bits that a multiplier's port sees: the code, or the seven bits of a signed byte's magnitude << align."""
    return Mux(is_signed, Mux(align, Cat(0, byte[:7]), byte[:7]), byte)


def twos_complement(byte: Value) -> Value:
    """The 8 bits that a signed multiplier's port sees: a byte of sign (bit 7) and magnitude in two's complement."""
    return Mux(byte[7], -byte[:7], byte[:7])[:8]


class PE(wiring.Component):
    """A product of two bytes by one of several multipliers. Latency 1: `product` is registered.

    An operand that is `a_signed` / `b_signed` is a byte of sign (bit 7) and magnitude, the latter shifted left by
    `align`; any other goes to the multiplier as it is. The multiplier sees magnitudes only, so with table T

        product = valid ? (signs differ ? -T[ma, mb] : T[ma, mb]) : 0      (-65535 ... 65535)

    where an unsigned operand counts as positive. A multiplier that is `signed` (hw.parameters) sees both bytes, of sign
    and magnitude whatever the flags say, in two's complement, never 0x80; its product is taken as it is:

        product = valid ? T[a, b] : 0                                      (-32768 ... 32767)

    `valid` = 0 gives 0 even for a multiplier whose T[0, 0] is not zero.

    `kind` selects the multiplier, an index into `kinds`. The operands of the others are held at zero (operand
    isolation), so that they do not switch and cost no dynamic power.

    Verilog is made of this component once, as module `pe`, and `hw.array` instantiates that.
    """

    a: Signal
    b: Signal
    a_signed: Signal
    b_signed: Signal
    align: Signal
    valid: Signal
    kind: Signal
    product: Signal

    def __init__(self, kinds: tuple[MultiplierKind, ...]) -> None:
        self.kinds = kinds
        super().__init__({
            "a": In(8), "b": In(8), "a_signed": In(1), "b_signed": In(1), "align": In(1), "valid": In(1),
            "kind": In(range(max(2, len(kinds)))),  # never of zero width: Verilog has no such port
            "product": Out(signed(17)),
        })  # fmt: skip

    def elaborate(self, platform: object) -> Module:
        m = Module()
        ma, mb = Signal(8), Signal(8)
        m.d.comb += ma.eq(magnitude(self.a, self.a_signed, self.align))
        m.d.comb += mb.eq(magnitude(self.b, self.b_signed, self.align))
        ta, tb = Signal(8), Signal(8)
        m.d.comb += [ta.eq(twos_complement(self.a)), tb.eq(twos_complement(self.b))]

        # An unselected multiplier still shows its T[0, 0]; hence a multiplexer and not an OR of the outputs.
        looked_up, negative = Signal(signed(17)), Signal()
        with m.Switch(self.kind):
            for index, kind in enumerate(self.kinds):
                a, b, out = Signal(8, name=f"a_{index}"), Signal(8, name=f"b_{index}"), Signal(16, name=f"o_{index}")
                selected = self.valid & (self.kind == index)
                m.d.comb += a.eq(Mux(selected, ta if kind.signed else ma, 0))
                m.d.comb += b.eq(Mux(selected, tb if kind.signed else mb, 0))
                ports = {f"i_{kind.a}": a, f"i_{kind.b}": b, f"o_{kind.out}": out}
                m.submodules[f"multiplier_{index}"] = Instance(kind.module, **ports)
                with m.Case(index):
                    if kind.signed:
                        m.d.comb += looked_up.eq(out.as_signed())
                    else:
                        signs = (self.a_signed & self.a[7]) ^ (self.b_signed & self.b[7])
                        m.d.comb += [looked_up.eq(out), negative.eq(signs)]
        m.d.sync += self.product.eq(Mux(self.valid, Mux(negative, -looked_up, looked_up), 0))
        return m
