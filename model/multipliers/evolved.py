"""Evolved multipliers as components: the recipe that makes one, its Verilog with that recipe in it, its library."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.errors import RedcaneError
from model.files import replace_folder
from model.multipliers.chromosome import Chromosome, Measure, array_multiplier, from_verilog
from model.multipliers.error_figures import ErrorFigures, error_figures
from model.multipliers.evolve import Limits, Progress, evolve, pair_weights
from model.multipliers.library import Library, check_name, libraries_folder, load_library, write_library
from model.multipliers.netlist import Circuit, extract_table

ARRAY = "array"


@dataclass(frozen=True)
class Recipe:
    """All that makes a component: `redcane library evolve` with these options makes it again."""

    component: str
    limits: Limits
    seed: int
    evaluations: int
    start: str = ARRAY
    """`array`, the exact array multiplier, or a component of a library as LIBRARY:COMPONENT."""
    half_normal: float | None = None
    """Operands of half-normal distribution with this deviation are what weighted limits weigh."""
    operands: str | None = None
    """Where other weights come from, as options of the command."""
    minimise: Measure = "transistors"

    def command(self) -> str:
        """The command line that makes it."""
        options = [f"--{name.replace('_', '-')} {value:g}" for name, value in self.limits.figures().items()]
        options += ["--zero"] if self.limits.zero else []
        options += [f"--half-normal {self.half_normal:g}"] if self.half_normal is not None else []
        options += [self.operands] if self.operands is not None else []
        options += [f"--start {self.start}"] if self.start != ARRAY else []
        options += [f"--minimise {self.minimise}"] if self.minimise != "transistors" else []
        options += [f"--evaluations {self.evaluations}", f"--seed {self.seed}", f"--component {self.component}"]
        return "redcane library evolve " + " ".join(options)


def half_normal_weights(deviation: float) -> NDArray[np.int32]:
    """Weights of two independent operands n >= 0 with the density exp(-n^2 / 2 deviation^2): small ones prevail, as in
    the weights and activations of a network. Raises RedcaneError for a deviation that is not from 1 to 1000.
    """
    if not 1 <= deviation <= 1000:
        raise RedcaneError(f"the operands' deviation is {deviation:g}: give a number from 1 to 1000")
    density = np.exp(-np.square(np.arange(256) / deviation) / 2)
    return pair_weights(density, density)


def start_circuit(start: str) -> Chromosome:
    """The circuit of a recipe's `start`; RedcaneError where there is no such component."""
    if start == ARRAY:
        return array_multiplier()
    library, _, name = start.rpartition(":")
    component = load_library(library or "embedded").get(name)
    if component.signed:
        raise RedcaneError(f"{name} multiplies signed operands, and evolution is of unsigned ones: start from another")
    return from_verilog(component.verilog, component.module, *component.ports)


def make(recipe: Recipe, weights: NDArray[np.int32] | None = None, checkpoint: Path | None = None,
         progress: Callable[[Progress], None] = lambda _: None) -> Circuit:
    """Evolve a component and write its Verilog; `weights` are those of `recipe.operands`.

    What Yosys reads back from the Verilog is what was evolved, for all operand pairs, and within the limits. Raises
    RedcaneError as `evolve` does, and for a name that is no module's.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,59}", recipe.component):
        raise RedcaneError(f"`{recipe.component[:80]}` cannot be a component's name: use letters, digits and _")
    if recipe.half_normal is not None:
        weights = half_normal_weights(recipe.half_normal)
    found = evolve(recipe.limits, recipe.seed, recipe.evaluations, weights, start_circuit(recipe.start),
                   checkpoint, progress, recipe.minimise)
    table = found.table()
    figures = error_figures(table)
    comments = [
        f"Evolved by ReD-CaNe: {recipe.command()}",
        f"Limits: {recipe.limits}",
        f"All operand pairs alike: {_shown(figures)}",
        *([f"Operand pairs as weighted: {_shown(error_figures(table, weights))}"] if weights is not None else []),
    ]
    circuit = Circuit(recipe.component, found.verilog(recipe.component, comments), signed=False)
    if not np.array_equal(extract_table(circuit.verilog).table, table):
        raise RedcaneError(f"{recipe.component}: Yosys reads another circuit from its Verilog than was evolved")
    return circuit


def add(library: str, circuit: Circuit, provenance: str) -> Library:
    """Add a circuit to the user's library of that name, which is made where there is none; the rest of it stays.

    A component of that name is replaced. A new library begins with the exact multiplier, without which no accelerator
    can be assigned. Raises RedcaneError, and changes nothing, for a wrong name or a module defined twice.
    """
    check_name(library)
    folder = libraries_folder() / library
    old = load_library(library) if (folder / "library.json").is_file() else None
    kept = list(old.components.values()) if old else [load_library().exact]
    kept = [component for component in kept if component.module != circuit.label]
    circuits = [*(Circuit(c.module, c.verilog, c.module, c.signed) for c in kept), circuit]
    origin = {**{c.module: c.provenance for c in kept}, circuit.label: provenance}
    with replace_folder(folder) as fresh:
        write_library(fresh, library, circuits, origin)
    return load_library(library)


def _shown(figures: ErrorFigures) -> str:
    # NA has the paper's sign, mean(P - P'), over 65535; a bias is mean(P' - P).
    return (f"MAE {figures.mae_percent:.4g} %, worst case {figures.wce_percent:.4g} %, "
            f"std {100 * figures.nm * 65535 / 65536:.4g} %, bias {-100 * figures.na * 65535 / 65536:.4g} %, "
            f"wrong {figures.ep_percent:.4g} %")
