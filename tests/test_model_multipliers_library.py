"""Libraries: loaded, imported from folders of Verilog, described; refused whole when anything is wrong."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from model.errors import RedcaneError
from model.multipliers import library as library_file
from model.multipliers.library import describe, import_folder, libraries_folder, library_names, load_library

HEADER = """/***
* A comment that stands before the figures
***/
// MAE% = {mae} %
// MAE = 12
// WCRE% = 100.00 %
// PDK45_PWR = {power} mW
// PDK45_AREA = 511.5 um2
// PDK45_DELAY = 1.37 ns
"""


def circuit(name: str, product: str, power: float | None = None, outputs: str = "O") -> str:
    head = "" if power is None else HEADER.format(mae=0.02, power=power)
    return f"{head}\nmodule {name}(A, B, {outputs});\ninput [7:0] A; input [7:0] B; output [15:0] {outputs};\n" \
           f"assign {outputs} = {product};\nendmodule\n"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REDCANE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("REDCANE_CACHE", str(cache))
    return tmp_path / "home"


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A folder in the layout of EvoApproxLib v1.0, with circuits of our own."""
    root = tmp_path / "evoapproxlib"
    unsigned = root / "multiplers" / "8x8_unsigned"
    files = {
        "pareto_pwr_ep/mul8u_AAA.v": circuit("mul8u_AAA", "A * B", 0.391),
        "pareto_pwr_mae/mul8u_AAA.v": "// another comment\n" + circuit("mul8u_AAA", "A  *  B", 0.391),
        "pareto_pwr_ep/mul8u_AAA_pdk45.v": "module mul8u_AAA(A, B, O); FAX1 u(); endmodule",
        "pareto_pwr_ep/mul8u_BBB.v": circuit("mul8u_BBB", "A * (B & 8'hf0)", 0.2),
        "pareto_pwr_ep/mul8u_AAA.c": "uint16_t mul8u_AAA(uint8_t B, uint8_t A) { return A * B; }",
        "pareto_pwr_wce/mul8u_CCC.v": circuit("mul8u_CCC", "16'd0", 0.0, outputs="Z"),
    }
    for name, text in files.items():
        (unsigned / name).parent.mkdir(parents=True, exist_ok=True)
        (unsigned / name).write_text(text)
    (root / "adders").mkdir()
    (root / "adders" / "add8u_X.v").write_text("module add8u_X(input [7:0] A, B, output [8:0] O); endmodule")
    return root


def test_a_release_is_imported_and_loaded(release: Path) -> None:
    library = import_folder(release)
    assert list(library.components) == ["mul8u_AAA", "mul8u_BBB", "mul8u_CCC"]
    assert library_names() == ["embedded", "evoapprox"]
    again = load_library("evoapprox")
    for loaded in (library, again):
        b = loaded.get("mul8u_BBB")
        np.testing.assert_array_equal(b.table, np.multiply.outer(np.arange(256), np.arange(256) & 0xf0))
        assert (b.cost.power_mw, b.cost.area_um2, b.cost.delay_ns) == (0.2, 511.5, 1.37)
        assert b.published["MAE%"] == 0.02 and b.published["MAE"] == 12 and b.published["WCRE%"] == 100
        assert loaded.exact.name == "mul8u_AAA" and not b.is_exact and not b.commutes
        assert loaded.get("mul8u_CCC").ports == ("A", "B", "Z")
        assert loaded.cost_name.startswith("power") and loaded.cost("mul8u_BBB") == 0.2 and loaded.cost(b) == 0.2
        assert b.library == "evoapprox" and "pareto_pwr_ep/mul8u_BBB.v" in b.provenance
        with pytest.raises(ValueError, match="read-only"):
            b.table[0, 0] = 1


@pytest.mark.parametrize("inner", ["multiplers", "multiplers/8x8_unsigned", "multiplers/8x8_unsigned/pareto_pwr_ep"])
def test_any_folder_of_the_release_will_do(release: Path, inner: str) -> None:
    assert "mul8u_BBB" in import_folder(release / inner, "part").components


def test_where_a_power_is_missing_transistors_are_compared(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "one.v").write_text(circuit("one", "A * B", 0.4))
    (folder / "two.v").write_text(circuit("two", "{A[7:4] * B[7:4], 8'd0}"))
    library = import_folder(folder, "mine", signed=False)
    assert library.cost_name == "transistors"
    assert library.cost("one") == library.get("one").cost.transistors > library.cost("two") > 0


SIGNED = "$signed(A) * $signed(B)"


