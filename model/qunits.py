"""The arithmetic of the quantised network: codes and what makes them, as docs/numerics.md defines it. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from model.errors import RedcaneError
from model.multipliers.product_table import Table

Codes = NDArray[np.int16]
Format = Literal["sign-magnitude", "affine", "twos-complement"]
FORMATS: tuple[Format, ...] = get_args(Format)
Kind = Literal["unsigned", "signed", "affine", "float"]

MAX_CAPSULE_DIM = 64  # keeps a squash's sum of squares below 2**28
MAX_CLASSES = 64  # keeps a softmax's sum of exponentials below 2**16
SQUASH_ENTRIES = 400  # float_index(2**28 - 1) + 1
FLOAT_BITS = 5  # significant ones of a `float` code
FLOAT_LIMIT = 31 << 6  # its largest magnitude: 3 bits of exponent
EXP_ENTRIES = 256
EXP_ONE = 1023


@dataclass(frozen=True)
class Coding:
    """How real values become codes of a byte: value = scale * (code - zero_point).

    A `float` code is a whole number, too: one of at most FLOAT_BITS significant bits, which a byte of sign, exponent
    and mantissa holds.
    """

    kind: Kind
    scale: float
    zero_point: int = 0

    @property
    def lo(self) -> int:
        return -self.hi if self.kind in ("signed", "float") else 0

    @property
    def hi(self) -> int:
        return {"signed": 127, "float": FLOAT_LIMIT}.get(self.kind, 255)

    def encode(self, values: NDArray[np.floating]) -> Codes:
        """Real values to codes, rounded to nearest (ties up) and saturated."""
        whole = np.floor(np.asarray(values, np.float64) / self.scale + 0.5) + self.zero_point
        codes = np.clip(whole, self.lo, self.hi).astype(np.int16)
        return significant(codes) if self.kind == "float" else codes

    def decode(self, codes: Codes) -> NDArray[np.float64]:
        """Codes to the real values that they stand for."""
        return self.scale * (codes.astype(np.float64) - self.zero_point)


def significant(codes: Codes) -> Codes:
    """The nearest numbers of at most FLOAT_BITS significant bits, ties away from zero; |codes| <= FLOAT_LIMIT."""
    magnitude = np.abs(codes)
    below = magnitude.copy()  # becomes ones from the highest bit that is set downwards
    for shift in (1, 2, 4, 8):
        below |= below >> shift
    cut = below >> FLOAT_BITS
    rounded = (magnitude + ((cut + 1) >> 1)) & ~cut
    return np.where(codes < 0, -rounded, rounded).astype(np.int16)


@dataclass(frozen=True)
class Requantizer:
    """q = clamp(((acc * multiplier + 2**(shift-1)) >> shift) + zero_point, lo, hi), of a `float` output its
    `significant` bits.
    """

    multiplier: int
    shift: int
    zero_point: int
    lo: int
    hi: int
    floats: bool = False

    @classmethod
    def for_scale(cls, ratio: float, out: Coding, relu: bool = False) -> Requantizer:
        """The requantiser that multiplies by `ratio` (accumulator scale / output scale) to 16 bits' precision.

        Raises RedcaneError when no shift of 1 ... 47 can express the ratio.
        """
        if not 0 < ratio < 2**14:
            raise RedcaneError(
                f"requantisation by {ratio:g} is out of range: the calibration data give no usable scale"
            )
        mantissa, exponent = np.frexp(ratio)  # ratio = mantissa * 2**exponent, 0.5 <= mantissa < 1
        multiplier, shift = int(np.floor(mantissa * 2**16 + 0.5)), 16 - int(exponent)
        if multiplier == 2**16:
            multiplier, shift = 2**15, shift - 1
        if shift > 47:  # such a ratio sends every accumulator to zero
            multiplier, shift = 2**15, 47
        lo = max(out.lo, out.zero_point) if relu else out.lo
        return cls(multiplier, shift, out.zero_point, lo, out.hi, out.kind == "float")

    def __call__(self, acc: NDArray[np.int64]) -> Codes:
        scaled = (acc.astype(np.int64) * self.multiplier + (1 << (self.shift - 1))) >> self.shift
        codes = np.clip(scaled + self.zero_point, self.lo, self.hi).astype(np.int16)
        return significant(codes) if self.floats else codes


@dataclass(frozen=True)
class Product:
    """One (layer, operation) that multiplies: operand codings, where magnitudes sit, the multiplier, the way out."""

    format: Format
    a: Coding
    b: Coding
    out: Coding
    requantizer: Requantizer
    component: str
    align: int = 0

    @classmethod
    def make(
        cls, number_format: Format, a: Coding, b: Coding, out: Coding, component: str, align: int, relu: bool = False
    ) -> Product:
        """The product with the requantiser that these codings ask for. Raises RedcaneError as Requantizer.for_scale."""
        requantizer = Requantizer.for_scale(_ratio(a, b, out, align), out, relu)
        return cls(number_format, a, b, out, requantizer, component, align)

    def divided(self, gain: float) -> Product:
        """The same for sums that are `gain` times too large."""
        ratio, old = _ratio(self.a, self.b, self.out, self.align) / gain, self.requantizer
        return replace(self, requantizer=replace(Requantizer.for_scale(ratio, self.out), lo=old.lo, hi=old.hi))

    @property
    def unit(self) -> int:
        """What a product of two operands of value 1 (as codes) is in the accumulator."""
        return _unit(self.a, self.b, self.align)

    @property
    def accumulator_scale(self) -> float:
        """The value of 1 in the accumulator."""
        return self.out.scale * self.requantizer.multiplier / 2**self.requantizer.shift

    def term_bound(self, table: Table) -> int:
        """The largest |term| over the operand values that the codings allow."""
        ma, mb = (port_values(self.format, coding, self.align) for coding in (self.a, self.b))
        products = table[np.ix_(ma, mb)].astype(np.int64)
        if self.format == "affine":
            za, zb = self.a.zero_point, self.b.zero_point
            products += za * zb - zb * ma[:, None] - za * mb[None, :]
        return int(np.abs(products).max())


def _unit(a: Coding, b: Coding, align: int) -> int:
    return int(2 ** (align * sum(coding.kind == "signed" for coding in (a, b))))


def _ratio(a: Coding, b: Coding, out: Coding, align: int) -> float:
    """The scale of sums of products over that of what they are requantised to."""
    return a.scale * b.scale / _unit(a, b, align) / out.scale


def port_values(number_format: Format, coding: Coding, align: int) -> NDArray[np.int64]:
    """Every byte that an operand of this coding can put on a multiplier's port."""
    if number_format == "twos-complement":
        return np.arange(coding.lo, coding.hi + 1, dtype=np.int64) & 255
    return np.arange(128, dtype=np.int64) << align if coding.kind == "signed" else np.arange(256, dtype=np.int64)


