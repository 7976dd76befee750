"""A multiplier as a component: its Verilog, its product table, its error and its cost, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

import numpy as np

from model.multipliers.error_figures import ErrorFigures, error_figures
from model.multipliers.gates import Ports
from model.multipliers.product_table import Table, exact_table, is_signed, table_digest


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
    """An 8 x 8 multiplier of unsigned or of two's complement operands, exact or approximate."""

    name: str
    module: str
    """The Verilog module to instantiate."""
    verilog: str
    """The text of the whole file, helper modules included."""
    ports: Ports
    table: Table
    """The products, [256, 256], indexed [a, b]; read-only. Its type says what the operands are (product_table)."""
    cost: Cost
    provenance: str
    """Where the circuit comes from."""
    library: str
    published: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """The figures in the file's own header, under the header's names, such as `MAE%` or `PDK45_PWR`."""

    @property
    def is_exact(self) -> bool:
        """Whether every product is a * b."""
        return bool(np.array_equal(self.table, exact_table(self.signed)))

    @property
    def signed(self) -> bool:
        """Whether operands and products are in two's complement."""
        return is_signed(self.table)

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
