"""What K kinds of multipliers in one PE cost: area, and energy of a product by the kind that is selected.

    python benchmarks/pe_kinds.py [--kinds mul8u_exact mul8u_e11 mul8u_s03 mul8u_s05] [--liberty FILE]

K = 1, 2, ... are the first K of `--kinds`. The PE's logic (operands, isolation, multipliers, selection, sign; not the
register, which is the same for all K) goes through the flow of `redcane library characterize`: Yosys to the cells of
the Liberty file, OpenSTA for the energy of each cell's toggle, toggles counted over 16,384 pairs of uniform bytes (an
unsigned activation, a signed weight). Mapped netlists are checked against the tables. Results are kept beside this file
as pe_kinds.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from flows.synthesize import find_liberty
from hw.parameters import MultiplierKind
from hw.pe import PE
from hw.verilog import to_verilog
from model.errors import RedcaneError
from model.files import read_bounded
from model.multipliers import characterize as flow
from model.multipliers.component import Multiplier
from model.multipliers.gates import Ports, product_table
from model.multipliers.library import load_library
from model.opensta import CLOCK_NS, analyse, find_opensta
from model.yosys import run_yosys

_WRAPPER = """
module pe_logic(input [7:0] A, B, input [{msb}:0] KIND, input A_SIGNED, B_SIGNED, ALIGN, VALID, output [15:0] O);
  wire [16:0] product;
  assign O = product[15:0];
  pe pe(.clk(1'b0), .rst(1'b0), .a(A), .b(B), .a_signed(A_SIGNED), .b_signed(B_SIGNED), .align(ALIGN), .valid(VALID),
        .kind(KIND), .product(product));
endmodule
"""
_REGISTER = r"""
module \$dff (CLK, D, Q);
  parameter WIDTH = 1;
  parameter CLK_POLARITY = 1;
  input CLK;
  input [WIDTH-1:0] D;
  output [WIDTH-1:0] Q;
  assign Q = D;
endmodule
"""
_OPEN = """
read_verilog pe.v
hierarchy -check -top pe_logic
proc -norom
flatten -noscopeinfo
setattr -unset init w:*
techmap -map register.v
opt
write_verilog opened.v
"""
_WEIGHT = {"A_SIGNED": 0, "B_SIGNED": 1, "ALIGN": 0, "VALID": 1}


def logic_of(components: list[Multiplier]) -> Any:
    """The PE with these multipliers as combinational Verilog, its register opened."""
    kinds = tuple(MultiplierKind(c.name, c.module, *c.ports) for c in components)
    pe = PE(kinds)
    wrapper = _WRAPPER.format(msb=len(pe.kind) - 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pe.v").write_text("\n".join([to_verilog(pe, "pe"), *(c.verilog for c in components), wrapper]))
        (folder / "register.v").write_text(_REGISTER)
        run_yosys(_OPEN, folder)
        return SimpleNamespace(module="pe_logic", verilog=read_bounded(folder / "opened.v", 16 << 20).decode())


def with_inputs(flat: Any, nets: dict[int, str]) -> Any:
    """A flat netlist with some of its inputs held."""
    cells = {
        name: {
            **cell,
            "connections": {pin: [nets.get(n, n) for n in bits] for pin, bits in cell["connections"].items()},
        }
        for name, cell in flat["cells"].items()
    }
    return {**flat, "cells": cells}


def measure(components: list[Multiplier], liberty: bytes, cells: Any, rule: str | None, opensta: str | None) -> Any:
    """Area of the PE's logic, and its energy (pJ) with each of its multipliers selected."""
    mapped, area, verilog = flow._map(logic_of(components), liberty, rule)
    flat, outputs = flow.flatten(mapped, cells, Ports("A", "B", "O"))
    found = analyse(opensta, verilog, liberty) if opensta else None
    nets = [net for driven in outputs.values() for net in driven]
    energies = {}
    for kind, component in enumerate(components):
        inputs = {**_WEIGHT, "KIND": kind}
        held = {
            net: str(value >> bit & 1)
            for name, value in inputs.items()
            for bit, net in enumerate(mapped["ports"][name]["bits"])
        }
        here = with_inputs(flat, held)
        weights = np.arange(256)
        wanted = component.table.astype(np.int64)[:, weights & 127] * np.where(weights >> 7, -1, 1)
        if not np.array_equal(product_table(here), wanted.astype(np.uint16)):
            raise RedcaneError(f"the mapped PE of {len(components)} kinds is wrong for {component.name}")
        if found:
            rates = flow.toggle_rates(here, nets, flow.operand_sequence())
            dynamic = sum(
                found.energy_pj[name] * sum(rates[net] for net in driven) / len(driven)
                for name, driven in outputs.items()
            )
            energies[component.name] = dynamic + found.leakage_w * CLOCK_NS * 1e3
    return {"kinds": len(components), "area": area, "cells": len(outputs),
            "delay_ns": found.delay_ns if found else None, "energy_pj": energies}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=["mul8u_exact", "mul8u_e11", "mul8u_s03", "mul8u_s05"])
    parser.add_argument("--library", default="embedded")
    parser.add_argument("--liberty")
    chosen = parser.parse_args()
    liberty = find_liberty(chosen.liberty)
    if liberty is None:
        raise SystemExit("a Liberty file is needed: --liberty FILE, or Debian's package qflow-tech-osu018")
    library = load_library(chosen.library)
    components = [library.get(name) for name in chosen.kinds]
    content = liberty.read_bytes()
    cells, rule = flow._read_cells(content, liberty)
    rows = []
    for count in range(1, len(components) + 1):
        row = measure(components[:count], content, cells, rule, find_opensta())
        rows.append(row)
        energies = "  ".join(f"{name} {energy:.3f}" for name, energy in row["energy_pj"].items())
        print(
            f"K = {count}: {row['area']:8.0f} um2, {row['cells']:5} cells, {row['delay_ns']} ns; pJ: {energies}",
            flush=True,
        )
    content_json = json.dumps({"liberty": liberty.name, "rows": rows}, indent=1)
    Path(__file__).with_suffix(".json").write_text(content_json + "\n")


if __name__ == "__main__":
    main()
