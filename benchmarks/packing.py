"""What packed sums cost in hardware: the units that know of them, with and without, mapped to an FPGA by Yosys.

    python benchmarks/packing.py [--rows 16] [--row-ends 2] [--family xilinx]

The activation memory is of 128 KiB. The matmul engine has `--rows` rows and 4 columns, as its addresses and bounds
depend on the rows alone, and PEs without a multiplier; it is mapped with and without padding, since a lane behind the
end of a kernel's row has bounds of its own. Results are kept beside this file as packing.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from amaranth.lib import wiring

from flows.fpga import FAMILIES, estimate
from flows.tables import table
from hw.matmul import MatmulEngine
from hw.memory import VectorMemory
from hw.parameters import MultiplierKind, Parameters
from hw.verilog import to_verilog

COLUMNS = 4
BYTES = 128 * 1024
_PE = """
module pe(input clk, rst, input [7:0] a, b, input a_signed, b_signed, align, valid, input kind, output [16:0] product);
  assign product = {a & {8{valid}}, b, kind ^ align ^ a_signed ^ b_signed};
endmodule
"""


def mapped(unit: wiring.Component, family: Any) -> dict[str, int]:
    """What a unit takes of an FPGA."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "unit.v").write_text(to_verilog(unit, "unit"))
        (folder / "pe.v").write_text(_PE)
        found = estimate(folder, family, "unit", "unit")
    return {what: found[what] for what in ("luts", "flip_flops", "dsps", "block_rams")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--row-ends", type=int, default=2)
    parser.add_argument("--family", choices=sorted(FAMILIES), default="xilinx")
    chosen = parser.parse_args()
    parameters = Parameters((MultiplierKind("m", "m"),), chosen.rows, COLUMNS, pixels=1024)
    rows: dict[str, dict[str, dict[str, int]]] = {}
    for ends in (0, chosen.row_ends):
        units = {"activation memory": VectorMemory(parameters.lanes, BYTES, ends)} | {
            f"matmul engine{', padding' * padding}": MatmulEngine(replace(parameters, row_ends=ends, padding=padding))
            for padding in (False, True)
        }
        for name, unit in units.items():
            rows.setdefault(name, {})["packed" if ends else "plain"] = mapped(unit, chosen.family)
    cells = [[name, *(f"{found[way][what]:,}" for what in ("luts", "flip_flops") for way in ("plain", "packed"))]
             for name, found in rows.items()]  # fmt: skip
    head = ["unit", "LUTs without", "with", "flip-flops without", "with"]
    title = FAMILIES[chosen.family].title
    print(f"{title}; {chosen.rows} rows, {chosen.row_ends} ends of a kernel's rows in a vector\n\n{table(head, cells)}")
    told = {"family": title, "rows": chosen.rows, "row_ends": chosen.row_ends, "units": rows}
    Path(__file__).with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