def takes_signed(number_format: Format) -> bool:
    """Whether an operation in this format takes multipliers of signed operands; the others take unsigned ones only."""
    return number_format == "twos-complement"


def unit_interval(number_format: Format) -> Coding:
    """The coding of operands from 0 to 1, image and coupling coefficients, for an operation in this format."""
    return Coding("signed", 1 / 127) if takes_signed(number_format) else Coding("unsigned", 1 / 255)


@dataclass(frozen=True)
class Squash:
    """Table and constants of a squash: (q * table[float_index(n)] + 2**(shift-1)) >> shift, zero point and clamp."""

    table: NDArray[np.uint16]  # (SQUASH_ENTRIES,)
    shift: int
    out: Coding

    @classmethod
    def for_scales(cls, s_in: float, out: Coding) -> Squash:
        """The table of G for `float` codes of scale `s_in` (docs/numerics.md, Squash)."""
        low, high = float_intervals()
        norm = s_in * np.sqrt((low + high) / 2)
        gain = s_in / out.scale * norm / (1 + norm**2)
        shift = min(15, int(np.floor(np.log2(65535 / gain.max()))))
        if shift < 1:
            raise RedcaneError(
                f"squash: an input scale of {s_in:g} against an output scale of {out.scale:g} is out of range"
            )
        return cls(np.floor(gain * 2.0**shift + 0.5).astype(np.uint16), shift, out)


@dataclass(frozen=True)
class Adder:
    """q = clamp((((qa - za) * ma + (qb - zb) * mb + 2**(shift-1)) >> shift) + z): the sum of values of two codings."""

    a: Coding
    b: Coding
    out: Coding
    multipliers: tuple[int, int]  # below 2**16
    shift: int

    @classmethod
    def for_codings(cls, a: Coding, b: Coding, out: Coding) -> Adder:
        """The adder with the largest shift <= 16 whose multipliers fit 16 bits (docs/numerics.md, Sums of capsules)."""
        ratios = a.scale / out.scale, b.scale / out.scale
        shift = min(16, int(np.floor(np.log2(65535 / max(ratios)))))
        if shift < 1:
            raise RedcaneError(f"sum: scales of {a.scale:g} and {b.scale:g} against {out.scale:g} are out of range")
        ma, mb = (int(np.floor(ratio * 2.0**shift + 0.5)) for ratio in ratios)
        return cls(a, b, out, (ma, mb), shift)

    def __call__(self, a: Codes, b: Codes) -> Codes:
        (ma, mb), half = self.multipliers, 1 << (self.shift - 1)
        wide = (a.astype(np.int64) - self.a.zero_point) * ma + (b.astype(np.int64) - self.b.zero_point) * mb
        return np.clip(((wide + half) >> self.shift) + self.out.zero_point, self.out.lo, self.out.hi).astype(np.int16)


def float_index(n: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place of whole numbers 0 <= n < 2**28 among those of one exponent and 4 bits of mantissa: n itself below 16.

    A table of squash has an entry for each, a `float` code its first 128.
    """
    exponent = np.floor(np.log2(np.maximum(n, 1))).astype(np.int64)
    coarse = (exponent - 3) * 16 + ((n >> np.maximum(exponent - 4, 0)) & 15)
    return np.where(n < 16, n, coarse)


def float_intervals() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The lowest and the highest number at each place of float_index."""
    index = np.arange(SQUASH_ENTRIES)
    step = np.where(index < 16, 0, index // 16 - 1)
    low = np.where(index < 16, index, (16 + index % 16) << step)
    return low.astype(np.float64), (low + (1 << step) - 1).astype(np.float64)


def exp_table(scale: float) -> NDArray[np.uint16]:
    """E[d] = round(1023 * exp(-scale * d)), d = 0 ... 255."""
    return np.floor(EXP_ONE * np.exp(-scale * np.arange(EXP_ENTRIES)) + 0.5).astype(np.uint16)
