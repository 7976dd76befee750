"""The units in Verilator, against the integer reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from amaranth.lib import wiring

from hw.add import AddUnit
from hw.array import Array
from hw.parameters import MultiplierKind, Parameters
from hw.pe import PE
from hw.requantizer import Requantizer
from hw.softmax import SoftmaxUnit
from hw.squash import SquashUnit
from hw.verilog import to_verilog
from sim.harness import Harness
from sim.runner import simulate

SEED = 20
PORTS = "(input [7:0] A, input [7:0] B, output [15:0] O)"
# A multiplier as it should be and one that is wrong in every way: it does not commute, and 0 * 0 is not 0. Two of each:
# of unsigned operands, and of operands in two's complement.
MULTIPLIERS = f"""
module exact {PORTS}; assign O = A * B; endmodule
module wild {PORTS}; assign O = (A * B) ^ {{B, A}} ^ 16'h5a5a; endmodule
module signed_exact {PORTS}; assign O = $signed(A) * $signed(B); endmodule
module signed_wild {PORTS}; wire [15:0] p = $signed(A) * $signed(B); assign O = p ^ {{A, B}} ^ 16'ha5a5; endmodule
"""
SIGNED = (False, True, False, True)
KINDS = tuple(MultiplierKind(name, name, signed=signed)
              for name, signed in zip(("exact", "signed_exact", "wild", "signed_wild"), SIGNED, strict=True))


def verilog(component: wiring.Component, name: str, folder: Path) -> Path:
    file = folder / f"{name}.v"
    file.write_text(to_verilog(component, name))
    return file


def multipliers(folder: Path) -> tuple[Path, str]:
    """The Verilog of MULTIPLIERS, and the file of the tables of KINDS (4, 256, 256)."""
    a, b = np.mgrid[:256, :256]
    sa, sb = a - 256 * (a > 127), b - 256 * (b > 127)
    tables = [a * b, sa * sb, (a * b) ^ (b << 8 | a) ^ 0x5A5A, (sa * sb) ^ (a << 8 | b) ^ 0xA5A5]
    np.save(folder / "tables.npy", np.stack(tables).astype(np.uint16))
    (folder / "multipliers.v").write_text(MULTIPLIERS)
    return folder / "multipliers.v", str(folder / "tables.npy")


def test_pe(tmp_path: Path) -> None:
    source, tables = multipliers(tmp_path)
    sources = [source, verilog(PE(KINDS), "pe", tmp_path)]
    told = simulate(sources, "pe", "sim.bench_pe", {"tables": tables, "signed": SIGNED, "pairs": 250}, SEED,
                    tmp_path)  # fmt: skip
    assert told["checked"] > 5000
    assert told["negative"] > 500
    assert told["idle"] > 100


@pytest.mark.parametrize(("rows", "columns", "affine"), [(4, 8, False), (8, 4, True)])
def test_array(tmp_path: Path, rows: int, columns: int, affine: bool) -> None:
    source, tables = multipliers(tmp_path)
    parameters = Parameters(KINDS, rows, columns, affine)
    sources = [source, verilog(PE(KINDS), "pe", tmp_path), verilog(Array(parameters), "array", tmp_path)]
    inputs = {"tables": tables, "signed": SIGNED, "rows": rows, "columns": columns, "affine": affine, "jobs": 80,
              "words": 20}  # fmt: skip
    isolated = [kind.module for kind in KINDS]
    told = simulate(sources, "array", "sim.bench_array", inputs, SEED, tmp_path, isolate_modules=isolated)
    assert told["sums"] == 1600 * columns
    assert told["greatest"] > 60_000 * rows  # near the width's limit


def test_requantizer(tmp_path: Path) -> None:
    sources = [verilog(Requantizer(), "requantizer", tmp_path)]
    told = simulate(sources, "requantizer", "sim.bench_requantizer", {"jobs": 60}, SEED, tmp_path)
    assert told["results"] > 3000
    assert told["saturated"] > 300


@pytest.mark.parametrize(("rows", "columns", "pages"), [(4, 4, 4), (16, 8, 3)])
def test_squash(tmp_path: Path, rows: int, columns: int, pages: int) -> None:
    parameters = Parameters(KINDS, rows, columns, activation_bytes=2048, squash_tables=pages)
    sources = [verilog(Harness(SquashUnit(parameters), parameters), "harness", tmp_path)]
    inputs = {"lanes": parameters.lanes, "size": 2048, "pages": pages, "jobs": 25}
    told = simulate(sources, "harness", "sim.bench_squash", inputs, SEED, tmp_path)
    assert told["ties"] > 3


@pytest.mark.parametrize(("rows", "columns", "pages"), [(4, 4, 4), (8, 16, 1)])
def test_softmax(tmp_path: Path, rows: int, columns: int, pages: int) -> None:
    parameters = Parameters(KINDS, rows, columns, activation_bytes=4096, exp_tables=pages)
    sources = [verilog(Harness(SoftmaxUnit(parameters), parameters), "harness", tmp_path)]
    inputs = {"lanes": parameters.lanes, "size": 4096, "pages": pages, "jobs": 30}
    told = simulate(sources, "harness", "sim.bench_softmax", inputs, SEED, tmp_path)
    assert told["saturated"] > 30


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (8, 16)])
def test_add(tmp_path: Path, rows: int, columns: int) -> None:
    parameters = Parameters(KINDS, rows, columns, activation_bytes=1024)
    sources = [verilog(Harness(AddUnit(parameters), parameters), "harness", tmp_path)]
    inputs = {"lanes": parameters.lanes, "size": 1024, "jobs": 120}
    told = simulate(sources, "harness", "sim.bench_add", inputs, SEED, tmp_path)
    assert told["ties"] > 100
    assert told["saturated"] > 500