def test_the_release_has_signed_multipliers_too(release: Path) -> None:
    signed = release / "multiplers" / "8x8_signed" / "pareto_pwr_ep"
    signed.mkdir(parents=True)
    (signed / "mul8s_EEE.v").write_text(circuit("mul8s_EEE", SIGNED, 0.425))
    (signed / "mul8s_EEE_pdk45.v").write_text("module mul8s_EEE(A, B, O); FAX1 u(); endmodule")
    import_folder(release)
    library = load_library("evoapprox")
    assert sorted(library.components) == ["mul8s_EEE", "mul8u_AAA", "mul8u_BBB", "mul8u_CCC"]
    found = library.get("mul8s_EEE")
    assert found.signed and found.is_exact and found.commutes and found.figures.mae == 0
    assert found.table.dtype == np.int16 and found.table[0xFF, 2] == -2 and found.table[0x80, 0x80] == 16384
    assert library.exact_of(signed=True) is found and library.exact.name == "mul8u_AAA"
    with pytest.raises(ValueError, match="read-only"):
        found.table[0, 0] = 1
    row = next(line for line in describe(library).splitlines() if line.startswith("mul8s_EEE")).split()
    assert row[1] == "signed"


def test_what_the_operands_are_must_be_known(tmp_path: Path) -> None:
    def of(product: str, name: str = "mine", head: str = "") -> Path:
        text = circuit(name, product).replace("input", f"input {head}").replace("output", f"output {head}")
        (tmp_path / "one").mkdir(exist_ok=True)
        (tmp_path / "one" / "circuit.v").write_text(text)
        return tmp_path / "one"

    for product, like in ((SIGNED, "signed"), ("A * (B & 8'hfe)", "unsigned")):
        with pytest.raises(RedcaneError, match=f"say with --signed or --unsigned .* look like those of {like} ones"):
            import_folder(of(product), "own")
    for given in (False, True):
        assert import_folder(of(SIGNED), "own", given).get("mine").is_exact == given
    assert import_folder(of("A * B", head="signed"), "own").get("mine").is_exact
    for name, head, given, words in (
        ("mul8s_x", "", False, "unsigned by what was given with it but signed by its module's name"),
        ("mul8u_x", "", True, "signed by what was given with it but unsigned by its module's name"),
        ("mul8u_x", "signed", None, "unsigned by its module's name but signed by its ports"),
    ):
        with pytest.raises(RedcaneError, match=words):
            import_folder(of("A * B", name, head), "other", given)
    assert library_names() == ["embedded", "own"]


def test_nothing_is_added_when_anything_is_wrong(release: Path, home: Path) -> None:
    import_folder(release)
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    unsigned = release / "multiplers" / "8x8_unsigned"
    for text, told in ((circuit("mul8u_DDD", "A * B +"), r"mul8u_DDD\.v: Yosys stopped: line 4: ERROR: syntax error"),
                       (circuit("mul8u_DDD", "A * B").replace("input [7:0] B", "input [6:0] B"), "two 8-bit inputs"),
                       (circuit("mul8u_AAA", "A * B"), "both .* define a module `mul8u_AAA`")):
        (unsigned / "pareto_pwr_mae" / "mul8u_DDD.v").write_text(text)
        with pytest.raises(RedcaneError, match=told):
            import_folder(release)
        assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before
    assert list(load_library("evoapprox").components) == ["mul8u_AAA", "mul8u_BBB", "mul8u_CCC"]


def test_a_constant_is_taken_only_where_its_header_says_its_error(tmp_path: Path) -> None:
    (tmp_path / "none.v").write_text(circuit("none", "16'd7"))
    with pytest.raises(RedcaneError, match=r"none\.v: its product is always 7, whatever the operands"):
        import_folder(tmp_path, "mine", signed=False)
    assert "mine" not in library_names()
    (tmp_path / "none.v").write_text(circuit("none", "16'd0", 0.0))
    assert import_folder(tmp_path, "mine", signed=False).get("none").figures.ep_percent > 99


def test_one_name_for_two_circuits_is_refused(release: Path, home: Path) -> None:
    other = release / "multiplers" / "8x8_unsigned" / "pareto_pwr_wce" / "mul8u_BBB.v"
    other.write_text(circuit("mul8u_BBB", "A * (B & 8'he0)", 0.2))
    with pytest.raises(RedcaneError, match=r"mul8u_BBB\.v is not the same circuit in .*_ep/.* and .*_wce/"):
        import_folder(release)
    assert not home.exists() or not list(home.rglob("*.v"))
    other.write_text(circuit("mul8u_BBB", "(B & 8'hf0) * A", 0.2))  # other text, the same products
    assert len(import_folder(release).components) == 3


