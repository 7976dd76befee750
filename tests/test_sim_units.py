"""The units in Verilator, against the integer reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from amaranth.lib import wiring

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
# One multiplier as it should be, one that is wrong in every way: it does not commute, and 0 * 0 is not 0.
MULTIPLIERS = f"""
module exact {PORTS}; assign O = A * B; endmodule
module wild {PORTS}; assign O = (A * B) ^ {{B, A}} ^ 16'h5a5a; endmodule
"""
KINDS = (MultiplierKind("exact", "exact"), MultiplierKind("wild", "wild"))


def verilog(component: wiring.Component, name: str, folder: Path) -> Path:
    file = folder / f"{name}.v"
    file.write_text(to_verilog(component, name))
    return file


def multipliers(folder: Path) -> tuple[Path, str]:
    """The Verilog of MULTIPLIERS, and the file of their tables (2, 256, 256)."""
    a, b = np.mgrid[:256, :256]
    np.save(folder / "tables.npy", np.stack([a * b, (a * b) ^ (b << 8 | a) ^ 0x5A5A]).astype(np.uint16))
    (folder / "multipliers.v").write_text(MULTIPLIERS)
    return folder / "multipliers.v", str(folder / "tables.npy")


def test_pe(tmp_path: Path) -> None:
    source, tables = multipliers(tmp_path)
    sources = [source, verilog(PE(KINDS), "pe", tmp_path)]
    told = simulate(sources, "pe", "sim.bench_pe", {"tables": tables, "pairs": 250}, SEED, tmp_path)
    assert told["checked"] > 4000
    assert told["negative"] > 500
    assert told["idle"] > 100


@pytest.mark.parametrize(("rows", "columns", "affine"), [(4, 8, False), (8, 4, True)])
def test_array(tmp_path: Path, rows: int, columns: int, affine: bool) -> None:
    source, tables = multipliers(tmp_path)
    parameters = Parameters(KINDS, rows, columns, affine)
    sources = [source, verilog(PE(KINDS), "pe", tmp_path), verilog(Array(parameters), "array", tmp_path)]
    inputs = {"tables": tables, "rows": rows, "columns": columns, "affine": affine, "jobs": 40, "words": 20}
    told = simulate(sources, "array", "sim.bench_array", inputs, SEED, tmp_path, isolate_modules=["exact", "wild"])
    assert told["sums"] == 800 * columns
    assert told["greatest"] > 60_000 * rows  # near the width's limit


def test_requantizer(tmp_path: Path) -> None:
    sources = [verilog(Requantizer(), "requantizer", tmp_path)]
    told = simulate(sources, "requantizer", "sim.bench_requantizer", {"jobs": 60}, SEED, tmp_path)
    assert told["results"] > 3000
    assert told["saturated"] > 300


@pytest.mark.parametrize(("rows", "columns", "pages"), [(4, 4, 4), (16, 8, 3)])
def test_squash(tmp_path: Path, rows: int, columns: int, pages: int) -> None:
    parameters = Parameters(KINDS, rows, columns, activation_bytes=2048, tables=pages)
    sources = [verilog(Harness(SquashUnit(parameters), parameters), "harness", tmp_path)]
    inputs = {"lanes": parameters.lanes, "size": 2048, "pages": pages, "jobs": 25}
    told = simulate(sources, "harness", "sim.bench_squash", inputs, SEED, tmp_path)
    assert told["ties"] > 3


@pytest.mark.parametrize(("rows", "columns", "pages"), [(4, 4, 4), (8, 16, 1)])
def test_softmax(tmp_path: Path, rows: int, columns: int, pages: int) -> None:
    parameters = Parameters(KINDS, rows, columns, activation_bytes=4096, tables=pages)
    sources = [verilog(Harness(SoftmaxUnit(parameters), parameters), "harness", tmp_path)]
    inputs = {"lanes": parameters.lanes, "size": 4096, "pages": pages, "jobs": 30}
    told = simulate(sources, "harness", "sim.bench_softmax", inputs, SEED, tmp_path)
    assert told["saturated"] > 30
