"""Plots of error profiles and operands, in the manner of the ReD-CaNe paper's Fig. 6 and Fig. 11. All write SVG, the
same bytes for the same data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]  # it has no stubs

from model.multipliers.error_figures import ErrorFigures
from model.multipliers.profile import error_profile

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_profile(title: str, errors: Mapping[int, NDArray[np.int64]], path: Path) -> None:
    """Fig. 6: the errors of sums of 1, 9 and 81 products (from `profile.sample_errors`) and their Gaussian fits."""
    figure = _figure(len(errors), 1)
    for axes, (terms, sums) in zip(figure.subplots(1, len(errors), squeeze=False)[0], errors.items(), strict=True):
        profile = error_profile(sums, terms)
        axes.hist(sums, bins=80, density=True, color="#9cc4d8")
        if profile.deviation > 0:
            grid = np.linspace(sums.min(), sums.max(), 400)
            axes.plot(grid, stats.norm.pdf(grid, profile.mean, profile.deviation), color="#b03a2e", linewidth=1)
        axes.set_title(f"{title}, {terms} MAC{'s' if terms > 1 else ''}", fontsize=9)
        axes.set_xlabel("error P' - P")
        axes.set_yticks([])
    _save(figure, path)


def plot_operands(histograms: Mapping[str, NDArray[np.int64]], path: Path) -> None:
    """Fig. 11: how often each value stands at the ports A and B, a panel for each of the histograms [256, 256], [a, b],
    by what they are of.
    """
    columns = min(3, len(histograms))
    rows = -(-len(histograms) // columns)
    figure = _figure(columns, rows)
    panels = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for axes, (name, counts) in zip(panels, histograms.items(), strict=False):
        total = max(int(counts.sum()), 1)
        for port, values, color in (("A", counts.sum(axis=1), "#0b6e8a"), ("B", counts.sum(axis=0), "#b03a2e")):
            axes.stairs(100 * values / total, np.arange(257), color=color, label=port, fill=port == "A", alpha=0.7)
        axes.set_yscale("symlog", linthresh=0.1)  # a half of all activations may be 0, which would hide the rest
        axes.set_title(f"{name}: {total:,} pairs", fontsize=9)
        axes.set_xlabel("value at the port")
        axes.set_ylabel("% of pairs")
        axes.legend(fontsize=7)
    for axes in panels[len(histograms):]:
        axes.set_visible(False)
    _save(figure, path)


def plot_noise(uniform: Sequence[ErrorFigures], real: Mapping[str, Sequence[ErrorFigures]], path: Path) -> None:
    """NM and NA of the same components for uniform operands and for those of each operation: on the line, both are
    alike.
    """
    figure = _figure(2, 1.4)
    for axes, name in zip(figure.subplots(1, 2), ("nm", "na"), strict=True):
        over = [getattr(f, name) for f in uniform]
        for operation, figures in real.items():
            axes.plot(over, [getattr(f, name) for f in figures], ".", markersize=4, label=operation)
        low, high = min(0.0, *over), max(1e-6, *over)
        axes.plot([low, high], [low, high], color="#667085", linewidth=0.8)
        axes.set_xscale("symlog", linthresh=1e-4)
        axes.set_yscale("symlog", linthresh=1e-4)
        axes.set_xlabel(f"{name.upper()}, uniform operands")
        axes.set_ylabel(f"{name.upper()}, the operation's operands")
        axes.legend(fontsize=7)
    _save(figure, path)


def _figure(columns: int, rows: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(4 * columns, 3.2 * rows), layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    import matplotlib as mpl

    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "redcane"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
