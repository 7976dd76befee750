"""A multiplier as Cartesian genetic programming sees it: nodes of two inputs, each reading only what comes before it.

Signals are numbered: 0-7 are the bits of a, 8-15 those of b (least significant first), 16 is constant 0, 17 constant
1, and 18 + i is node i. Nodes on which no product bit depends are inactive; they cost nothing and let the search drift.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.errors import RedcaneError
from model.yosys import run_yosys

FIRST = 18
"""The signal of the first node."""
ZERO, ONE = 16, 17
BITS = 16
MOST_NODES = 4000


class Function(NamedTuple):
    """What a node can compute: its truth table (bit 2x + y), its Verilog, what it costs by either measure."""

    name: str
    truth: int
    verilog: str
    transistors: int
    area: int


# The transistors are those that netlist.TRANSISTOR_FLOW counts for a circuit of this one gate. The areas are those of
# the standard cell library osu018, in units of half an inverter's. Synthesis also finds full adders, which are smaller
# than their gates; counting them so here ended in larger circuits, since the search would not take one apart.
FUNCTIONS = (
    Function("not", 0b0011, "~{x}", 2, 2),
    Function("and", 0b1000, "{x} & {y}", 6, 4),
    Function("nand", 0b0111, "~({x} & {y})", 4, 3),
    Function("or", 0b1110, "{x} | {y}", 6, 4),
    Function("nor", 0b0001, "~({x} | {y})", 4, 3),
    Function("xor", 0b0110, "{x} ^ {y}", 12, 7),
    Function("xnor", 0b1001, "~({x} ^ {y})", 12, 7),
    Function("andnot", 0b0100, "{x} & ~{y}", 6, 5),
    Function("ornot", 0b1101, "{x} | ~{y}", 6, 5),
)
Measure = Literal["transistors", "area"]
CODES = {function.name: code for code, function in enumerate(FUNCTIONS)}
_CELLS = {f"$_{name.upper()}_": code for name, code in CODES.items()}

Genes = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Chromosome:
    """A circuit of N nodes; raises RedcaneError where the genes are not one."""

    nodes: Genes
    """int32 [N, 3]: code of the function (index into FUNCTIONS), signal x, signal y."""
    outputs: Genes
    """int32 [16]: the signal of every product bit."""

    def __post_init__(self) -> None:
        nodes, outputs = self.nodes, self.outputs
        if nodes.ndim != 2 or nodes.shape[1:] != (3,) or not 1 <= len(nodes) <= MOST_NODES or outputs.shape != (BITS,):
            raise RedcaneError(f"a chromosome has 1 to {MOST_NODES} nodes of 3 genes and 16 outputs, but this one has "
                               f"the shapes {list(nodes.shape)} and {list(outputs.shape)}")
        before = FIRST + np.arange(len(nodes))[:, None]
        if not (((nodes >= 0) & (nodes < np.hstack([np.full_like(before, len(FUNCTIONS)), before, before]))).all()
                and ((outputs >= 0) & (outputs < FIRST + len(nodes))).all()):
            raise RedcaneError("a chromosome's genes are out of range: a node reads only signals before its own")

    @property
    def active(self) -> NDArray[np.bool_]:
        """Which nodes some product bit depends on, bool [N]."""
        needed = np.zeros(FIRST + len(self.nodes), bool)
        needed[self.outputs] = True
        for i in range(len(self.nodes) - 1, -1, -1):
            if needed[FIRST + i]:
                code, x, y = self.nodes[i]
                needed[x] = True
                needed[y] |= FUNCTIONS[code].name != "not"
        return needed[FIRST:]

    def cost(self, measure: Measure = "transistors") -> int:
        """The cost of the active nodes, each by itself: what the search minimises. Synthesis makes less of it."""
        return sum(getattr(FUNCTIONS[code], measure) for code in self.nodes[self.active, 0])

    def table(self) -> NDArray[np.uint16]:
        """The products, uint16 [256, 256] as [a, b], computed plainly with NumPy."""
        pairs = np.arange(1 << 16)
        signals: list[NDArray[np.bool_]] = [(pairs >> 8 + k & 1).astype(bool) for k in range(8)]
        signals += [(pairs >> k & 1).astype(bool) for k in range(8)]
        signals += [np.zeros(1 << 16, bool), np.ones(1 << 16, bool)]
        for code, x, y in self.nodes:
            signals.append(_apply(FUNCTIONS[code].truth, signals[x], signals[y]))
        product = sum(signals[s].astype(np.uint16) << k for k, s in enumerate(self.outputs))
        return np.asarray(product, np.uint16).reshape(256, 256)

    def verilog(self, module: str, comments: Iterable[str] = ()) -> str:
        """A Verilog module with ports A, B and O: one `assign` for every active node, under the comment lines."""
        names = {**{k: f"A[{k}]" for k in range(8)}, **{8 + k: f"B[{k}]" for k in range(8)}, ZERO: "1'b0", ONE: "1'b1"}
        lines: list[str] = []
        for i in np.flatnonzero(self.active):
            code, x, y = (int(gene) for gene in self.nodes[i])
            names[FIRST + int(i)] = f"n{len(lines)}"
            lines.append(f"  wire n{len(lines)} = {FUNCTIONS[code].verilog.format(x=names[x], y=names.get(y))};")
        lines += [f"  assign O[{k}] = {names[s]};" for k, s in enumerate(self.outputs)]
        head = f"module {module}(input [7:0] A, input [7:0] B, output [15:0] O);"
        return "\n".join([*(f"// {line}" for line in comments), head, *lines, "endmodule"]) + "\n"


def _apply(truth: int, x: NDArray[np.bool_], y: NDArray[np.bool_]) -> NDArray[np.bool_]:
    values = np.array([truth >> k & 1 for k in range(4)], bool)
    return values[2 * x + y]


class _Builder:
    """Appends nodes and hands out their signals."""

    def __init__(self) -> None:
        self.nodes: list[tuple[int, int, int]] = []

    def add(self, name: str, x: int, y: int) -> int:
        self.nodes.append((CODES[name], x, y))
        return FIRST + len(self.nodes) - 1

    def chromosome(self, outputs: Iterable[int]) -> Chromosome:
        return Chromosome(np.array(self.nodes, np.int32), np.array(list(outputs), np.int32))


def array_multiplier() -> Chromosome:
    """The exact array multiplier of 320 gates: 64 ANDs, 8 half adders and 48 full adders, row by row."""
    build = _Builder()

    def half(x: int, y: int) -> tuple[int, int]:
        return build.add("xor", x, y), build.add("and", x, y)

    row = [build.add("and", i, 8) for i in range(8)]
    outputs = [row[0]]
    above = [*row[1:], ZERO]
    for j in range(1, 8):
        carry = ZERO
        sums = []
        for i in range(8):
            product = build.add("and", i, 8 + j)
            terms = [signal for signal in (product, above[i], carry) if signal != ZERO]
            total, carry = half(terms[0], terms[1])
            if len(terms) == 3:
                total, second = half(total, terms[2])
                carry = build.add("or", carry, second)
            sums.append(total)
        outputs.append(sums[0])
        above = [*sums[1:], carry]
    return build.chromosome([*outputs, *above])


def from_verilog(verilog: str, module: str, a: str, b: str, out: str) -> Chromosome:
    """The chromosome of a multiplier that the library has accepted: its module and the names of its ports.

    Yosys brings it to gates of two inputs first. Raises RedcaneError where that fails or leaves too many gates.
    """
    gates = ",".join(name.upper() for name in CODES if name != "not")
    with tempfile.TemporaryDirectory(prefix="redcane-chromosome-") as name:
        folder = Path(name)
        (folder / "in.v").write_text(verilog, encoding="utf-8")
        run_yosys(f"read_verilog in.v; synth -flatten -top {module}; abc -g {gates}; opt_clean -purge; "
                  f"write_json out.json", folder)
        netlist = json.loads((folder / "out.json").read_bytes())["modules"][module]
    return _from_netlist(netlist, a, b, out)


def _from_netlist(netlist: dict[str, Any], a: str, b: str, out: str) -> Chromosome:
    signals: dict[int | str, int] = {"0": ZERO, "1": ONE, "x": ZERO}
    for port, first in ((a, 0), (b, 8)):
        signals.update((net, first + k) for k, net in enumerate(netlist["ports"][port]["bits"]))
    waiting = []
    for cell in netlist["cells"].values():
        if cell["type"] not in _CELLS:
            raise RedcaneError(f"`{cell['type'][:60]}` is not a gate of two inputs: this circuit cannot be a start")
        pins = {pin: nets[0] for pin, nets in cell["connections"].items()}
        waiting.append((_CELLS[cell["type"]], pins["A"], pins.get("B", pins["A"]), pins["Y"]))
    build = _Builder()
    while waiting:
        ready = [gate for gate in waiting if gate[1] in signals and gate[2] in signals]
        if not ready or len(waiting) > MOST_NODES:
            raise RedcaneError(f"the circuit holds a loop, or more than {MOST_NODES} gates: it cannot be a start")
        for code, x, y, driven in ready:
            signals[driven] = build.add(FUNCTIONS[code].name, signals[x], signals[y])
        waiting = [gate for gate in waiting if gate[3] not in signals]
    if not build.nodes:
        build.add("and", ZERO, ZERO)
    return build.chromosome(signals[net] for net in netlist["ports"][out]["bits"])
