"""The array: rows x columns PEs and one adder tree a column."""

from __future__ import annotations

from collections.abc import Sequence

from amaranth import ClockSignal, Module, Mux, ResetSignal, Signal, signed
from amaranth.hdl import Instance, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.parameters import Parameters


def tree(terms: Sequence[Value]) -> Value:
    """Their sum, as a balanced tree of adders."""
    while len(terms) > 1:
        terms = [a + b for a, b in zip(terms[::2], terms[1::2], strict=False)] + list(terms[len(terms) & ~1 :])
    return terms[0]


class Array(wiring.Component):
    """Sums over the rows of the products a[row] * b[row][column]. Latency 2: a register after the products, one after
    the sums; a new operand pair every cycle, with nothing to stall it.

    `a` is broadcast to all columns; `b[row][column]` is byte `row * columns + column` of the word. A row whose
    `row_valid` is 0 contributes nothing to any sum. `za` and `zb` must hold still while sums are in flight; the other
    inputs belong to their cycle.

    With `parameters.affine` the exact corrections of the affine format (docs/numerics.md) are part of the sum:

        sums[c] = sum_r T[a_r, b_rc] - zb * sum_r a_r + za * (n * zb - sum_r b_rc)      over the n valid rows r

    They vanish for za = zb = 0, which is how a job in another format turns them off. Without `parameters.affine`, `za`
    and `zb` are not read and the logic is not there.

    With `parameters.split` there is a second output: while the input `split` is high, `sums` are those of the lower
    half of the rows and `upper` those of the upper half, each with its corrections. `split` must hold still like `za`.

    The PEs are `Instance("pe")`: the netlist needs the module `pe`, made of `hw.pe.PE(parameters.kinds)`.

    Every sum fits `width` bits: |T| < 2**16 and the corrections of a term stay within -65025 ... 65025.
    """

    a: data.View
    b: data.View
    row_valid: Signal
    a_signed: Signal
    b_signed: Signal
    align: Signal
    kind: Signal
    za: Signal
    zb: Signal
    split: Signal
    sums: data.View
    upper: data.View

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        rows, columns = parameters.rows, parameters.columns
        self.width = (18 if parameters.affine else 17) + ceil_log2(rows)
        super().__init__({
            "a": In(data.ArrayLayout(8, rows)),
            "b": In(data.ArrayLayout(data.ArrayLayout(8, columns), rows)),
            "row_valid": In(rows), "a_signed": In(1), "b_signed": In(1), "align": In(1),
            "kind": In(range(max(2, len(parameters.kinds)))),
            "za": In(8), "zb": In(8), "split": In(1),
            "sums": Out(data.ArrayLayout(signed(self.width), columns)),
            "upper": Out(data.ArrayLayout(signed(self.width), columns)),
        })  # fmt: skip

    def elaborate(self, platform: object) -> Module:
        m = Module()
        p = self.parameters
        columns = range(p.columns)
        parts = [range(p.rows // 2), range(p.rows // 2, p.rows)] if p.split else [range(p.rows)]
        products = [[Signal(signed(17), name=f"product_{r}_{c}") for c in columns] for r in range(p.rows)]
        for r in range(p.rows):
            for c in columns:
                m.submodules[f"pe_{r}_{c}"] = Instance(
                    "pe", i_clk=ClockSignal(), i_rst=ResetSignal(),
                    i_a=self.a[r], i_b=self.b[r][c], i_valid=self.row_valid[r], i_kind=self.kind, i_align=self.align,
                    i_a_signed=self.a_signed, i_b_signed=self.b_signed, o_product=products[r][c],
                )  # fmt: skip

        part_sums: list[list[Value]] = []  # by part and column
        for part, rows in enumerate(parts):
            sums: list[Value] = [tree([products[r][c] for r in rows]) for c in columns]
            if p.affine:
                a_sum = self._valid_sum(m, f"a_sum_{part}", rows, [self.a[r] for r in rows])
                count = Signal(range(len(rows) + 1), name=f"count_{part}")
                m.d.sync += count.eq(tree([self.row_valid[r] for r in rows]))
                for c in columns:
                    b_sum = self._valid_sum(m, f"b_sum_{part}_{c}", rows, [self.b[r][c] for r in rows])
                    sums[c] = sums[c] - self.zb * a_sum + self.za * (count * self.zb - b_sum)
            part_sums.append(sums)
        for c in columns:
            if p.split:
                lower, upper = part_sums[0][c], part_sums[1][c]
                m.d.sync += [self.sums[c].eq(lower + Mux(self.split, 0, upper)), self.upper[c].eq(upper)]
            else:
                m.d.sync += self.sums[c].eq(part_sums[0][c])
        return m

    def _valid_sum(self, m: Module, name: str, rows: range, values: Sequence[Value]) -> Signal:
        """The registered sum of one byte of each valid row."""
        total = Signal(ceil_log2(len(values) + 1) + 8, name=name)
        masked = [value & self.row_valid[r].replicate(8) for r, value in zip(rows, values, strict=True)]
        m.d.sync += total.eq(tree(masked))
        return total
