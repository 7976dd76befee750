"""Multipliers that join the partial products of a column by OR where an exact one adds them.

There are no adders and no carries: about five transistors for a partial product in place of some thirty. The product is
right where one operand is a power of two, and too small elsewhere, by a share that differs little from operand to
operand: most of the error is a gain, which changes no class, and a zero operand gives zero. (Joining by OR in the lower
part of an adder is H. R. Mahdiani et al., "Bio-inspired imprecise computational blocks", 2010; EvoApproxLib's YX7 and
QKX are of this kind all over.) Small partial products can be left out.

`mul8u_or_aXbYvZ` joins the a_i b_j with i >= X, j >= Y and i + j >= Z.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.errors import RedcaneError
from model.multipliers.error_figures import EXACT
from model.multipliers.evolved import half_normal_weights
from model.multipliers.netlist import Circuit, extract_many

DEVIATIONS = (32.0, 96.0)
"""Of half-normal operands, small and large ones as networks have them: a component is chosen for one of them."""
SMALLEST_STEP = 0.92
"""A component is kept where its noise is at most this share of that of the last one kept, which is cheaper."""


class Cut(NamedTuple):
    """Which partial products a_i b_j are there: i >= a, j >= b, i + j >= column."""

    a: int
    b: int
    column: int

    @property
    def component(self) -> str:
        """The component's name."""
        return f"mul8u_or_a{self.a}b{self.b}v{self.column}"

    def products(self, column: int) -> list[tuple[int, int]]:
        """The (i, j) in a column."""
        return [(i, column - i) for i in range(self.a, 8) if self.b <= column - i < 8 and column >= self.column]


def cut_of(component: str) -> Cut:
    """What a component's name says; RedcaneError where it is none of this family."""
    found = re.fullmatch(r"mul8u_or_a([0-7])b([0-7])v(\d|1[0-4])", component)
    if not found:
        raise RedcaneError(f"`{component}` is not a component of this family")
    return Cut(*map(int, found.groups()))


def definition(component: str) -> NDArray[np.uint16]:
    """The products that a component's name promises, uint16 [256, 256] as [a, b]."""
    cut = cut_of(component)
    a, b = np.arange(256)[:, None], np.arange(256)[None, :]
    table = np.zeros((256, 256), np.int64)
    for column in range(15):
        for i, j in cut.products(column):
            table |= (a >> i & b >> j & 1) << column
    return table.astype(np.uint16)


def verilog(component: str) -> str:
    """The Verilog of a component."""
    cut = cut_of(component)
    lines = [f"module {component}(input [7:0] A, input [7:0] B, output [15:0] O);"]
    for column in range(16):
        terms = " | ".join(f"A[{i}] & B[{j}]" for i, j in cut.products(column))
        lines.append(f"  assign O[{column}] = {terms or '1' + chr(39) + 'b0'};")
    return "\n".join([f"// Partial products joined by OR: {component}", *lines, "endmodule", ""])


def candidates() -> Iterator[Cut]:
    """Every cut that is tried: as many columns go as there is something to lose in them."""
    for a in range(5):
        for b in range(5):
            yield from (Cut(a, b, column) for column in range(a + b, 12))


def noise(table: NDArray[np.uint16], deviation: float) -> float:
    """Deviation of a product of half-normal operands from the exact one, over that one's, where the gain that makes it
    least is allowed.
    """
    weights, found, exact = half_normal_weights(deviation), table.astype(np.float64), EXACT.astype(np.float64)
    gain = (weights * exact * found).sum() / (weights * found**2).sum()
    return float(np.sqrt((weights * (exact - gain * found) ** 2).sum() / (weights * exact**2).sum()))


def select() -> list[str]:
    """The components of the family: of every kind of operands, those that no cheaper one beats, thinned."""
    cuts = list(candidates())
    found = extract_many([Circuit(cut.component, verilog(cut.component)) for cut in cuts])
    chosen: dict[str, int] = {}
    for deviation in DEVIATIONS:
        ranked = sorted((extracted.transistors, noise(extracted.table, deviation), cut.component)
                        for cut, extracted in zip(cuts, found, strict=True))
        last = float("inf")
        for transistors, error, component in ranked:
            if error <= SMALLEST_STEP * last:
                chosen[component], last = transistors, error
    return sorted(chosen, key=lambda component: (-chosen[component], component))
