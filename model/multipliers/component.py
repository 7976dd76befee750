"""A multiplier as a component: its Verilog, its product table, its error and its cost, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from model.files import digest
from model.multipliers.error_figures import EXACT, ErrorFigures, error_figures
from model.multipliers.gates import Ports


@dataclass(frozen=True)
class Cost:
    """What a multiplier costs: transistors as we count them, the rest as its author published it (or None)."""

    transistors: int
    """Static CMOS transistors, from `netlist.TRANSISTOR_FLOW`, the same flow for every circuit."""
    power_mw: float | None = None
    area_um2: float | None = None
    delay_ns: float | None = None


@dataclass(frozen=True, eq=False)
class Multiplier:
    """An unsigned 8 x 8 multiplier, exact or approximate."""

    name: str
    module: str
    """The Verilog module to instantiate."""
    verilog: str
    """The text of the whole file, helper modules included."""
    ports: Ports
    table: NDArray[np.uint16]
    """The products, uint16 [256, 256], indexed [a, b]; read-only."""
    cost: Cost
    provenance: str
    """Where the circuit comes from."""
    library: str
    published: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """The figures in the file's own header, under the header's names, such as `MAE%` or `PDK45_PWR`."""

    @property
    def is_exact(self) -> bool:
        """Whether every product is a * b."""
        return bool(np.array_equal(self.table, EXACT))

    @property
    def commutes(self) -> bool:
        """Whether a and b may be exchanged."""
        return bool(np.array_equal(self.table, self.table.T))

    @cached_property
    def figures(self) -> ErrorFigures:
        """Error figures for uniform operands."""
        return error_figures(self.table)

    @cached_property
    def table_sha256(self) -> str:
        """What identifies the circuit's function: see `table_digest`."""
        return table_digest(self.table)


def table_digest(table: NDArray[np.uint16]) -> str:
    """SHA-256 (hex) of a product table's 131,072 bytes: little-endian uint16, row by row, a row for each a."""
    return digest(table.astype("<u2").tobytes())
