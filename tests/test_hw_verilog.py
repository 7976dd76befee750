"""The units' Verilog through Verilator's lint: no latch, no loop, nothing undriven, driven twice or left open."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from amaranth.lib import wiring

from hw.accelerator import Accelerator
from hw.add import AddUnit
from hw.array import Array
from hw.memory import VectorMemory
from hw.parameters import MultiplierKind, Parameters
from hw.pe import PE
from hw.requantizer import Requantizer
from hw.softmax import SoftmaxUnit
from hw.squash import SquashUnit
from hw.system import System
from hw.verilog import to_verilog
from sim.runner import _verilator
from tests.core_standin import CoreStandin

# What remains is how Yosys writes Verilog.
WAIVED = {
    "DECLFILENAME": "several modules a file",
    "UNUSEDSIGNAL": "every wire of the design is kept, also what no one reads, and whole operands of sliced sums",
    "WIDTHEXPAND": "operands are extended by Verilog's own rules, which Amaranth's follow",
    "WIDTHTRUNC": "a comparison with zero is written as the logical not of a vector",
    "PROCASSINIT": "registers have initial values",
    "CASEINCOMPLETE": "state machines: a default stands before the case",
    "CMPCONST": "the last bank of a vector memory is never behind the offset",
}
KINDS = (MultiplierKind("exact", "exact"), MultiplierKind("other", "other"))
PARAMETERS = Parameters(KINDS, 8, 4, affine=True)
UNITS = {
    "pe": PE(KINDS),
    "array": Array(PARAMETERS),
    "requantizer": Requantizer(),
    "memory": VectorMemory(8, 256),
    "memory_with_jumps": VectorMemory(8, 256, 2),
    "squash": SquashUnit(PARAMETERS),
    "softmax": SoftmaxUnit(PARAMETERS),
    "add": AddUnit(PARAMETERS),
    "redcane": Accelerator(PARAMETERS),
    "redcane_of_a_deepcaps": Accelerator(replace(PARAMETERS, padding=True, shared_kernels=True, adder=True)),
    "redcane_of_packed_sums": Accelerator(replace(PARAMETERS, padding=True, row_ends=2)),
    "system": System(CoreStandin(64, 128), 128),
    "narrow_system": System(CoreStandin(32, 32), 32, burst=2, outstanding=2),
}


@pytest.mark.parametrize("name", UNITS)
def test_lint(name: str, tmp_path: Path) -> None:
    def write(component: wiring.Component, module: str) -> str:
        (tmp_path / f"{module}.v").write_text(to_verilog(component, module))
        return f"{module}.v"

    sources = [write(UNITS[name], name)]
    if name == "array" or name.startswith("redcane"):
        sources.append(write(PE(KINDS), "pe"))
    ports = "(input [7:0] A, input [7:0] B, output [15:0] O); assign O = A * B; endmodule\n"
    (tmp_path / "multipliers.v").write_text(f"module exact {ports}module other {ports}")
    if name in ("array", "pe") or name.startswith("redcane"):
        sources.append("multipliers.v")
    home = _verilator()
    command = ["perl", str(home / "bin" / "verilator"), "--lint-only", "-Wall", "--top-module", name]
    command += [f"-Wno-{warning}" for warning in WAIVED]
    told = subprocess.run(
        [*command, *sources], cwd=tmp_path, env=os.environ | {"VERILATOR_ROOT": str(home)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (told.returncode, told.stderr) == (0, "")
