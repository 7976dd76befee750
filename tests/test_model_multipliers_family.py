"""The embedded library is what its names say, graded, and what ariths-gen makes."""

import json
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from model.errors import RedcaneError
from model.multipliers import family
from model.multipliers.library import EMBEDDED, Library, load_library


@pytest.fixture(scope="module")
def library() -> Library:
    return load_library()


def needs_ariths_gen() -> None:
    try:
        version("ariths-gen")
    except PackageNotFoundError:
        pytest.skip("ariths-gen is not installed: pip install 'redcane[library-tools]'")


def test_every_table_is_what_the_name_promises(library: Library) -> None:
    for name, component in library.components.items():
        np.testing.assert_array_equal(component.table, family.definition(name), err_msg=name)
        assert component.name == component.module == name


def test_definitions_by_hand() -> None:
    a, b = np.arange(256)[:, None], np.arange(256)[None, :]
    np.testing.assert_array_equal(family.definition("mul8u_exact"), a * b)
    np.testing.assert_array_equal(family.definition("mul8u_trunc_4"), (a >> 4) * (b >> 4) << 8)
    np.testing.assert_array_equal(family.definition("mul8u_bam_h3v0"), a * (b >> 3 << 3))
    np.testing.assert_array_equal(family.definition("mul8u_bam_h0v2"),
                                  a * b - (a & b & 1) - 2 * ((a & 1) * (b >> 1 & 1) + (a >> 1 & 1) * (b & 1)))
    with pytest.raises(RedcaneError, match="not a component of the embedded family"):
        family.definition("mul8u_1JFF")


def test_the_family_is_a_graded_pareto_front(library: Library) -> None:
    components = list(library.components.values())
    assert 16 <= len(components) <= 24
    maes = [c.figures.mae_percent for c in components]
    transistors = [c.cost.transistors for c in components]
    assert maes[0] == 0 and 0 < maes[1] < 0.01 and 7 < maes[-1] < 8.5
    assert maes == sorted(maes)
    assert all(after <= family.SMALLEST_STEP * before for before, after in pairwise(transistors))
    assert library.exact.name == "mul8u_exact"
    assert library.cost_name == "transistors"


def test_ariths_gen_makes_the_committed_verilog(library: Library) -> None:
    needs_ariths_gen()
    made_by = {f"ariths-gen {structure}": structure for structure in family.candidates()}
    for name, component in library.components.items():
        structure = made_by[component.provenance]
        assert structure.component == name
        assert family.verilog(structure) == component.verilog, name


@pytest.mark.slow
def test_the_embedded_library_is_made_anew_to_the_byte(tmp_path: Path) -> None:
    needs_ariths_gen()
    family.write(tmp_path / "embedded")
    fresh = {path.name: path.read_text() for path in (tmp_path / "embedded").iterdir()}
    committed = {path.name: path.read_text() for path in EMBEDDED.iterdir()}
    for folder in (fresh, committed):  # another build of the same Yosys is no difference
        folder["library.json"] = json.dumps({**json.loads(folder["library.json"]), "yosys": ""})
    assert fresh == committed


def test_a_missing_ariths_gen_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(family.importlib, "import_module", missing)
    with pytest.raises(RedcaneError, match="library-tools"):
        family.verilog(next(family.candidates()))
