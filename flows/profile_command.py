"""`redcane library profile`: the error profiles of a library's multipliers, and the paper's Table IV beside ours."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.errors import RedcaneError

if TYPE_CHECKING:
    from flows.operands import Histograms
    from model.multipliers.component import Multiplier
    from model.multipliers.error_figures import ErrorFigures
    from model.multipliers.library import Library


def add_parser(actions: argparse._SubParsersAction[Any]) -> None:
    """Add the action to those of `redcane library`."""
    action = actions.add_parser(
        "profile",
        help="show how the errors of multipliers are distributed",
        description="Errors P' - P of one multiplication and of sums of 9 and 81, 100,000 samples each, with a "
        "Gaussian fit. Gaussian-like: |skew| < 1 and |excess kurtosis| < 2.",
    )
    action.add_argument("--library", default="embedded", metavar="NAME", help="default: %(default)s")
    action.add_argument("--paper", action="store_true", help="the paper's Table IV beside ours (with EvoApproxLib)")
    action.add_argument("--operands", type=Path, metavar="CONFIG",
                        help="NA and NM for the operands of this run's operations, too")  # fmt: skip
    action.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="default: %(default)s")
    action.add_argument("--plots", type=Path, metavar="DIR",
                        help="also draw every profile into this folder (SVG), and the operands")  # fmt: skip
    action.set_defaults(command=profile)


def profile(chosen: argparse.Namespace) -> None:
    """Print the profiles of a library or Table IV, and the figures on real operands; draw what is wanted."""
    from flows.operands import convolutions, histograms
    from model.multipliers.library import load_library

    library = load_library(chosen.library)
    components = in_table_iv(library) if chosen.paper else list(library.components.values())
    for signed in sorted({c.signed for c in components}):
        inexact = [c for c in components if not c.is_exact and c.signed == signed]
        if not inexact and not chosen.paper:
            continue
        if signed:
            print("\nmultipliers of signed operands:\n")
        real = histograms(chosen.operands, chosen.runs, signed) if chosen.operands else {}
        pooled = convolutions(real) if real else None
        print(table_iv(components, pooled) if chosen.paper else profiles(inexact, pooled))
        if real:
            print(f"\n{by_operation(inexact, real, chosen.operands)}")
        if chosen.plots:
            folder = chosen.plots / "signed" if signed else chosen.plots
            print(f"\n{draw(inexact, real, folder)} plots in {folder}")


def profiles(inexact: Sequence[Multiplier], real: Histograms | None) -> str:
    """The profile of every component at 1, 9 and 81 terms, and how many are Gaussian-like."""
    from flows.tables import table
    from model.multipliers.error_figures import error_figures
    from model.multipliers.profile import TERMS, error_profile, sample_errors

    rows, gaussian = [], dict.fromkeys(TERMS, 0)
    for component in inexact:
        figures = [] if real is None else [component.figures, error_figures(component.table, *real)]
        for terms in TERMS:
            found = error_profile(sample_errors(component.table, terms), terms)
            gaussian[terms] += found.gaussian_like
            rows.append(
                [
                    component.name if terms == TERMS[0] else "",
                    terms,
                    f"{found.mean:.1f}",
                    f"{found.deviation:.1f}",
                    f"{found.skew:.2f}",
                    f"{found.excess_kurtosis:.2f}",
                    f"{found.ks_distance:.3f}",
                    "yes" if found.gaussian_like else "no",
                    *(f"{x:.4f}" if terms == TERMS[0] else "" for f in figures for x in (f.na, f.nm)),
                ]
            )
    header = ["component", "MACs", "mean", "deviation", "skew", "ex. kurtosis", "KS distance", "Gaussian-like"]
    header += [] if real is None else ["NA uniform", "NM uniform", "NA real", "NM real"]
    counts = ", ".join(f"{count} of {len(inexact)} at {terms}" for terms, count in gaussian.items())
    return f"{table(header, rows)}\n\nGaussian-like (|skew| < 1, |excess kurtosis| < 2), by MACs: {counts}"


def in_table_iv(library: Library) -> list[Multiplier]:
    """The components of the paper's Table IV, in its order; RedcaneError where the library lacks one."""
    from model.multipliers.profile import TABLE_IV

    missing = [name for name in TABLE_IV if name not in library.components]
    if missing:
        raise RedcaneError(
            f"the library {library.name} lacks {missing[0]} of the paper's Table IV: get EvoApproxLib v1.0 "
            "(`redcane library fetch`) and give `--library evoapprox`"
        )
    return [library.components[name] for name in TABLE_IV]


