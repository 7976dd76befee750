"""The embedded library: exact multipliers of unsigned and of signed operands, a graded family of multipliers of our
own, evolved from the former, and another that joins partial products by OR (or_family.py).

`python -m model.multipliers.embedded_family FOLDER` makes it anew, the same to the byte, in about half an hour of one
core; FOLDER keeps what is finished, so that it can be stopped. `mul8u_eNN` are for operands that are all alike,
`mul8u_sNN` for small ones, as networks have them. `e` bounds the worst case by 8 MAE and the bias by MAE / 20.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tqdm import tqdm  # type: ignore[import-untyped]  # it has no stubs

from model.errors import RedcaneError
from model.files import replace_folder, write_atomic
from model.multipliers import family, or_family
from model.multipliers.evolve import Limits, Progress
from model.multipliers.evolved import Recipe, make
from model.multipliers.library import EMBEDDED, write_library
from model.multipliers.netlist import Circuit

EXACT = family.Structure("mul8u_exact", "UnsignedDaddaMultiplier", {}, "UnsignedRippleCarryAdder")
SIGNED_EXACT = family.Structure("mul8s_exact", "SignedArrayMultiplier", {})
EVALUATIONS, WEIGHTED_EVALUATIONS = 10_000_000, 3_000_000
UNIFORM, SMALL = 24, 9


def recipes() -> list[Recipe]:
    """How every evolved component is made."""
    found = []
    for index in range(UNIFORM):
        mae = _short(0.005 * 2000 ** (index / (UNIFORM - 1)))
        limits = Limits(mae=mae, wce=_short(8 * mae), bias=_short(mae / 20))
        found.append(Recipe(f"mul8u_e{index + 1:02}", limits, 1, EVALUATIONS, "mul8u_exact"))
    for index in range(SMALL):
        weighted = _short(0.002 * 125 ** (index / 7))
        limits = Limits(mae=_short(20 * weighted), wce=_short(160 * weighted), weighted_mae=weighted,
                        weighted_bias=_short(weighted / 10))
        found.append(Recipe(f"mul8u_s{index + 1:02}", limits, 1, WEIGHTED_EVALUATIONS, "mul8u_exact", half_normal=48))
    return found


def _short(value: float) -> float:
    """Two significant digits."""
    return float(f"{value:.2g}")


def evolve_all(work: Path) -> list[Circuit]:
    """The Verilog of every recipe, from `work` where it is finished there."""
    circuits = []
    for recipe in recipes():
        path = work / f"{recipe.component}.v"
        head = f"// Evolved by ReD-CaNe: {recipe.command()}\n"
        if not (path.is_file() and path.read_text(encoding="utf-8").startswith(head)):
            with tqdm(desc=recipe.component, total=recipe.evaluations, unit_scale=True) as bar:
                def show(progress: Progress, bar: tqdm = bar) -> None:
                    bar.set_postfix(transistors=progress.cost, refresh=False)
                    bar.update(progress.evaluations - bar.n)

                circuit = make(recipe, checkpoint=work / f"{recipe.component}.npz", progress=show)
            write_atomic(path, circuit.verilog)
        circuits.append(Circuit(recipe.component, path.read_text(encoding="utf-8")))
    return circuits


def write(work: Path, folder: Path = EMBEDDED) -> None:
    """Make the embedded library anew in `folder`, which it replaces."""
    exact = [EXACT, SIGNED_EXACT]
    joined = or_family.select()
    circuits = [*(Circuit(structure.component, family.verilog(structure)) for structure in exact), *evolve_all(work),
                *(Circuit(component, or_family.verilog(component)) for component in joined)]
    provenance = {structure.component: f"ariths-gen {structure}" for structure in exact}
    provenance |= {recipe.component: recipe.command() for recipe in recipes()}
    provenance |= dict.fromkeys(joined, "partial products joined by OR")
    with replace_folder(folder) as fresh:
        write_library(fresh, "embedded", circuits, provenance)


if __name__ == "__main__":
    try:
        write(Path(sys.argv[1]))
    except IndexError:
        sys.exit("error: name a folder for what is finished")
    except RedcaneError as error:
        sys.exit(f"error: {error}")
