"""`redcane library profile`: the error profiles of a library's multipliers, and the paper's Table IV beside ours."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from model.errors import RedcaneError

if TYPE_CHECKING:
    from model.multipliers.library import Library

Histograms = tuple[NDArray[np.int64], NDArray[np.int64]]  # operand pairs whose product is added, and subtracted


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
                        help="NA and NM for the operands of this run's convolutions, too")  # fmt: skip
    action.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="default: %(default)s")
    action.add_argument("--plots", type=Path, metavar="DIR", help="also draw every profile into this folder (SVG)")
    action.set_defaults(command=profile)


def profile(chosen: argparse.Namespace) -> None:
    """Print the profiles of a library, or Table IV."""
    from model.multipliers.library import load_library

    library = load_library(chosen.library)
    real = captured(chosen.operands, chosen.runs) if chosen.operands else None
    print(table_iv(library, real) if chosen.paper else profiles(library, real, chosen.plots))


def profiles(library: Library, real: Histograms | None, plots: Path | None) -> str:
    """The profile of every component at 1, 9 and 81 terms, and how many are Gaussian-like."""
    from flows.tables import table
    from model.multipliers.error_figures import error_figures
    from model.multipliers.profile import TERMS, error_profile, plot_profile, sample_errors

    rows, gaussian = [], dict.fromkeys(TERMS, 0)
    inexact = [c for c in library.components.values() if not c.is_exact]
    for component in inexact:
        sampled = {terms: sample_errors(component.table, terms) for terms in TERMS}
        figures = [] if real is None else [error_figures(component.table, *real)]
        for terms, sums in sampled.items():
            found = error_profile(sums, terms)
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
        if plots is not None:
            plots.mkdir(parents=True, exist_ok=True)
            plot_profile(component.name, sampled, plots / f"{component.name}.svg")
    header = ["component", "MACs", "mean", "deviation", "skew", "ex. kurtosis", "KS distance", "Gaussian-like"]
    header += [] if real is None else ["NA real", "NM real"]
    counts = ", ".join(f"{count} of {len(inexact)} at {terms}" for terms, count in gaussian.items())
    return f"{table(header, rows)}\n\nGaussian-like (|skew| < 1, |excess kurtosis| < 2), by MACs: {counts}"


def table_iv(library: Library, real: Histograms | None) -> str:
    """The paper's Table IV beside the same figures of this library; R = 65535, NA = mean(P - P') / R."""
    from flows.tables import table
    from model.multipliers.error_figures import error_figures
    from model.multipliers.profile import TABLE_IV

    missing = [name for name in TABLE_IV if name not in library.components]
    if missing:
        raise RedcaneError(
            f"the library {library.name} lacks {missing[0]} of the paper's Table IV: import EvoApproxLib v1.0 "
            "(`redcane library import PATH`) and give `--library evoapprox`"
        )
    rows, equal = [], 0
    for name, (na, nm, na_real, nm_real) in TABLE_IV.items():
        figures = error_figures(library.components[name].table)
        equal += (round(figures.na, 4) == na) + (round(figures.nm, 4) == nm)
        row = [name, f"{na:.4f}", f"{figures.na:.4f}", f"{nm:.4f}", f"{figures.nm:.4f}"]
        row += [f"{na_real:.4f}", f"{nm_real:.4f}"]
        if real is not None:
            ours = error_figures(library.components[name].table, *real)
            row += [f"{ours.na:.4f}", f"{ours.nm:.4f}"]
        rows.append(row)
    header = ["component", "NA paper", "NA", "NM paper", "NM", "NA real, paper", "NM real, paper"]
    header += [] if real is None else ["NA real, ours", "NM real, ours"]
    return f"{table(header, rows)}\n\nuniform operands: {equal} of {2 * len(TABLE_IV)} figures equal to 4 decimals"


def captured(config_path: Path, runs: Path) -> Histograms:
    """How often the multipliers of a run's convolutions see each operand pair; the run is made where it is not there.
    """
    from flows.config import Config
    from flows.run import Run
    from flows.stages import bring_up
    from model.capture import capture
    from model.emulation import Emulator
    from model.quantize import image_codes

    config = Config.load(config_path)
    run = Run(config, runs / config.name)
    bring_up(run, "quantize")
    network = run.qnetwork()
    images = image_codes(network, run.dataset.train.images[: config.assign.images])
    found = capture(Emulator(network), images, seed=config.seed)
    added, subtracted = np.zeros((256, 256), np.int64), np.zeros((256, 256), np.int64)
    for key, operands in found.items():
        if key.endswith(".mac"):
            plus, minus = operands.port_histogram()
            added += plus
            subtracted += minus
    return added, subtracted
