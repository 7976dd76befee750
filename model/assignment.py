"""assignment.yaml, the outcome of step 6 and what people edit: the multiplier and the number format of every operation.

docs/assignment.md describes the file.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, cast

import yaml

from model.errors import RedcaneError
from model.files import write_atomic
from model.multipliers.library import Library
from model.multipliers.product_table import kind_of_operands
from model.operations import layer_of
from model.qnetwork import FORMATS, Format, takes_signed
from model.selection import Selection
from model.yamlfile import read_yaml

SCHEMA = 1
HEADER = """\
# The multiplier and the number format of every operation that multiplies; edit it as you like, see docs/assignment.md.
# Everything below `operations` informs: `circuits` guards against another circuit under the same name,
# `figures` says what was measured when the multipliers were chosen.
"""


@dataclass(frozen=True)
class Assignment:
    """The component and the format of every operation, by "layer.operation", and what was found out about them."""

    library: str
    components: dict[str, str]
    formats: dict[str, Format]
    aligns: dict[str, int] = field(default_factory=dict)  # where magnitudes sit, if not where the configuration says
    circuits: dict[str, str] = field(default_factory=dict)  # SHA-256 of the product tables, by component
    figures: dict[str, Any] = field(default_factory=dict)  # plain data; nothing is computed from it


def assignment(selection: Selection, formats: Mapping[str, Format], library: Library) -> Assignment:
    """The assignment that a selection ended with."""
    operations: dict[str, Any] = {}
    for choice in selection.choices:
        noise = choice.figures
        operations[choice.operation] = {
            "nm": _short(noise.nm),
            "na": _short(noise.na),
            "nm_uniform": _short(noise.nm_uniform),
            "na_uniform": _short(noise.na_uniform),
            "tolerated_nm": _short(choice.tolerated),
            "cost": _short(choice.cost),
            "saved": _short(choice.saved),
        }
    figures = {
        "accuracy": {
            "float": _short(selection.float_accuracy),
            "exact_8_bit": _short(selection.exact_accuracy),
            "assigned": _short(selection.accuracy),
        },
        "budget_points": selection.budget_points,
        "cost": selection.cost,
        "operations": operations,
    }
    chosen = selection.assignment
    circuits = {name: library.get(name).table_sha256 for name in sorted(set(chosen.values()))}
    aligns = {choice.operation: choice.align for choice in selection.choices if choice.align is not None}
    return Assignment(library.name, chosen, {key: formats[key] for key in chosen}, aligns, circuits, figures)


def save_assignment(path: Path, assigned: Assignment) -> None:
    """Write assignment.yaml atomically."""
    data = {
        "schema": SCHEMA,
        "library": assigned.library,
        "operations": {
            key: {
                "multiplier": name,
                "format": assigned.formats[key],
                **({"align": assigned.aligns[key]} if key in assigned.aligns else {}),
            }
            for key, name in assigned.components.items()
        },
        "circuits": assigned.circuits,
        "figures": assigned.figures,
    }
    text = "".join(_section(key, value) for key, value in data.items())
    write_atomic(path, HEADER + text)


def load_assignment(path: Path, operations: Collection[str], library: Library) -> Assignment:
    """Read assignment.yaml for a network with these `operations` ("layer.operation") that multiply.

    Raises RedcaneError, one sentence with the file, the key and near matches, for anything that is unknown, missing or
    of a wrong type, for formats that do not go together, another library, and a circuit that is no longer the same.
    """
    data = read_yaml(path)

    def fail(where: str, what: str) -> NoReturn:
        raise RedcaneError(f"{path}: {where}: {what}")

    for key in data:
        if key not in ("schema", "library", "operations", "circuits", "figures"):
            fail(_shown(key), f"unknown key{_near(key, ('schema', 'library', 'operations', 'circuits', 'figures'))}")
    if type(data.get("schema")) is not int or data["schema"] != SCHEMA:
        fail("schema", f"{_shown(data.get('schema'))} instead of {SCHEMA}, the version that this program reads")
    if data.get("library") != library.name:
        fail("library", f"{_shown(data.get('library'))}, but the library of this run is {library.name}; assign again")
    rows = _mapping(path, "operations", data.get("operations"))
    for key in rows:
        if key not in operations:
            fail(f"operations.{_shown(key)}", f"no such layer and operation in this network{_near(key, operations)}")
    components: dict[str, str] = {}
    formats: dict[str, Format] = {}
    aligns: dict[str, int] = {}
    for key in operations:
        if key not in rows:
            fail(f"operations.{key}", "missing; it needs a multiplier and a format")
        row = _mapping(path, f"operations.{key}", rows[key])
        for name in row:
            if name not in ("multiplier", "format", "align"):
                fail(f"operations.{key}.{_shown(name)}", f"unknown key{_near(name, ('multiplier', 'format', 'align'))}")
        component, number_format = row.get("multiplier"), row.get("format")
        if not isinstance(component, str) or component not in library.components:
            name = _shown(component)
            near = _near(name, library.components) or "; `redcane library list` shows what there is"
            fail(f"operations.{key}.multiplier", f"no component {name} in the library {library.name}{near}")
        if number_format not in FORMATS:
            fail(f"operations.{key}.format", f"{_shown(number_format)} instead of {' or '.join(FORMATS)}")
        components[key], formats[key] = component, cast(Format, number_format)
        if "align" in row:
            if type(row["align"]) is not int or row["align"] not in (0, 1):
                fail(f"operations.{key}.align", f"{_shown(row['align'])} instead of 0 (magnitudes at the bottom) or 1 "
                     "(at the top)")  # fmt: skip
            if number_format != "sign-magnitude":
                fail(f"operations.{key}.align", f"{number_format} has one place for its operands: leave it out")
            aligns[key] = row["align"]
        signed = takes_signed(formats[key])
        if library.components[component].signed != signed:
            able = [name for name, other in library.components.items() if other.signed == signed]
            fail(f"operations.{key}.multiplier", f"{component} multiplies {kind_of_operands(not signed)} operands, and "
                 f"{number_format} has {kind_of_operands(signed)} ones; the library's multipliers of these are "
                 + (", ".join(able[:4]) + " ..." * (len(able) > 4) or "none"))
    for key, other in ((k, f"{layer_of(k)}.agreement") for k in operations if k.endswith(".weighted_sum")):
        if formats.get(other, formats[key]) != formats[key]:
            fail(f"operations.{key}.format", f"differs from {other}, which reads the same votes: make them equal")
    circuits = _mapping(path, "circuits", data.get("circuits", {}))
    for name in set(components.values()) & circuits.keys():
        if circuits[name] != library.components[name].table_sha256:
            fail(f"circuits.{name}", "assigned was another circuit of that name; assign again, or remove this line")
    figures = _mapping(path, "figures", data.get("figures", {}))
    return Assignment(library.name, components, formats, aligns, circuits, figures)


def _section(key: str, value: Any) -> str:
    """One top-level entry: operations on a line each, the rest in blocks."""
    if key == "operations":
        lines = (yaml.safe_dump({k: v}, default_flow_style=None, sort_keys=False, width=1000) for k, v in value.items())
        return "operations:\n" + "".join(f"  {line}" for line in lines)
    return yaml.safe_dump({key: value}, sort_keys=False)


def _mapping(path: Path, where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise RedcaneError(f"{path}: {where}: {_shown(value)} should be a section, lines of `key: value`")
    return value


def _near(word: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(word[:100], list(known), 3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _shown(value: Any) -> str:
    """A value from the file, short and on one line."""
    if value is None:
        return "nothing"
    if isinstance(value, int) and value.bit_length() > 64:
        return "a huge number"
    text = str(value) if isinstance(value, str | int | float) else f"a {type(value).__name__}"
    return " ".join(text[:80].split()) or "an empty text"


def _short(value: float) -> float:
    """Six significant digits, as a plain float."""
    return float(f"{float(value):.6g}")
