"""`redcane library characterize`: what a library's multipliers cost in the cells of a Liberty file, all by one flow."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.multipliers.characterize import Characterisation
    from model.multipliers.component import Multiplier
    from model.multipliers.costs import Measured
    from model.multipliers.library import Library

_FEWEST_TO_CORRELATE = 3


def add_parser(actions: argparse._SubParsersAction[Any]) -> None:
    """Add the action to those of `redcane library`."""
    action = actions.add_parser(
        "characterize",
        help="measure area, delay and energy of multipliers in a cell library",
        description="Map every multiplier to the cells of a Liberty file by one and the same flow, check each mapped "
        "netlist for all 65,536 operand pairs, and tell area, delay and energy per multiplication beside the published "
        "figures. Delay and energy need OpenSTA (`sta`).",
    )
    action.add_argument("--library", default="embedded", metavar="NAME", help="default: %(default)s")
    action.add_argument("--liberty", metavar="FILE", help="default: that of Debian's package qflow-tech-osu018")
    action.add_argument("--operands", type=Path, metavar="CONFIG",
                        help="energy for the operands of this run's convolutions, not for uniform ones")  # fmt: skip
    action.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="default: %(default)s")
    action.add_argument("--forget", action="store_true", help="forget what was measured")
    action.set_defaults(command=characterize_library)


def characterize_library(chosen: argparse.Namespace) -> None:
    """Print the costs of a library's components, and keep them: from then on they are the library's cost."""
    from flows.synthesize import find_liberty
    from model.multipliers.library import costs_path, load_library
    from model.opensta import find_opensta

    library = load_library(chosen.library)
    if chosen.forget:
        costs_path(library.name).unlink(missing_ok=True)
        print(f"the cost of {library.name}'s multipliers is {load_library(chosen.library).cost_name}")
        return
    liberty = find_liberty(chosen.liberty)
    if liberty is None:
        print(published_only(library))
    else:
        text, measured = report(library, liberty, find_opensta(), chosen.operands, chosen.runs)
        measured.save(costs_path(library.name))
        print(f"{text}\nfrom now on, the cost of {library.name}'s multipliers is "
              f"{load_library(chosen.library).cost_name}")


def published_only(library: Library) -> str:
    """Without a Liberty file: what the files' authors published, and the transistors that we count."""
    from flows.tables import table

    rows = [[c.name, c.cost.transistors, *map(_number, _published(c))] for c in library.components.values()]
    header = ["component", "transistors", "published power mW", "published area um2", "published delay ns"]
    return (f"{table(header, rows)}\n\nno Liberty file, so nothing was measured: install qflow-tech-osu018 "
            "(Debian, Ubuntu) or give `--liberty FILE`")  # fmt: skip


def report(library: Library, liberty: Path, opensta: str | None, operands: Path | None,
           runs: Path) -> tuple[str, Measured]:
    """The costs, beside the published ones in words: how they were measured, and the rank correlations."""
    from tqdm import tqdm  # type: ignore[import-untyped]  # it has no stubs

    from flows.tables import table
    from model.files import digest
    from model.multipliers.characterize import SEQUENCE, characterize, operand_sequence
    from model.multipliers.costs import Measured
    from model.opensta import CLOCK_NS, PACKAGE

    components = list(library.components.values())
    found: dict[str, Characterisation] = {}
    with tqdm(total=len(components), desc="characterize", disable=None, leave=False) as bar:
        for signed in sorted({c.signed for c in components}):
            histogram, seen = None, "uniform operands"
            if operands is not None and opensta is not None:
                from flows.operands import convolutions, histograms

                added, subtracted = convolutions(histograms(operands, runs, signed))
                histogram, seen = added + subtracted, f"the operands of {operands}'s convolutions"
            alike = [c for c in components if c.signed == signed]
            found |= characterize(alike, liberty, opensta, operand_sequence(histogram), bar.update)
    rows = [[c.name, found[c.name].cells, f"{found[c.name].area:.0f}", _number(found[c.name].delay_ns, 3),
             _number(found[c.name].energy_pj, 3), *map(_number, _published(c))] for c in components]  # fmt: skip
    header = ["component", "cells", "area um2", "delay ns", "energy pJ", "published power mW", "published area um2",
              "published delay ns"]  # fmt: skip
    notes = [f"cells of {liberty.name}; every mapped netlist equals its component's table for all 65,536 operand pairs"]
    if opensta is None:
        notes.append(f"no OpenSTA, so no delay and no energy: install {PACKAGE} (Debian, Ubuntu)")
    else:
        notes.append(f"energy per multiplication at {1e3 / CLOCK_NS:g} MHz, toggles without glitches over "
                     f"{SEQUENCE:,} pairs of {seen}, drawn independently")  # fmt: skip
    hashes = {c.name: digest(c.verilog.encode()) for c in components}
    measured = Measured(cells=liberty.name[:100], liberty_sha256=digest(liberty), operands=seen[:100],
                        components=found, verilog_sha256=hashes)
    return "\n".join([table(header, rows), "", *notes, *correlations(components, found)]), measured


def correlations(components: Sequence[Multiplier], found: Mapping[str, Characterisation]) -> list[str]:
    """Spearman's rank correlations of what was measured with what is published, a line each, where there is enough.

    Signed components apart from unsigned ones, since they were not published as one family.
    """
    from model.multipliers.product_table import kind_of_operands

    return [line for signed in (False, True)
            for line in _correlations([c for c in components if c.signed == signed], found, kind_of_operands(signed))]


def _correlations(components: Sequence[Multiplier], found: Mapping[str, Characterisation], kind: str) -> list[str]:
    from scipy.stats import spearmanr  # type: ignore[import-untyped]  # it has no stubs

    lines = []
    for ours, theirs, pairs in (
        ("energy", "power", [(found[c.name].energy_pj, c.cost.power_mw) for c in components]),
        ("area", "area", [(found[c.name].area, c.cost.area_um2) for c in components]),
        ("delay", "delay", [(found[c.name].delay_ns, c.cost.delay_ns) for c in components]),
    ):
        both = [(mine, published) for mine, published in pairs if mine is not None and published is not None]
        if len(both) >= _FEWEST_TO_CORRELATE and all(len(set(side)) > 1 for side in zip(*both, strict=True)):
            rho = spearmanr(*zip(*both, strict=True)).statistic
            lines.append(f"rank correlation of {ours} with published {theirs}: {rho:.4f} "
                         f"over {len(both)} {kind} components")  # fmt: skip
    return lines


def _published(component: Multiplier) -> tuple[float | None, float | None, float | None]:
    return component.cost.power_mw, component.cost.area_um2, component.cost.delay_ns


def _number(value: float | None, decimals: int | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if decimals is None else f"{value:.{decimals}f}"
