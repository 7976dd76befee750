"""Libraries of multipliers: the embedded one, and those that a user imports, EvoApproxLib's above all.

A library is a folder of Verilog files and a `library.json`. Tables are not stored in it: they always come from the
Verilog itself (through the extraction cache), and `library.json` holds their hashes, so that the two cannot disagree.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_data_path
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.errors import RedcaneError
from model.files import digest, read_bounded, replace_folder
from model.multipliers.component import Cost, Multiplier
from model.multipliers.costs import Costs, Measured, costs, load_measured
from model.multipliers.netlist import TRANSISTOR_FLOW, Circuit, Extracted, extract_many, read_verilog
from model.multipliers.product_table import Table, exact_table, kind_of_operands, table_digest
from model.qnetwork import QNetwork, takes_signed
from model.yosys import yosys_version

EMBEDDED = Path(__file__).parent / "embedded"
_MOST_COMPONENTS = 2000
_MOST_JSON_BYTES = 16 << 20
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
_NAMED = re.compile(r"mul8([us])(?![A-Za-z0-9])")
_RELEASE = {"8x8_unsigned": "mul8u_", "8x8_signed": "mul8s_"}
_PUBLISHED = re.compile(r"^//\s*(MAE%?|WCE%?|WCRE%|EP%|MRE%|MSE|PDK45_(?:PWR|AREA|DELAY)) *= *([0-9.eE+-]{1,30})", re.M)


class _Entry(BaseModel):
    """One component in library.json."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(pattern=rf"^{_NAME}$")
    file: str = Field(pattern=rf"^{_NAME}\.v$")
    module: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    table_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    verilog_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    transistors: int
    signed: bool = False
    """Whether operands and products are in two's complement."""
    figures: dict[str, float]
    """For uniform operands, for the reader's eyes: computed again from the table at every use."""
    published: dict[str, float]
    provenance: str


class _Index(BaseModel):
    """The whole of library.json."""

    model_config = ConfigDict(extra="forbid")
    schema_version: int = Field(alias="schema", ge=1, le=1)
    library: str = Field(pattern=rf"^{_NAME}$")
    yosys: str
    transistor_flow: str
    components: list[_Entry] = Field(min_length=1, max_length=_MOST_COMPONENTS)