def table_iv(components: Iterable[Multiplier], real: Histograms | None) -> str:
    """The paper's Table IV beside the same figures of ours; R = 65535, NA = mean(P - P') / R."""
    from flows.tables import table
    from model.multipliers.error_figures import error_figures
    from model.multipliers.profile import TABLE_IV

    rows, equal = [], 0
    for component in components:
        na, nm, na_real, nm_real = TABLE_IV[component.name]
        figures = component.figures
        equal += (round(figures.na, 4) == na) + (round(figures.nm, 4) == nm)
        row = [component.name, f"{na:.4f}", f"{figures.na:.4f}", f"{nm:.4f}", f"{figures.nm:.4f}"]
        row += [f"{na_real:.4f}", f"{nm_real:.4f}"]
        if real is not None:
            ours = error_figures(component.table, *real)
            row += [f"{ours.na:.4f}", f"{ours.nm:.4f}"]
        rows.append(row)
    header = ["component", "NA paper", "NA", "NM paper", "NM", "NA real, paper", "NM real, paper"]
    header += [] if real is None else ["NA real, ours", "NM real, ours"]
    return f"{table(header, rows)}\n\nuniform operands: {equal} of {2 * len(TABLE_IV)} figures equal to 4 decimals"


def by_operation(inexact: Iterable[Multiplier], real: dict[str, Histograms], config: Path) -> str:
    """NA and NM of every component for uniform operands and for those of each operation (the paper's Fig. 11)."""
    from flows.tables import table

    rows = []
    for component in inexact:
        found = [component.figures, *on_operands(component, real)]
        rows.append([component.name, *(f"{x:.4f}" for f in found for x in (f.na, f.nm))])
    header = ["component", *(f"{x} {key}" for key in ("uniform", *real) for x in ("NA", "NM"))]
    counts = ", ".join(f"{key} {sum(int(h.sum()) for h in both):,}" for key, both in real.items())
    return f"{table(header, rows)}\n\noperand pairs sampled in {config}'s network on its images: {counts}"


def on_operands(component: Multiplier, real: dict[str, Histograms]) -> list[ErrorFigures]:
    """A component's figures for the operands of each operation."""
    from model.multipliers.error_figures import error_figures

    return [error_figures(component.table, *both) for both in real.values()]


def draw(inexact: Sequence[Multiplier], real: dict[str, Histograms], folder: Path) -> int:
    """Fig. 6 for each component, and with real operands Fig. 11 and their NA and NM; returns the number of files."""
    from flows.operands import convolutions
    from model.multipliers.profile import TERMS, sample_errors
    from model.multipliers.profile_plots import plot_noise, plot_operands, plot_profile

    for component in inexact:
        sampled = {terms: sample_errors(component.table, terms) for terms in TERMS}
        plot_profile(component.name, sampled, folder / f"{component.name}.svg")
    if not real:
        return len(inexact)
    seen = {"all convolutions": convolutions(real), **real}
    pairs = {key: added + subtracted for key, (added, subtracted) in seen.items()}
    plot_operands(pairs, folder / "operands.svg")
    figures = [on_operands(component, real) for component in inexact]
    columns = {key: [row[k] for row in figures] for k, key in enumerate(real)}
    plot_noise([component.figures for component in inexact], columns, folder / "noise.svg")
    return len(inexact) + 2
