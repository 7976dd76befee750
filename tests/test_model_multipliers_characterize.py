"""Costs in a cell library: what is measured, what is checked, and what is said where a tool is missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flows import characterize_command
from flows.main import main
from flows.synthesize import DEBIAN_LIBERTY
from model.errors import RedcaneError
from model.multipliers import characterize as subject
from model.multipliers.characterize import (
    Characterisation,
    characterize,
    check,
    flatten,
    full_adder,
    operand_sequence,
    toggle_rates,
)
from model.multipliers.component import Cost, Multiplier
from model.multipliers.costs import load_measured
from model.multipliers.error_figures import EXACT as EXACT_TABLE
from model.multipliers.gates import Ports, product_table
from model.multipliers.library import Library, costs_path
from model.multipliers.netlist import cache_folder
from model.opensta import Report, find_opensta, read_report

STA = find_opensta()


def multiplier(name: str, product: str, table: np.ndarray, ports: Ports = Ports("A", "B", "O"),  # noqa: B008 (a tuple)
               cost: Cost = Cost(0)) -> Multiplier:  # noqa: B008 (frozen)
    verilog = f"module {name}(input [7:0] A, input [7:0] B, output [15:0] O); assign O = {product}; endmodule"
    return Multiplier(name, name, verilog, ports, table.astype(np.uint16), cost, "", "own")


EXACT = multiplier("exact", "A * B", EXACT_TABLE)
HIGH = multiplier("high", "(A[7:4] * B[7:4]) << 8", (np.arange(256) >> 4)[:, None] * (np.arange(256) >> 4) << 8)
ZERO = multiplier("zero", "16'b0", np.zeros((256, 256)))
SMALL = Library("small", {component.name: component for component in (EXACT, HIGH, ZERO)})

needs_liberty = pytest.mark.skipif(not DEBIAN_LIBERTY.is_file(), reason="needs Debian's package qflow-tech-osu018")
needs_opensta = pytest.mark.skipif(STA is None, reason="needs OpenSTA (Debian's package opensta)")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDCANE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("REDCANE_HOME", str(tmp_path / "home"))


def gate(kind: str, **pins: object) -> dict[str, object]:
    return {"type": kind, "connections": {pin: [net] for pin, net in pins.items()}}


def cell(inputs: str, outputs: dict[str, int], *gates: dict[str, object], area: str = "1") -> dict[str, object]:
    """A cell as Yosys reads it from Liberty; its inputs are nets 2, 3, ..."""
    ports = {pin: {"direction": "input", "bits": [2 + k]} for k, pin in enumerate(inputs)}
    ports |= {pin: {"direction": "output", "bits": [net]} for pin, net in outputs.items()}
    return {"attributes": {"area": area}, "ports": ports, "cells": {str(k): g for k, g in enumerate(gates)}}


CELLS = {
    "AND": cell("AB", {"Y": 4}, gate("$_AND_", A=2, B=3, Y=4)),
    "BUF": cell("A", {"Y": 2}),
    "HALF": cell("AB", {"C": 4, "S": 5}, gate("$_AND_", A=2, B=3, Y=4), gate("$_XOR_", A=2, B=3, Y=5)),
    "FLOP": cell("DC", {"Q": 4}, gate("$_DFF_P_", D=2, C=3, Q=4)),
}
A, B = list(range(2, 10)), list(range(10, 18))


def mapped(out: list[object], **instances: dict[str, object]) -> dict[str, object]:
    """A netlist of cells with operands on the nets A and B, product bits `out`, the rest 0."""
    ports = {"y": ("output", [*out, *["0"] * (16 - len(out))]), "b": ("input", B), "a": ("input", A)}
    return {"ports": {n: {"direction": d, "bits": bits} for n, (d, bits) in ports.items()}, "cells": instances}


PORTS = Ports("a", "b", "y")
HALF = mapped([21, 20], u=gate("HALF", A=A[0], B=B[0], C=20, S=21), v=gate("BUF", A=A[7], Y=22))


def test_flattening_keeps_what_the_cells_do() -> None:
    flat, outputs = flatten(HALF, CELLS, PORTS)
    a, b = np.indices((256, 256))
    assert np.array_equal(product_table(flat), (a & 1) + (b & 1))
    assert outputs == {"u": [20, 21], "v": [22]}


def test_an_unused_output_toggles_too() -> None:
    netlist = mapped([21], u=gate("HALF", A=A[0], B=B[0], S=21))
    flat, outputs = flatten(netlist, CELLS, PORTS)
    unused, used = outputs["u"]
    rates = toggle_rates(flat, [unused, used], np.array([0, 257, 0, 1]))  # (a, b) = (0,0) (1,1) (0,0) (0,1)
    assert rates == {unused: pytest.approx(2 / 3), used: pytest.approx(1 / 3)}


def test_toggles_counted_by_hand() -> None:
    flat, _ = flatten(HALF, CELLS, PORTS)
    pairs = [(0, 0), (1, 0), (1, 1), (129, 1), (0, 1)]
    # carry 0 0 1 1 0, sum 0 1 0 0 1, bit 7 of a 0 0 0 1 0
    rates = toggle_rates(flat, [20, 21, 22], np.array([256 * a + b for a, b in pairs]))
    assert rates == {20: 0.5, 21: 0.75, 22: 0.5}


def test_more_nets_than_fit_at_once() -> None:
    instances = {f"u{k}{n}": gate("AND", A=A[k], B=B[n], Y=100 + 8 * k + n) for k in range(8) for n in range(8)}
    flat, outputs = flatten(mapped([], **instances), CELLS, PORTS)
    sequence = operand_sequence()
    rates = toggle_rates(flat, [net for nets in outputs.values() for net in nets], sequence)
    bits = sequence[:, None] >> np.arange(16) & 1
    for k in range(8):
        for n in range(8):
            both = bits[:, 8 + k] & bits[:, n]
            assert rates[100 + 8 * k + n] == np.mean(both[1:] != both[:-1])
    assert np.mean(list(rates.values())) == pytest.approx(2 * 0.25 * 0.75, abs=0.01)


def test_energy_is_each_instances_own_times_its_toggles() -> None:
    component = _with_table((np.indices((256, 256)) & 1).sum(0))
    pairs = np.array([0, 256, 257, 129 * 256 + 1, 1])
    report = Report(1.5, {"u": 2.0, "v": 4.0}, leakage_w=1e-6)
    found = subject._measure(component, HALF, CELLS, 7.0, pairs, lambda: report)
    assert found.energy_pj == pytest.approx(2.0 * (0.5 + 0.75) / 2 + 4.0 * 0.5 + 1e-6 * 10e-9 * 1e12)
    assert (found.cells, found.area, found.delay_ns) == (2, 7.0, 1.5)
    with pytest.raises(RedcaneError, match="do not see the same cells"):
        subject._measure(component, HALF, CELLS, 7.0, pairs, lambda: Report(1.5, {"u": 2.0}, 0))


def test_a_wrong_netlist_is_caught() -> None:
    right = (np.indices((256, 256)) & 1).sum(0)
    flat, _ = flatten(HALF, CELLS, PORTS)
    check(flat, _with_table(right))
    right[7, 5] += 1
    with pytest.raises(RedcaneError, match=r"otherwise than its table for 1 operand pairs, .* 7 x 5"):
        check(flat, _with_table(right))


def test_an_unknown_cell_is_named() -> None:
    with pytest.raises(RedcaneError, match="`NAND9`, which is no cell"):
        flatten(mapped([20], u=gate("NAND9", A=2, Y=20)), CELLS, PORTS)


def test_a_full_adder_is_known_by_its_function() -> None:
    gates = (gate("$_XOR_", A=2, B=3, Y=10), gate("$_XOR_", A=10, B=4, Y=11), gate("$_AND_", A=2, B=3, Y=12),
             gate("$_AND_", A=10, B=4, Y=13), gate("$_OR_", A=12, B=13, Y=14))
    large = cell("PQR", {"S": 11, "C": 14}, *gates, area="9")
    small = cell("PQR", {"Z1": 14, "Z2": 11}, *gates, area="8")
    assert full_adder(CELLS) is None
    rule = full_adder({**CELLS, "LARGE": large, "SMALL": small})
    assert rule is not None
    assert "SMALL _TECHMAP_REPLACE_ (.P(A), .Q(B), .R(C), .Z1(X), .Z2(Y))" in rule


def test_operands() -> None:
    assert np.array_equal(operand_sequence(seed=3), operand_sequence(seed=3))
    assert not np.array_equal(operand_sequence(seed=3), operand_sequence(seed=4))
    histogram = np.zeros((256, 256))
    histogram[3, 7] = 5
    assert set(operand_sequence(histogram)) == {3 * 256 + 7}
    for wrong in (np.zeros((256, 256)), np.ones((2, 2)), np.full((256, 256), -1.0), np.full((256, 256), np.nan)):
        with pytest.raises(RedcaneError, match="operand histogram"):
            operand_sequence(wrong)


@pytest.mark.parametrize(("text", "reason"), [
    ("Error: script.tcl, 3 syntax error", "OpenSTA stopped: script.tcl, 3 syntax error"),
    ("No paths found.\n", "no power"),
    ("", "no delay in a form known here"),
])  # fmt: skip
def test_what_opensta_may_say_instead(text: str, reason: str) -> None:
    with pytest.raises(RedcaneError, match=reason):
        read_report(text)


def test_a_report_of_opensta() -> None:
    found = read_report("O[14] (output)   10.0  3.786634 6.213366 (MET)\n\n 4.5e-05 1.5e-05 2.0e-10 6.0e-05 g253\n")
    assert (found.delay_ns, found.energy_pj, found.leakage_w) == (3.786634, {"g253": pytest.approx(0.6)}, 2e-10)


@needs_liberty
def test_area_without_opensta_and_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    found = characterize([EXACT, HIGH], DEBIAN_LIBERTY, None)
    assert found[EXACT.name].area > 1.5 * found[HIGH.name].area > 0
    assert found[EXACT.name].energy_pj is None and found[EXACT.name].delay_ns is None
    files = list((cache_folder() / "characterized").iterdir())
    assert len(files) == 2
    with monkeypatch.context() as patch:
        patch.setattr(subject, "run_yosys", lambda *_, **__: pytest.fail("the cache was not used"))
        assert characterize([EXACT, HIGH], DEBIAN_LIBERTY, None) == found
    files[0].write_text('{"cells": 1, "area": -5}')  # damaged, so made again, the same whatever is made with it
    assert characterize([EXACT, HIGH], DEBIAN_LIBERTY, None) == found
    assert Characterisation.model_validate_json(files[0].read_text()) in found.values()


@needs_liberty
def test_a_netlist_unlike_the_table_is_refused() -> None:
    table = EXACT.table.copy()
    table[200, 100] ^= 1
    with pytest.raises(RedcaneError, match=r"exact: its mapped netlist .* 200 x 100"):
        characterize([multiplier("exact", "A * B", table)], DEBIAN_LIBERTY, None)


@needs_liberty
@needs_opensta
def test_energy_and_delay() -> None:
    found = characterize([EXACT, HIGH, ZERO], DEBIAN_LIBERTY, STA)
    exact, cheap, nothing = (found[c.name] for c in (EXACT, HIGH, ZERO))
    assert exact.energy_pj and cheap.energy_pj and exact.delay_ns and cheap.delay_ns and exact.leakage_pj
    assert exact.energy_pj > 1.5 * cheap.energy_pj
    assert 1 < cheap.delay_ns < exact.delay_ns < 10
    assert exact.leakage_pj < 0.01 * exact.energy_pj
    assert nothing == Characterisation(cells=0, area=0, delay_ns=0, energy_pj=0, leakage_pj=0)
    still = characterize([EXACT], DEBIAN_LIBERTY, STA, np.zeros(100, np.int64))[EXACT.name]
    assert still.energy_pj == still.leakage_pj == exact.leakage_pj  # operands that do not change cost leakage only


def test_bad_liberty(tmp_path: Path) -> None:
    for text, reason in (("nonsense", "cannot read it|holds no cells"), ("library (l) { }", "holds no cells")):
        (tmp_path / "bad.lib").write_text(text)
        with pytest.raises(RedcaneError, match=f"bad.lib: .*({reason})"):
            characterize([EXACT], tmp_path / "bad.lib", None)


def test_too_few_cells(tmp_path: Path) -> None:
    (tmp_path / "few.lib").write_text('library (l) { cell (INV) { area : 1; pin (A) { direction : input; } '
                                      'pin (Y) { direction : output; function : "!A"; } } }')  # fmt: skip
    with pytest.raises(RedcaneError, match=r"^exact: "):
        characterize([EXACT], tmp_path / "few.lib", None)


def test_a_program_that_is_not_opensta(tmp_path: Path) -> None:
    program = tmp_path / "sta"
    program.write_text("#!/bin/sh\necho something else\n")
    with pytest.raises(RedcaneError, match="does not start"):
        characterize([EXACT], _empty(tmp_path), str(program))
    program.chmod(0o755)
    with pytest.raises(RedcaneError, match="is not OpenSTA"):
        characterize([EXACT], _empty(tmp_path), str(program))


def test_the_command_without_tools(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("flows.synthesize.DEBIAN_LIBERTY", Path("/nowhere.lib"))
    monkeypatch.setattr("model.multipliers.library.load_library", lambda name: SMALL)
    assert main(["library", "characterize"]) == 0
    said = capsys.readouterr().out
    assert "transistors" in said and "no Liberty file, so nothing was measured" in said
    assert main(["library", "characterize", "--liberty", "/nowhere.lib"]) == 2
    assert "/nowhere.lib: no such file" in capsys.readouterr().err


@needs_liberty
def test_the_command_without_opensta(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("model.opensta.find_opensta", lambda: None)
    monkeypatch.setattr("model.multipliers.library.load_library", lambda name: SMALL)
    assert main(["library", "characterize"]) == 0
    said = capsys.readouterr().out
    assert "no OpenSTA, so no delay and no energy" in said and "rank correlation" not in said
    areas = {line.split()[0]: float(line.split()[2]) for line in said.splitlines()[2:5]}
    assert areas["exact"] > areas["high"] > areas["zero"] == 0
    kept = load_measured(costs_path("small"))
    assert kept is not None and kept.covers(SMALL.components)
    assert {name: round(c.area) for name, c in kept.components.items()} == areas
    assert replace(SMALL, measured=kept).cost_name == f"area (um2, measured: {DEBIAN_LIBERTY.name}, uniform operands)"
    assert main(["library", "characterize", "--forget"]) == 0
    assert "the cost of small's multipliers is transistors" in capsys.readouterr().out
    assert load_measured(costs_path("small")) is None


def test_correlations_need_three_published_figures() -> None:
    found = {name: Characterisation(cells=1, area=area, energy_pj=area, delay_ns=1.0)
             for name, area in (("p", 1.0), ("q", 2.0), ("r", 4.0))}  # fmt: skip
    components = [_published("p", 0.1, 10.0), _published("q", 0.3, 30.0), _published("r", 0.2, 40.0)]
    assert characterize_command.correlations(components[:2], found) == []
    apart = [*components[:2], replace(components[2], table=components[2].table.astype(np.int16))]
    assert apart[2].signed and not apart[1].signed
    assert characterize_command.correlations(apart, found) == []
    assert characterize_command.correlations(components, found) == [
        "rank correlation of energy with published power: 0.5000 over 3 unsigned components",
        "rank correlation of area with published area: 1.0000 over 3 unsigned components",
    ]


def _with_table(table: np.ndarray) -> Multiplier:
    return multiplier("half", "", table, PORTS)


def _published(name: str, power: float, area: float) -> Multiplier:
    return multiplier(name, "", np.zeros((256, 256)), cost=Cost(0, power, area, 1.0))


def _empty(folder: Path) -> Path:
    (folder / "cells.lib").write_text("")
    return folder / "cells.lib"
