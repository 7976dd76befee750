"""From wide integers back to bytes: scale, round, add the zero point, saturate, code (docs/numerics.md)."""

from __future__ import annotations

from amaranth import C, Cat, Module, Mux, Signal, signed
from amaranth.hdl import Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from model.qnetwork import FLOAT_LIMIT

HALVES = signed(13)


def wire(m: Module, value: Value) -> Signal:
    """The value on a wire: an expression is made again wherever it is used, a wire only once."""
    result = Signal(value.shape())
    m.d.comb += result.eq(value)
    return result


def saturate(m: Module, value: Value, low: Value | int, high: Value | int) -> Value:
    """min(max(value, low), high)."""
    value = wire(m, value)
    return Mux(value > high, high, Mux(value < low, low, value))


def halves(m: Module, product: Value, shift: Value) -> Value:
    """floor(product / 2**(shift-1)), 1 <= shift, clamped to the 13 bits of `HALVES`: twice the scaled value.

    Rounding is left to `byte_of` and `float_byte`: floor((p + 2**(s-1)) / 2**s) = floor((floor(p / 2**(s-1)) + 1) / 2)
    for every p, which spares an adder as wide as the product. The clamp loses nothing: it leaves a value of
    -2048 ... 2048 after the rounding, and outside of that no zero point (0 ... 255) brings it back into the range of a
    code (-1984 ... 1984).
    """
    return saturate(m, product >> (shift - 1).as_unsigned()[: len(shift)], -4096, 4095)


def byte_of(m: Module, doubled: Value, zero_point: Value, lo: Value, hi: Value, signed_out: Value) -> Value:
    """Round what `halves` made, add the zero point, clamp to lo ... hi; `signed_out` codes as sign and magnitude.

    Zero is the byte 0x00 in either coding. A signed code is -127 ... 127 (lo >= -127), so its magnitude fits.
    """
    code = wire(m, saturate(m, ((doubled + 1) >> 1) + zero_point, lo, hi))
    return Mux(signed_out, sign_magnitude(code), code[:8])


def sign_magnitude(value: Value) -> Value:
    """The byte of a value of -127 ... 127: sign in bit 7, magnitude below."""
    return Mux(value < 0, Cat((-value)[:7], 1), Cat(value[:7], 0))


def sign_extend(byte: Value) -> Value:
    """The value of -127 ... 127 of a byte of sign and magnitude."""
    return Mux(byte[7], -byte[:7], byte[:7])


def float_index(m: Module, value: Value) -> Value:
    """A number below 16 itself, any other as an exponent and 4 bits of mantissa (docs/numerics.md)."""
    bits = ceil_log2(16 * (len(value) - 3))
    result = Signal(bits)
    m.d.comb += result.eq(value[:4])
    for exponent in range(4, len(value)):  # the last assignment wins: the highest bit that is set
        with m.If(value[exponent]):
            m.d.comb += result.eq(Cat(value[exponent - 4 : exponent], C(exponent - 3, bits - 4)))
    return result


def float_byte(m: Module, doubled: Value) -> Value:
    """Round what `halves` made, clamp and code it as a `float`: sign, three bits of exponent and four of mantissa."""
    code = wire(m, (doubled + 1) >> 1)
    magnitude = wire(m, saturate(m, Mux(code < 0, -code, code), 0, FLOAT_LIMIT).as_unsigned()[:11])
    tie = Signal()  # the bit below the mantissa
    for exponent in range(5, len(magnitude)):
        with m.If(magnitude[exponent]):
            m.d.comb += tie.eq(magnitude[exponent - 5])
    return Cat((float_index(m, magnitude) + tie)[:7], code < 0)


def float_parts(byte: Value) -> tuple[Value, Value]:
    """The magnitude in a `float`'s byte: an integer of five bits, and the power of two (0 ... 6) that it is times."""
    exponent, mantissa = byte[4:7], byte[:4]
    small = exponent == 0
    return Cat(mantissa, ~small), Mux(small, 0, (exponent - 1).as_unsigned()[:3])


class Requantizer(wiring.Component):
    """byte = code(clamp(((acc * multiplier + 2**(shift-1)) >> shift) + zero_point, lo, hi)).

    With `floats` the byte is that of a `float` code, whatever zero point and limits are.

    Latency 3, one result a cycle: product, shift, then rounding with zero point, clamp and coding. Rounding is to
    nearest, ties towards plus infinity. The constants (1 <= shift <= 47, lo <= hi) must hold still while results are
    in flight. A byte for every cycle's `acc`: who knows which of them mean something delays that knowledge by three.
    """

    acc: Signal
    multiplier: Signal
    shift: Signal
    zero_point: Signal
    lo: Signal
    hi: Signal
    signed_out: Signal
    floats: Signal
    byte: Signal

    def __init__(self) -> None:
        super().__init__({
            "acc": In(signed(32)), "multiplier": In(16), "shift": In(6), "zero_point": In(8),
            "lo": In(signed(9)), "hi": In(signed(9)), "signed_out": In(1), "floats": In(1), "byte": Out(8),
        })  # fmt: skip

    def elaborate(self, platform: object) -> Module:
        m = Module()
        product, doubled = Signal(signed(48)), Signal(HALVES)
        m.d.sync += product.eq(self.acc * self.multiplier)
        m.d.sync += doubled.eq(halves(m, product, self.shift))
        plain = byte_of(m, doubled, self.zero_point, self.lo, self.hi, self.signed_out)
        m.d.sync += self.byte.eq(Mux(self.floats, float_byte(m, doubled), plain))
        return m
