"""Costs: the best measure that all components have, never two mixed, and measurements only for what was measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from model.errors import RedcaneError
from model.files import digest
from model.multipliers.characterize import Characterisation
from model.multipliers.component import Cost, Multiplier
from model.multipliers.costs import Costs, Measured, costs, load_measured
from model.multipliers.gates import Ports
from model.multipliers.library import costs_path, describe, import_folder, load_library

TABLE = np.zeros((256, 256), np.uint16)
SOURCES = ("energy", "power", "area", "transistors")


def component(name: str, power: float | None = None) -> Multiplier:
    return Multiplier(name, name, f"module {name};", Ports("A", "B", "O"), TABLE, Cost(10, power), "", "own")


def measured(components: list[Multiplier], energy: list[float | None]) -> Measured:
    found = {c.name: Characterisation(cells=1, area=7, energy_pj=e) for c, e in zip(components, energy, strict=True)}
    return Measured(cells="cells.lib", liberty_sha256="", operands="uniform operands", components=found,
                    verilog_sha256={c.name: digest(c.verilog.encode()) for c in components})  # fmt: skip


@settings(phases=[Phase.generate])
@given(st.lists(st.tuples(st.none() | st.floats(0, 9), st.none() | st.floats(0, 9)), min_size=1, max_size=4),
       st.booleans())  # fmt: skip
def test_two_sources_are_never_mixed(known: list[tuple[float | None, float | None]], characterised: bool) -> None:
    components = [component(f"c{k}", power) for k, (power, _) in enumerate(known)]
    energies = [energy for _, energy in known]
    found = costs(components, measured(components, energies) if characterised else None)
    available = {
        "energy": characterised and None not in energies,
        "power": None not in [power for power, _ in known],
        "area": characterised,
        "transistors": True,
    }
    best = next(source for source in SOURCES if available[source])
    expected = {"energy": energies, "power": [power for power, _ in known], "area": [7.0] * len(known),
                "transistors": [10.0] * len(known)}[best]  # fmt: skip
    assert found.name.startswith(best) and list(found.by_name.values()) == expected
    assert ("cells.lib, uniform operands" in found.name) == (best in ("energy", "area"))


def test_a_library_is_compared_by_what_was_measured_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDCANE_HOME", str(tmp_path / "home"))
    folder = tmp_path / "mine"
    folder.mkdir()
    text = "module {0}(input [7:0] A, input [7:0] B, output [15:0] O); assign O = {1}; endmodule\n"
    (folder / "one.v").write_text(text.format("one", "A * B"))
    library = import_folder(folder, "mine", signed=False)
    assert library.measured is None and library.cost_name == "transistors"
    both = list(library.components.values())
    measured(both, [3.5]).save(costs_path("mine"))
    again = load_library("mine")
    assert again.cost_name == "energy (pJ, measured: cells.lib, uniform operands)"
    assert again.cost("one") == again.cost(again.exact) == 3.5
    assert "3.5" in describe(again) and "3.5" not in describe(library)
    (folder / "two.v").write_text(text.format("two", "{A[7:4] * B[7:4], 8'd0}"))
    larger = import_folder(folder, "mine", signed=False)  # one component was never measured: none counts as measured
    assert larger.measured is None and larger.costs == Costs(
        "transistors", "multiplier transistors (weighted by multiplications)",
        {c.name: float(c.cost.transistors) for c in larger.components.values()})  # fmt: skip
    costs_path("mine").write_text('{"schema": 2}')
    with pytest.raises(RedcaneError, match="damaged: delete it, and characterize the library again"):
        load_library("mine")


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    kept = measured([component("a"), component("b")], [1.25, None])
    kept.save(tmp_path / "costs.json")
    assert load_measured(tmp_path / "costs.json") == kept and load_measured(tmp_path / "none.json") is None
