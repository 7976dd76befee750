"""A graded family of truncated and broken-array multipliers, and the exact one from which the embedded ones evolved.

Made with `ariths-gen` (by EvoApproxLib's authors), which the product does not need to run:
`python -m model.multipliers.family FOLDER` writes them as Verilog, with their library.json; what evolution finds is
compared with them.

A component's name says its function: `bam_hXvY` adds only the partial products a_i b_j with j >= X and i + j >= Y,
`trunc_K` only those with i >= K and j >= K. Of the structures that compute it, the one with the fewest transistors
is taken.
"""

from __future__ import annotations

import importlib
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.errors import RedcaneError
from model.files import replace_folder
from model.multipliers.error_figures import error_figures
from model.multipliers.library import write_library
from model.multipliers.netlist import Circuit, extract_many

LARGEST_MAE_PERCENT = 8.0
SMALLEST_STEP = 0.975
"""A component is kept where it needs at most this share of the transistors of the last one kept."""


class Structure(NamedTuple):
    """A multiplier as ariths-gen makes it: class, arguments, the class of the last adder where there is a choice."""

    component: str
    generator: str
    arguments: dict[str, int]
    adder: str | None = None

    def __str__(self) -> str:
        arguments = [f"{key}={value}" for key, value in self.arguments.items()]
        return f"{self.generator}({', '.join(arguments + ([self.adder] if self.adder else []))})"


def definition(component: str) -> NDArray[np.uint16]:
    """The products that a component's name promises, uint16 [256, 256] as [a, b]."""
    if component == "mul8u_exact":
        first_a, first_b, column = 0, 0, 0
    elif found := re.fullmatch(r"mul8u_bam_h(\d+)v(\d+)", component):
        first_a, first_b, column = 0, int(found[1]), int(found[2])
    elif found := re.fullmatch(r"mul8u_trunc_(\d+)", component):
        first_a, first_b, column = int(found[1]), int(found[1]), 0
    else:
        raise RedcaneError(f"`{component}` is not a component of this family")
    a, b = np.arange(256)[:, None], np.arange(256)[None, :]
    return sum(((a >> i & 1) * (b >> j & 1) << i + j for i in range(first_a, 8) for j in range(first_b, 8)
                if i + j >= column), np.zeros((256, 256), np.int64)).astype(np.uint16)


def candidates() -> Iterator[Structure]:
    """Every structure that is tried, some computing the same."""
    adders = ("UnsignedCarryLookaheadAdder", "UnsignedRippleCarryAdder")
    yield Structure("mul8u_exact", "UnsignedArrayMultiplier", {})
    for kind in ("CarrySave", "Dadda", "Wallace"):
        yield from (Structure("mul8u_exact", f"Unsigned{kind}Multiplier", {}, adder) for adder in adders)
    for cut in range(1, 6):
        arguments = {"truncation_cut": cut}
        yield Structure(f"mul8u_trunc_{cut}", "UnsignedTruncatedArrayMultiplier", arguments)
        yield from (Structure(f"mul8u_trunc_{cut}", "UnsignedTruncatedCarrySaveMultiplier", arguments, adder)
                    for adder in adders)
    # Rows below the horizontal cut reach no further than the vertical one allows: h < v, and v <= 12 keeps MAE < 8 %.
    for row in range(6):
        for column in range(row + 1, 13):
            name, arguments = f"mul8u_bam_h{row}v{column}", {"horizontal_cut": row, "vertical_cut": column}
            yield Structure(name, "UnsignedBrokenArrayMultiplier", arguments)
            if column < 7:  # from 7 on, ariths-gen's carry-save form drops more than the cuts say
                yield from (Structure(name, "UnsignedBrokenCarrySaveMultiplier", arguments, adder) for adder in adders)


def verilog(structure: Structure) -> str:
    """The Verilog of a structure; RedcaneError where ariths-gen is not installed."""
    try:
        buses, adders, multipliers, approximate = (importlib.import_module(f"ariths_gen.{name}") for name in (
            "wire_components", "multi_bit_circuits.adders", "multi_bit_circuits.multipliers",
            "multi_bit_circuits.approximate_multipliers"))
    except ImportError:
        raise RedcaneError("ariths-gen is missing: install it with `pip install 'redcane[library-tools]'`") from None
    module = multipliers if hasattr(multipliers, structure.generator) else approximate
    options = {} if structure.adder is None else {"unsigned_adder_class_name": getattr(adders, structure.adder)}
    circuit = getattr(module, structure.generator)(
        a=buses.Bus(N=8, prefix="a"), b=buses.Bus(N=8, prefix="b"), name=structure.component,
        **structure.arguments, **options)
    text = io.StringIO()
    circuit.get_v_code_flat(text)
    return f"// Made by ariths-gen 1.1: {structure}\n{text.getvalue()}"


def select() -> list[Structure]:
    """The family: the Pareto front of (MAE, transistors) over all candidates, thinned by SMALLEST_STEP.

    A structure whose products are not those of its `definition` is left out.
    """
    structures = list(candidates())
    extracted = extract_many([Circuit(str(s), verilog(s)) for s in structures])
    ranked = sorted((error_figures(found.table).mae_percent, found.transistors, index)
                    for index, found in enumerate(extracted)
                    if np.array_equal(found.table, definition(structures[index].component)))
    chosen: list[Structure] = []
    last = float("inf")
    for mae, transistors, index in ranked:
        if mae <= LARGEST_MAE_PERCENT and transistors <= SMALLEST_STEP * last:
            chosen.append(structures[index])
            last = transistors
    return chosen


def write(folder: Path) -> None:
    """Make the family a library in `folder`, which it replaces."""
    chosen = select()
    with replace_folder(folder) as fresh:
        circuits = [Circuit(str(structure), verilog(structure)) for structure in chosen]
        write_library(fresh, "ariths-gen", circuits, {str(s): f"ariths-gen {s}" for s in chosen})


if __name__ == "__main__":
    try:
        write(Path(sys.argv[1]))
    except IndexError:
        sys.exit("error: name the folder to write")
    except RedcaneError as error:
        sys.exit(f"error: {error}")
