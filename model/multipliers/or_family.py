"""Multipliers that join partial products by OR where an exact one adds them.

Rows of partial products b_j a are joined in groups, each by ORs, column by column: without adders, some five
transistors for a partial product in place of thirty. Where there is more than one group, their words are added, from
some column up; below, they are joined too. A row is in the group j mod G, so that neighbours, which collide most, are
apart.

The product of a group is right where one operand is a power of two, and too small elsewhere, by a share that differs
little from operand to operand: most of the error is a gain, which changes no class. A zero operand gives zero. (Joining
by OR in the lower part of an adder is H. R. Mahdiani et al., "Bio-inspired imprecise computational blocks", 2010;
EvoApproxLib's YX7 and QKX are of one group.) Small partial products can be left out.

`mul8u_orG_aXbYvZsS` has G groups of the a_i b_j with i >= X, j >= Y and i + j >= Z, and adds from column S up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.errors import RedcaneError
from model.multipliers.error_figures import EXACT
from model.multipliers.evolved import half_normal_weights
from model.multipliers.netlist import Circuit, extract_many

DEVIATIONS = (32.0, 96.0)
"""Of half-normal operands, small and large ones as networks have them: a component is chosen for one of them."""
SMALLEST_STEP = 0.85
"""A component is kept where its noise is at most this share of that of the last one kept, which is cheaper."""
_COLUMNS = 15  # that have partial products; what is added never reaches 65536


class Structure(NamedTuple):
    """Which partial products a_i b_j are there, i >= a, j >= b, i + j >= column, and how they are put together."""

    groups: int
    a: int
    b: int
    column: int
    adds: int
    """The first column in which groups are added."""

    @property
    def component(self) -> str:
        """The component's name."""
        added = f"s{self.adds}" if self.groups > 1 else ""
        return f"mul8u_or{self.groups}_a{self.a}b{self.b}v{self.column}{added}"

    def products(self, group: int, column: int) -> list[tuple[int, int]]:
        """The (i, j) of a group in a column."""
        rows = [j for j in range(self.b, 8) if j % self.groups == group and column >= self.column]
        return [(column - j, j) for j in reversed(rows) if self.a <= column - j < 8]


def structure_of(component: str) -> Structure:
    """What a component's name says; RedcaneError where it is none of this family."""
    found = re.fullmatch(r"mul8u_or([1-4])_a([0-7])b([0-7])v(\d|1[0-4])(?:s(\d|1[0-4]))?", component)
    if not found or (found[1] == "1") != (found[5] is None):
        raise RedcaneError(f"`{component}` is not a component of this family")
    return Structure(*(int(number or 0) for number in found.groups()))


def definition(component: str) -> NDArray[np.uint16]:
    """The products that a component's name promises, uint16 [256, 256] as [a, b]."""
    structure = structure_of(component)
    a, b = np.arange(256)[:, None], np.arange(256)[None, :]
    joined = (1 << structure.adds) - 1
    total = np.zeros((256, 256), np.int64)
    for group in range(structure.groups):
        word = np.zeros((256, 256), np.int64)
        for column in range(_COLUMNS):
            for i, j in structure.products(group, column):
                word |= (a >> i & b >> j & 1) << column
        total = (total & ~joined) + (word & ~joined) | (total | word) & joined
    return total.astype(np.uint16)


def verilog(component: str) -> str:
    """The Verilog of a component: ORs, and ripple-carry adders of the words."""
    structure = structure_of(component)
    wires: list[str] = []

    def wire(expression: str) -> str:
        wires.append(f"  wire n{len(wires)} = {expression};")
        return f"n{len(wires) - 1}"

    def word(group: int) -> list[str | None]:
        terms = (structure.products(group, column) for column in range(16))
        return [wire(" | ".join(f"A[{i}] & B[{j}]" for i, j in found)) if found else None for found in terms]

    total = word(0)
    for group in range(1, structure.groups):
        carry = None
        for column, bit in enumerate(word(group)):
            here = [signal for signal in (total[column], bit, carry) if signal is not None]
            carry = None
            if column < structure.adds:
                total[column] = wire(" | ".join(here)) if here else None
            elif len(here) == 3:
                either = wire(f"{here[0]} ^ {here[1]}")
                total[column] = wire(f"{either} ^ {here[2]}")
                carry = wire(f"{here[0]} & {here[1]} | {either} & {here[2]}")
            elif len(here) == 2:
                total[column], carry = wire(f"{here[0]} ^ {here[1]}"), wire(f"{here[0]} & {here[1]}")
            else:
                total[column] = here[0] if here else None
    outputs = [f"  assign O[{column}] = {signal or _ZERO};" for column, signal in enumerate(total)]
    return "\n".join([f"// Partial products joined by OR: {component}",
                      f"module {component}(input [7:0] A, input [7:0] B, output [15:0] O);",
                      *wires, *outputs, "endmodule", ""])  # fmt: skip


_ZERO = "1'b0"


def candidates() -> Iterator[Structure]:
    """Every structure that is tried."""
    for groups, a, b, column in product((1, 2, 3), range(5), range(5), range(3, 12)):
        for adds in (0, 8, 10) if groups > 1 else (0,):
            if column >= a + b and (column < 10 or groups == 1):
                yield Structure(groups, a, b, column, adds)


def noise(table: NDArray[np.uint16], deviation: float) -> float:
    """Deviation of a product of half-normal operands from the exact one, over that one's, where the gain that makes it
    least is allowed.
    """
    weights, found, exact = half_normal_weights(deviation), table.astype(np.float64), EXACT.astype(np.float64)
    gain = (weights * exact * found).sum() / (weights * found**2).sum()
    return float(np.sqrt((weights * (exact - gain * found) ** 2).sum() / (weights * exact**2).sum()))


def select() -> list[str]:
    """The components of the family: for operands of every deviation, those that no cheaper one beats, thinned.

    By transistors as Yosys counts them; what is clearly worse by our own estimate of them is not synthesised.
    """
    tables = {structure: definition(structure.component) for structure in candidates()}
    errors = {structure: [noise(table, d) for d in DEVIATIONS] for structure, table in tables.items()}
    likely: dict[Structure, None] = {}
    for k in range(len(DEVIATIONS)):
        least = float("inf")
        for one in sorted(tables, key=lambda s: (_size(s), errors[s][k], s)):
            if errors[one][k] < 1.05 * least:
                likely[one] = None
            least = min(least, errors[one][k])
    found = extract_many([Circuit(s.component, verilog(s.component)) for s in likely])
    transistors = {s: extracted.transistors for s, extracted in zip(likely, found, strict=True)}
    chosen: set[Structure] = set()
    for k in range(len(DEVIATIONS)):
        last = float("inf")
        for one in sorted(likely, key=lambda s: (transistors[s], errors[s][k], s)):
            if errors[one][k] <= SMALLEST_STEP * last:
                chosen.add(one)
                last = errors[one][k]
    return [s.component for s in sorted(chosen, key=lambda s: (-transistors[s], s))]


def _size(structure: Structure) -> float:
    """About how many transistors a structure has."""
    columns = range(_COLUMNS)
    terms = sum(len(structure.products(group, column)) for group in range(structure.groups) for column in columns)
    added = sum(bool(structure.products(group, column)) for group in range(1, structure.groups) for column in columns
                if column >= structure.adds)  # fmt: skip
    return 5.3 * terms + 26 * added
