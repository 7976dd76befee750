"""The units in Verilator, against the integer reference."""

from __future__ import annotations

from pathlib import Path

from amaranth.lib import wiring

from hw.requantizer import Requantizer
from hw.verilog import to_verilog
from sim.runner import simulate

SEED = 20


def verilog(component: wiring.Component, name: str, folder: Path) -> Path:
    file = folder / f"{name}.v"
    file.write_text(to_verilog(component, name))
    return file


def test_requantizer(tmp_path: Path) -> None:
    sources = [verilog(Requantizer(), "requantizer", tmp_path)]
    told = simulate(sources, "requantizer", "sim.bench_requantizer", {"jobs": 60}, SEED, tmp_path)
    assert told["results"] > 3000
    assert told["saturated"] > 300