@dataclass(frozen=True)
class Library:
    """Multipliers by name, in the order of their error, and the one cost by which they are compared."""

    name: str
    components: dict[str, Multiplier]
    measured: Measured | None = None
    """Costs as characterised, where the user did that."""

    @property
    def exact(self) -> Multiplier:
        """The cheapest exact multiplier of unsigned operands; RedcaneError where the library has none."""
        return self.exact_of(signed=False)

    def exact_of(self, signed: bool) -> Multiplier:
        """The cheapest exact multiplier of signed or unsigned operands; RedcaneError where the library has none."""
        exact = [c for c in self.components.values() if c.is_exact and c.signed == signed]
        if not exact:
            raise RedcaneError(f"the library {self.name} holds no exact multiplier of {kind_of_operands(signed)} "
                               "operands: add one and import it again")
        return min(exact, key=self.cost)

    def exactly(self, network: QNetwork) -> QNetwork:
        """The network with the cheapest exact multiplier that its format takes in every operation; RedcaneError where
        the library has none.
        """
        exact = {key: self.exact_of(takes_signed(product.format)) for key, product, _ in network.products()}
        return network.with_components(
            {key: component.name for key, component in exact.items()},
            {component.name: component.table for component in exact.values()},
        )

    def get(self, name: str) -> Multiplier:
        """The component of that name; RedcaneError, naming those with similar names, where there is none."""
        if name in self.components:
            return self.components[name]
        near = difflib.get_close_matches(name, self.components, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "`redcane library list` shows what there is"
        raise RedcaneError(f"the library {self.name} has no component `{name[:80]}`: {hint}")

    @cached_property
    def costs(self) -> Costs:
        """What this library's components cost, all by the same measure."""
        return costs(self.components.values(), self.measured)

    @property
    def cost_name(self) -> str:
        """What `cost` is, with its unit and its source."""
        return self.costs.name

    def cost(self, component: Multiplier | str) -> float:
        """The cost of one multiplication by a component, by which this library's components are compared."""
        return self.costs.by_name[(self.get(component) if isinstance(component, str) else component).name]


def libraries_folder() -> Path:
    """Where imported libraries lie: `$REDCANE_HOME/libraries`, or the like in the user's data folder."""
    return Path(os.environ.get("REDCANE_HOME") or user_data_path("redcane", appauthor=False)) / "libraries"


def costs_path(library: str) -> Path:
    """Where the costs that the user measured of a library's components lie."""
    return libraries_folder().parent / "costs" / f"{library}.json"


def library_names() -> list[str]:
    """The names of all libraries at hand, `embedded` first."""
    return ["embedded", *sorted(path.parent.name for path in libraries_folder().glob("*/library.json"))]


def load_library(name_or_path: str | Path = "embedded") -> Library:
    """A library by its name, or from a folder with a `library.json`.

    Raises RedcaneError where there is none, or where its files and its library.json disagree.
    """
    if name_or_path == "embedded":
        return _load(EMBEDDED)
    if isinstance(name_or_path, str) and name_or_path in library_names():
        return _load(libraries_folder() / name_or_path)
    folder = Path(name_or_path)
    if (folder / "library.json").is_file():
        return _load(folder)
    if folder.is_dir():
        raise RedcaneError(f"{folder} is no library yet: `redcane library import {folder}` makes one of its Verilog")
    raise RedcaneError(f"there is no library `{name_or_path}`: there are {', '.join(library_names())}, "
                       "and `redcane library import PATH` adds one")


def check_name(name: str) -> None:
    """Raise RedcaneError where the user cannot call a library so."""
    if not re.fullmatch(_NAME, name) or name == "embedded":
        raise RedcaneError(f"`{name[:80]}` cannot be a library's name: use letters, digits and . _ -, not `embedded`")


def import_folder(path: Path, name: str = "evoapprox", signed: bool | None = None) -> Library:
    """Make a library of a folder's Verilog and keep it under `name` among the user's libraries.

    A checkout of EvoApproxLib v1.0 gives the circuits below its `8x8_unsigned` and `8x8_signed`, any other folder all
    of its `*.v`; `*_pdk45.v`, the same circuits in library cells, are passed over, and copies of a circuit count once.
    The published power, area, delay and errors come from the files' headers. Modules called mul8u or mul8s, and ports
    declared `signed`, say what the operands are; `signed` says it for circuits that do not.

    Raises RedcaneError, and adds nothing, where a file is not an 8 x 8 multiplier, nobody says whether its operands are
    signed, a product is constant and no header says its error, or two circuits bear one name.
    """
    check_name(name)
    circuits = circuits_in(path, signed)
    for circuit, found in zip(circuits, extract_many(circuits), strict=True):
        if np.ptp(found.table) == 0 and not _PUBLISHED.search(circuit.verilog):  # EvoApproxLib's 199Z is meant to be 0
            raise RedcaneError(f"{path}: {circuit.label}: its product is always {found.table[0, 0]}, whatever the "
                               "operands: mend it, or leave it out")
    with replace_folder(libraries_folder() / name) as folder:
        write_library(folder, name, circuits, {c.label: f"imported from {c.label}" for c in circuits})
    return load_library(name)


def circuits_in(path: Path, signed: bool | None = None) -> list[Circuit]:
    """What `import_folder` would import of a folder. Raises RedcaneError as it does."""
    files = _verilog_files(path)
    return _without_copies(
        path, [Circuit(str(file.relative_to(path)), read_verilog(file), signed=signed) for file in files]
    )


def write_library(folder: Path, name: str, circuits: Sequence[Circuit], provenance: dict[str, str]) -> None:
    """Write circuits into a folder as a library, each under its module's name; `provenance` is by their labels.

    Helper modules that several circuits define, as EvoApproxLib's adder cells, are renamed after their circuit. Raises
    RedcaneError where circuits cannot be extracted, their modules' names collide, or it is not known, or said in
    two ways, whether their operands are signed.
    """
    circuits = _with_own_helpers(circuits)
    extracted = extract_many(circuits)
    _check_names(circuits, extracted)
    entries = []
    for circuit, found in zip(circuits, extracted, strict=True):
        file = f"{found.module}.v"
        (folder / file).write_text(circuit.verilog, encoding="utf-8")
        signed = _signedness(circuit, found)
        component = _component(name, found.module, circuit.verilog, found, "", signed)
        entries.append(_Entry(
            name=found.module, file=file, module=found.module, table_sha256=component.table_sha256,
            verilog_sha256=digest(circuit.verilog.encode()), transistors=found.transistors, signed=signed,
            figures=_figures(component), published=dict(component.published), provenance=provenance[circuit.label]))
    entries.sort(key=lambda entry: (entry.figures["mae"], -entry.transistors, entry.name))
    index = _Index(schema=1, library=name, yosys=yosys_version(), transistor_flow=TRANSISTOR_FLOW, components=entries)
    (folder / "library.json").write_text(index.model_dump_json(indent=1, by_alias=True) + "\n", encoding="utf-8")


def describe(library: Library) -> str:
    """The components as a table in plain text, in the order of their error for uniform operands."""
    measured = library.measured.components if library.measured else {}
    rows = [("component", "operands", "MAE %", "WCE %", "EP %", "NM", "NA", "transistors", "power mW", "area um2",
             "delay ns", "energy pJ", "commutes", "origin")]
    for c in library.components.values():
        f = c.figures
        rows.append((c.name, kind_of_operands(c.signed), f"{f.mae_percent:.4f}", f"{f.wce_percent:.3f}",
                     f"{f.ep_percent:.2f}", f"{f.nm:.4f}", f"{f.na:.4f}", str(c.cost.transistors),
                     _optional(c.cost.power_mw), _optional(c.cost.area_um2), _optional(c.cost.delay_ns),
                     _optional(measured[c.name].energy_pj if measured else None), "yes" if c.commutes else "no",
                     c.provenance))
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    left = {0, 1, len(rows[0]) - 1}
    lines = ["  ".join(cell.ljust(width) if k in left else cell.rjust(width)
                       for k, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]
    head = f"library {library.name}: {len(library.components)} components; cost: {library.cost_name}"
    return "\n".join([head, lines[0], "-" * len(lines[0]), *lines[1:]])


def _optional(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _load(folder: Path) -> Library:
    path = folder / "library.json"
    try:
        index = _Index.model_validate_json(read_bounded(path, _MOST_JSON_BYTES))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise RedcaneError(f"{path}: {where}: {first['msg']}: import the library again") from None
    texts = [read_verilog(folder / entry.file) for entry in index.components]
    circuits = [Circuit(str(folder / entry.file), text, entry.module)
                for entry, text in zip(index.components, texts, strict=True)]
    components: dict[str, Multiplier] = {}
    for entry, text, found in zip(index.components, texts, extract_many(circuits), strict=True):
        if table_digest(found.table) != entry.table_sha256:
            raise RedcaneError(f"{folder / entry.file} was changed and multiplies otherwise than {path.name} says: "
                               "import the library again")
        if entry.name in components:
            raise RedcaneError(f"{path} lists {entry.name} twice: import the library again")
        components[entry.name] = _component(index.library, entry.name, text, found, entry.provenance, entry.signed)
    measured = load_measured(costs_path(index.library))
    return Library(index.library, components, measured if measured and measured.covers(components) else None)


def _signedness(circuit: Circuit, found: Extracted) -> bool:
    """Whether a circuit's operands are signed, as its module's name, its ports and who gave it say; all must agree."""
    said = {} if circuit.signed is None else {"what was given with it": circuit.signed}
    if named := _NAMED.match(found.module):
        said["its module's name"] = named[1] == "s"
    if found.signed_ports:
        said["its ports"] = True
    if not said:
        off = {kind: np.abs(exact_table(kind).astype(int) - _typed(found.table, kind)).sum() for kind in (False, True)}
        raise RedcaneError(
            f"{circuit.label}: say with --signed or --unsigned what the operands of {found.module} are (its products "
            f"look like those of {kind_of_operands(off[True] < off[False])} ones), or call it mul8s_... or mul8u_..."
        )
    if len(set(said.values())) > 1:
        words = [f"{kind_of_operands(signed)} by {source}" for source, signed in said.items()]
        raise RedcaneError(f"{circuit.label}: the operands of {found.module} are {' but '.join(words)}: rename it, or "
                           "give it otherwise")
    return next(iter(said.values()))


def _typed(words: NDArray[np.uint16], signed: bool) -> Table:
    """A table of words with the type that says what they are."""
    return words.view(np.int16) if signed else words


def _component(library: str, name: str, verilog: str, found: Extracted, provenance: str, signed: bool) -> Multiplier:
    published = {key: number for key, text in _PUBLISHED.findall(verilog) if (number := _number(text)) is not None}
    cost = Cost(found.transistors, *(published.get(f"PDK45_{key}") for key in ("PWR", "AREA", "DELAY")))
    table = _typed(found.table, signed)
    table.flags.writeable = False
    return Multiplier(name, found.module, verilog, found.ports, table, cost, provenance, library,
                      MappingProxyType(published))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _figures(component: Multiplier) -> dict[str, float]:
    """Rounded, so that the file does not depend on the order in which a machine adds."""
    f = component.figures
    figures = {"na": f.na, "nm": f.nm, "mae": f.mae, "wce": f.wce, "ep": f.ep, "mre": f.mre}
    return {key: float(f"{value:.9g}") for key, value in figures.items()}


def _verilog_files(path: Path) -> list[Path]:
    """The files to import, in a fixed order."""
    if not path.is_dir():
        raise RedcaneError(f"{path}: no such folder: give the folder that holds the multipliers' Verilog")
    found = []
    for file in path.rglob("*.v"):
        if file.is_file() and not file.stem.endswith("_pdk45"):
            found.append(file)
        if len(found) > _MOST_COMPONENTS:
            raise RedcaneError(f"{path}: more than {_MOST_COMPONENTS} Verilog files: give a smaller folder")
    of_release = [f for f in found if is_of_release(f.absolute())]
    if not found:
        raise RedcaneError(f"{path}: it holds no Verilog files (*.v)")
    return sorted(of_release or found)


def is_of_release(path: PurePath) -> bool:
    """Whether a path within EvoApproxLib is that of an 8 x 8 multiplier in Verilog, not in library cells."""
    return (path.suffix == ".v" and not path.stem.endswith("_pdk45")
            and any(folder in path.parts and path.name.startswith(start) for folder, start in _RELEASE.items()))


def _without_copies(path: Path, circuits: Iterable[Circuit]) -> list[Circuit]:
    """One circuit of those that differ in their comments only; RedcaneError where a file's name stands for two."""
    by_code: dict[tuple[str, str], Circuit] = {}
    for circuit in circuits:
        code = re.sub(r"//[^\n]*|/\*.*?\*/|\s+", " ", circuit.verilog, flags=re.DOTALL)
        by_code.setdefault((Path(circuit.label).name, re.sub(r" +", " ", code)), circuit)
    by_name: dict[str, list[Circuit]] = defaultdict(list)
    for (name, _), circuit in by_code.items():
        by_name[name].append(circuit)
    for name, same in by_name.items():
        tables = [table_digest(found.table) for found in extract_many(same)] if len(same) > 1 else []
        for other, table in zip(same, tables, strict=False):
            if table != tables[0]:
                raise RedcaneError(f"{path}: {name} is not the same circuit in {same[0].label} and {other.label}: "
                                   "rename one")
    return [same[0] for same in by_name.values()]


def _with_own_helpers(circuits: Sequence[Circuit]) -> list[Circuit]:
    """The circuits, helper modules renamed whose names several of them use: they end up side by side in an accelerator.
    """
    extracted = extract_many(circuits)
    uses = Counter(name for found in extracted for name in (found.module, *found.helpers))
    renamed = []
    for circuit, found in zip(circuits, extracted, strict=True):
        shared = [re.escape(helper) for helper in found.helpers if uses[helper] > 1]
        pattern = re.compile(rf"(?<![\w$\\])({'|'.join(shared)})(?![\w$])")
        text = pattern.sub(rf"{found.module}_\1", circuit.verilog) if shared else circuit.verilog
        renamed.append(circuit._replace(verilog=text))
    for before, after, circuit in zip(extracted, extract_many(renamed), circuits, strict=True):
        if after.module != before.module or not np.array_equal(after.table, before.table):
            raise RedcaneError(f"{circuit.label}: other files define modules of the same names "
                               f"({', '.join(before.helpers[:3])}): rename them")
    return renamed


def _check_names(circuits: Sequence[Circuit], extracted: Sequence[Extracted]) -> None:
    """Every module may be defined once only, because the circuits end up side by side in one accelerator."""
    owner: dict[str, str] = {}
    for circuit, found in zip(circuits, extracted, strict=True):
        for module in (found.module, *found.helpers):
            if module in owner:
                raise RedcaneError(f"both {owner[module]} and {circuit.label} define a module `{module}`: rename one")
            owner[module] = circuit.label