def test_helper_modules_of_one_name_are_told_apart(tmp_path: Path) -> None:
    helper = "\nmodule half(input a, input b, output s); assign s = a {0} b; endmodule // half\n"
    for name, gate in (("one", "^"), ("two", "&")):
        text = circuit(name, "{A[7:1] * B, s}").replace("endmodule", "wire s; half h(A[0], B[0], s);\nendmodule")
        (tmp_path / f"{name}.v").write_text(text + helper.format(gate))
    library = import_folder(tmp_path, "mine", signed=False)
    for name, bit in (("one", 1), ("two", 0)):
        component = library.get(name)
        assert f"module {name}_half(" in component.verilog and component.table[0, 1] == bit
        assert "module half" not in component.verilog


def test_helper_modules_named_as_another_circuit_are_refused(tmp_path: Path) -> None:
    (tmp_path / "one.v").write_text(circuit("one", "A * B"))
    escaped = "module two(input [7:0] A, input [7:0] B, output [15:0] O); \\one h(A, B, O); endmodule\n"
    (tmp_path / "two.v").write_text(escaped + circuit("one", "A * B"))
    with pytest.raises(RedcaneError, match=r"two\.v"):
        import_folder(tmp_path, "mine", signed=False)


@pytest.mark.parametrize(("name", "told"), [("../evil", "cannot be a library's name"), ("embedded", "cannot be"),
                                            ("", "cannot be"), (".hidden", "cannot be")])
def test_library_names_are_checked(release: Path, name: str, told: str) -> None:
    with pytest.raises(RedcaneError, match=told):
        import_folder(release, name)


def test_folders_without_multipliers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RedcaneError, match="no such folder"):
        import_folder(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RedcaneError, match="no Verilog files"):
        import_folder(tmp_path / "empty")
    with pytest.raises(RedcaneError, match="is no library yet: `redcane library import"):
        load_library(tmp_path / "empty")
    with pytest.raises(RedcaneError, match="there is no library `evoapprox`: there are embedded, and"):
        load_library("evoapprox")


def test_near_names_are_offered(release: Path) -> None:
    library = import_folder(release)
    with pytest.raises(RedcaneError, match=r"has no component `mul8u_AAB`: did you mean mul8u_AAA"):
        library.get("mul8u_AAB")
    with pytest.raises(RedcaneError, match="redcane library list"):
        library.get("?")
    (only_wrong := dict(library.components)).pop("mul8u_AAA")
    with pytest.raises(RedcaneError, match="holds no exact multiplier"):
        _ = library_file.Library("wrong", only_wrong).exact


def _edit(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        index = json.loads((folder / "library.json").read_text())
        change(index)
        (folder / "library.json").write_text(json.dumps(index))
    return apply


def _flip(folder: Path) -> None:
    path = folder / "mul8u_BBB.v"
    path.write_text(path.read_text().replace("8'hf0", "8'hf1"))


@pytest.mark.parametrize(("damage", "told"), [
    (lambda folder: (folder / "library.json").write_text('{"schema": 1, '), "Invalid JSON"),
    (lambda folder: (folder / "library.json").write_bytes(b"\xff\xfe"), "Invalid JSON|import the library again"),
    (_edit(lambda index: index.update(schema=2)), "schema: "),
    (_edit(lambda index: index.update(extra=2)), "extra: "),
    (_edit(lambda index: index["components"][0].update(file="../../x.v")), r"components\.0\.file: "),
    (_edit(lambda index: index["components"][0].update(transistors="many")), r"components\.0\.transistors: "),
    (_edit(lambda index: index["components"].append(index["components"][0])), "lists mul8u_AAA twice"),
    (lambda folder: (folder / "mul8u_BBB.v").unlink(), r"mul8u_BBB\.v: no such file"),
    (_flip, r"mul8u_BBB\.v was changed and multiplies otherwise"),
])
def test_a_damaged_library_is_refused(release: Path, damage: Callable[[Path], object], told: str) -> None:
    import_folder(release)
    damage(libraries_folder() / "evoapprox")
    with pytest.raises(RedcaneError, match=told) as error:
        load_library("evoapprox")
    assert "\n" not in str(error.value)


def test_the_description_shows_every_component(release: Path) -> None:
    text = describe(import_folder(release))
    lines = text.splitlines()
    assert lines[0] == "library evoapprox: 3 components; cost: power (mW, published)"
    for column in ("MAE %", "WCE %", "EP %", "NM", "NA", "transistors", "power mW", "commutes", "origin"):
        assert column in lines[1]
    b = next(line for line in lines if line.startswith("mul8u_BBB")).split()
    assert b[1] == "unsigned" and b[8:11] == ["0.2", "511.5", "1.37"] and b[11:13] == ["-", "no"]


def test_libraries_load_without_torch() -> None:
    code = "import sys; from model.multipliers import library, family; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).parent.parent)
    assert done.stdout.strip() == "False"
