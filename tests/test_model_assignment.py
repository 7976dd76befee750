"""assignment.yaml there and back, edited by hand, and everything wrong with it in one sentence."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from test_model_selection import EXACT, TABLES, run

from model.assignment import Assignment, assignment, load_assignment, save_assignment
from model.errors import RedcaneError
from model.multipliers.component import Cost, Multiplier
from model.multipliers.gates import Ports
from model.multipliers.library import Library
from model.multipliers.product_table import exact_table
from model.quantize import OPERATIONS


def component(name: str, table: np.ndarray) -> Multiplier:
    return Multiplier(name, name, "", Ports("A", "B", "O"), table, Cost(1), "", "test")


MORE = {"123": EXACT, "signed": exact_table(True)}
LIBRARY = Library("test", {name: component(name, table) for name, table in (TABLES | MORE).items()})
SELECTION = run(lambda assigned: 0.98, tolerated=0.01)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    formats = dict.fromkeys(OPERATIONS, "sign-magnitude") | {"conv1.mac": "affine"}
    save_assignment(tmp_path / "assignment.yaml", assignment(SELECTION, formats, LIBRARY))  # type: ignore[arg-type]  # the two names
    return tmp_path / "assignment.yaml"


def read(path: Path, library: Library = LIBRARY) -> Assignment:
    return load_assignment(path, OPERATIONS, library)


def test_there_and_back(path: Path) -> None:
    found = read(path)
    assert found.components == SELECTION.assignment and len(set(found.components.values())) > 1
    assert found.formats == dict.fromkeys(OPERATIONS, "sign-magnitude") | {"conv1.mac": "affine"}
    assert found.library == "test"
    assert found.figures["accuracy"] == {"float": 0.98, "exact_8_bit": 0.98, "assigned": 0.98}
    text = path.read_text()
    save_assignment(path, found)
    assert path.read_text() == text
    assert f"\n  conv1.mac: {{multiplier: {found.components['conv1.mac']}, format: affine}}\n" in text


def test_places_of_magnitudes(path: Path) -> None:
    moved = replace(SELECTION, choices=(*SELECTION.choices[:-1], replace(SELECTION.choices[-1], align=0)))
    last = SELECTION.choices[-1].operation
    save_assignment(path, assignment(moved, dict.fromkeys(OPERATIONS, "sign-magnitude"), LIBRARY))
    assert read(path).aligns == {last: 0} and "format: sign-magnitude, align: 0}" in path.read_text()
    text = path.read_text()
    for wrong, said in (("2", "2 instead of 0"), ("true", "True instead of 0"), ("'0'", "0 instead of 0 (mag")):
        path.write_text(text.replace("align: 0", f"align: {wrong}"))
        with pytest.raises(RedcaneError, match=re.escape(f"operations.{last}.align: {said}")):
            read(path)
    path.write_text(text.replace("format: sign-magnitude", "format: affine"))
    with pytest.raises(RedcaneError, match="align: affine has one place"):
        read(path)


def test_edited_by_hand(path: Path) -> None:
    path.write_text(
        "schema: 1\nlibrary: test\noperations:\n"
        + "".join(f"  {key}: {{format: affine, multiplier: '123'}}  # mine\n" for key in OPERATIONS)
    )
    assert read(path) == Assignment("test", dict.fromkeys(OPERATIONS, "123"), dict.fromkeys(OPERATIONS, "affine"))


def edit(*keys: str, value: Any) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        if value is None:
            del data[keys[-1]]
        else:
            data[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (edit("schema", value=2), "schema: 2 instead of 1"),
        (edit("schema", value=True), "schema: True"),
        (edit("schema", value=None), "schema: nothing"),
        (edit("library", value="other"), "library: other, but"),
        (edit("library", value=[1]), "library: a list"),
        (edit("operation", value={}), "operation: unknown key; did you mean operations"),
        (edit("operations", value=[1]), "operations: a list should be a section"),
        (edit("operations", value=None), "operations: nothing should be a section"),
        (edit("operations", "conv1.mca", value={}), r"operations.conv1.mca: no such .*did you mean conv1.mac"),
        (edit("operations", "classcaps.votes", value=None), "operations.classcaps.votes: missing"),
        (edit("operations", "conv1.mac", value="exact"), "operations.conv1.mac: exact should be a section"),
        (edit("operations", "conv1.mac", "component", value="exact"), "conv1.mac.component: unknown key"),
        (edit("operations", "conv1.mac", "multiplier", value="trun1"), "no component trun1 .*did you mean trunc1"),
        (edit("operations", "conv1.mac", "multiplier", value=123), "no component 123"),
        (edit("operations", "conv1.mac", "multiplier", value="no\nwhere"), "no component no where in the library"),
        (edit("operations", "conv1.mac", "multiplier", value=None), "multiplier: no component nothing"),
        (edit("operations", "conv1.mac", "format", value="signmagnitude"), "signmagnitude instead of sign-m"),
        (edit("operations", "conv1.mac", "format", value=["affine"]), "format: a list"),
        (edit("operations", "conv1.mac", "multiplier", value="signed"),
         "conv1.mac.multiplier: signed multiplies signed operands, and affine has unsigned ones; .* these are exact, "),
        (edit("operations", "conv1.mac", "format", value="twos-complement"),
         "exact multiplies unsigned operands, and twos-complement has signed ones; .* these are signed"),
        (edit("operations", "classcaps.agreement", "format", value="affine"), "same votes"),
        (edit("circuits", "exact", value="0" * 64), "circuits.exact: .*another circuit"),
        (edit("circuits", value=3), "circuits: 3"),
        (edit("figures", value=3), "figures: 3"),
    ],
)
def test_bad_assignments(path: Path, change: Callable[[Any], None], words: str) -> None:
    data = yaml.safe_load(path.read_text())
    for row in data["operations"].values():
        row["multiplier"] = "exact"
    change(data)
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(RedcaneError, match=words) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "text",
    [
        "", "3", "[1, 2]", "a: [", "a: 1\na: 2", "a: &x [1]\nb: *x", "a: !!python/object/apply:os.system [x]", "\x00",
        "a: 2024-13-45", "a: !!bool maybe", "a: !!int ''", "a: !!timestamp x", "? [1]\n: 2", "[" * 20_000, "1: 2",
        "schema: 0x" + "f" * 10_000, "a: b: c", "\udcff",
    ],
)  # fmt: skip
def test_hostile_files(path: Path, text: str) -> None:
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(RedcaneError) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_number_too_large_to_print(path: Path) -> None:
    text = path.read_text()
    path.write_text(re.sub(r"multiplier: \w+", f"multiplier: 0x{'f' * 9000}", text, count=1))
    with pytest.raises(RedcaneError, match="no component a huge number"):
        read(path)


def test_too_large_or_missing(path: Path) -> None:
    path.write_text("#" * (2**20 + 1))
    with pytest.raises(RedcaneError, match="larger"):
        read(path)
    path.unlink()
    with pytest.raises(RedcaneError, match="no such file"):
        read(path)


def test_many_keys_are_read_in_reasonable_time(path: Path) -> None:
    path.write_text("".join(f"k{n}: 1\n" for n in range(20_000)))
    with pytest.raises(RedcaneError, match="k0: unknown key"):
        read(path)
