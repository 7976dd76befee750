"""What multipliers cost, by one measure for all that are compared, in general and in the operations of a network.

In general that is energy as measured, power as published, or transistors; in an operation it may be what they switch.

`redcane library characterize` leaves what it measured in a file for each library, which holds as long as the library's
Verilog stays the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.errors import RedcaneError
from model.files import digest, read_bounded, write_atomic
from model.multipliers.characterize import Characterisation
from model.multipliers.component import Multiplier

_MOST_BYTES = 16 << 20


class Measured(BaseModel):
    """The costs of a library's components in a cell library, by name, and how they were measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: int = Field(alias="schema", default=1, ge=1, le=1)
    cells: str = Field(max_length=300)
    """The Liberty file's name."""
    liberty_sha256: str
    operands: str = Field(max_length=300)
    """What the energies are for, as words: `uniform operands`, say."""
    components: dict[str, Characterisation]
    verilog_sha256: dict[str, str]

    def covers(self, components: Mapping[str, Multiplier]) -> bool:
        """Whether these very circuits were measured, all of them."""
        return all(self.verilog_sha256.get(name) == digest(c.verilog.encode()) and name in self.components
                   for name, c in components.items())

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        write_atomic(path, self.model_dump_json(indent=1, by_alias=True) + "\n")


def load_measured(path: Path) -> Measured | None:
    """What was measured, or None where nothing was; RedcaneError for a damaged file."""
    if not path.exists():
        return None
    try:
        return Measured.model_validate_json(read_bounded(path, _MOST_BYTES))
    except ValidationError:
        raise RedcaneError(f"{path}: damaged: delete it, and characterize the library again") from None


class Costs(NamedTuple):
    """The cost of one multiplication by each component, by name, and what that is."""

    name: str
    """The measure with its unit and its source."""
    total: str
    """What a sum over the multiplications of a network is, in words."""
    by_name: Mapping[str, float]


class OperationCosts(NamedTuple):
    """The cost of one inference's multiplications in each operation by each component, and what that is."""

    name: str
    """The measure with its unit and its source."""
    total: str
    """What a sum over operations is, in words."""
    by_operation: Mapping[str, Mapping[str, float]]
    """By "layer.operation" and component; of components that suit the operation's format."""


SWITCHING = ("switched transistors", "multiplier energy (switched transistors, real operands)")
"""The measure that model/multipliers/switching.py counts: its name, and a sum of it in words."""


def costs(components: Collection[Multiplier], measured: Measured | None) -> Costs:
    """The costs by the best measure that there is for every component: energy as measured, power as published, area as
    measured, transistors. Two sources are never mixed.
    """
    source = f"measured: {measured.cells}, {measured.operands}" if measured else ""
    in_cells = measured.components if measured else {}
    choices = (
        (f"energy (pJ, {source})", f"multiplier energy ({source})",
         {c.name: in_cells[c.name].energy_pj for c in components if c.name in in_cells}),
        ("power (mW, published)", "multiplier energy (published power)", {c.name: c.cost.power_mw for c in components}),
        (f"area (um2, {source})", f"multiplier area ({source}; weighted by multiplications)",
         {c.name: in_cells[c.name].area for c in components if c.name in in_cells}),
    )
    for name, total, found in choices:
        known = {key: value for key, value in found.items() if value is not None}
        if len(known) == len(components):
            return Costs(name, total, known)
    return Costs("transistors", "multiplier transistors (weighted by multiplications)",
                 {c.name: float(c.cost.transistors) for c in components})
