"""The truncated and broken-array multipliers are what their names say, as ariths-gen makes them."""

import json
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from model.errors import RedcaneError
from model.multipliers import family
from model.multipliers.library import load_library
from model.multipliers.netlist import Circuit, extract_many


@pytest.fixture
def needs_ariths_gen() -> None:
    try:
        version("ariths-gen")
    except PackageNotFoundError:
        pytest.skip("ariths-gen is not installed: pip install 'redcane[library-tools]'")


def test_definitions_by_hand() -> None:
    a, b = np.arange(256)[:, None], np.arange(256)[None, :]
    np.testing.assert_array_equal(family.definition("mul8u_exact"), a * b)
    np.testing.assert_array_equal(family.definition("mul8u_trunc_4"), (a >> 4) * (b >> 4) << 8)
    np.testing.assert_array_equal(family.definition("mul8u_bam_h3v0"), a * (b >> 3 << 3))
    np.testing.assert_array_equal(family.definition("mul8u_bam_h0v2"),
                                  a * b - (a & b & 1) - 2 * ((a & 1) * (b >> 1 & 1) + (a >> 1 & 1) * (b & 1)))
    with pytest.raises(RedcaneError, match="not a component of this family"):
        family.definition("mul8u_1JFF")


@pytest.mark.usefixtures("needs_ariths_gen")
def test_tables_are_what_the_names_promise() -> None:
    names = ("mul8u_exact", "mul8u_trunc_5", "mul8u_bam_h0v6", "mul8u_bam_h2v7", "mul8u_bam_h5v11")
    structures = [next(s for s in family.candidates() if s.component == name) for name in names]
    found = extract_many([Circuit(str(s), family.verilog(s)) for s in structures])
    for name, extracted in zip(names, found, strict=True):
        np.testing.assert_array_equal(extracted.table, family.definition(name), err_msg=name)
        assert extracted.module == name


@pytest.mark.slow
@pytest.mark.usefixtures("needs_ariths_gen")
def test_the_family_is_a_graded_pareto_front(tmp_path: Path) -> None:
    family.write(tmp_path / "family")
    library = load_library(tmp_path / "family")
    components = list(library.components.values())
    assert 16 <= len(components) <= 24
    maes = [c.figures.mae_percent for c in components]
    transistors = [c.cost.transistors for c in components]
    assert maes[0] == 0 and 0 < maes[1] < 0.01 and 7 < maes[-1] < 8.5
    assert maes == sorted(maes)
    assert all(after <= family.SMALLEST_STEP * before for before, after in pairwise(transistors))
    made_by = {f"ariths-gen {structure}": structure for structure in family.candidates()}
    for name, component in library.components.items():
        np.testing.assert_array_equal(component.table, family.definition(name), err_msg=name)
        assert made_by[component.provenance].component == name
    content = (tmp_path / "family" / "library.json").read_text()
    family.write(tmp_path / "family")
    assert json.loads((tmp_path / "family" / "library.json").read_text()) == json.loads(content)


def test_a_missing_ariths_gen_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(family.importlib, "import_module", missing)
    with pytest.raises(RedcaneError, match="library-tools"):
        family.verilog(next(family.candidates()))
