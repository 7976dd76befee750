"""The analysis as figures in the manner of the paper's Fig. 9 (group-wise) and Fig. 10 (layer-wise)."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from model.files import write_atomic
from model.operations import GROUPS
from model.resilience import Curve, Resilience

CROWDED = 7
"""Curves from which on a panel's legend stands beside it, in smaller letters."""


def plot_groups(result: Resilience, path: Path) -> None:
    """Fig. 9: change of accuracy against NM, one line a group. Writes an SVG, the same bytes for the same result."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    _draw(figure.subplots(), result, {GROUPS[group]: curve for group, curve in result.groups.items()}, "Group-wise")
    _save(figure, path)


def plot_layers(result: Resilience, path: Path) -> None:
    """Fig. 10: change of accuracy against NM, one panel a non-resilient group, one line a layer. Writes an SVG."""
    panels = max(1, len(result.layers))
    across = min(panels, 2)
    down = -(-panels // across)
    wide = 7 if any(len(layers) >= CROWDED for layers in result.layers.values()) else 6
    figure = Figure(figsize=(wide * across, 4 * down), layout="constrained")
    if result.layers:
        axes = figure.subplots(down, across, squeeze=False).flatten()
        for empty in axes[panels:]:
            empty.set_axis_off()
        for panel, (group, layers) in zip(axes, result.layers.items(), strict=False):
            _draw(panel, result, layers, f"Layer-wise: {GROUPS[group]}")
    else:
        figure.text(0.5, 0.5, "Every group is resilient: no layer-wise analysis", ha="center")
    _save(figure, path)


def _draw(axes: Axes, result: Resilience, curves: dict[str, Curve], title: str) -> None:
    """Mean change of accuracy with its standard deviation over the seeds; large NM on the left, as in the paper.

    The adaptive search leaves out the magnitudes that it did not need, and estimates the others.
    """
    magnitudes = sorted(result.settings.noise_magnitudes, reverse=True)
    crowded = len(curves) >= CROWDED
    colors = matplotlib.colormaps["tab20" if crowded else "tab10"].colors  # type: ignore[attr-defined]  # they are listed
    for number, (label, curve) in enumerate(curves.items()):
        measured = [(place, nm) for place, nm in enumerate(magnitudes) if nm in curve.points]
        change = [100 * (curve.mean(nm) - result.clean_accuracy) for _, nm in measured]
        spread = [100 * curve.deviation(nm) for _, nm in measured]
        axes.errorbar(
            [place for place, _ in measured], change, spread,
            label=label, marker="o", markersize=3, linewidth=1, capsize=2, color=colors[number % len(colors)],
        )  # fmt: skip
    axes.axhline(-result.settings.tolerance_points, color="grey", linewidth=0.8, linestyle="--", label="tolerance")
    axes.set_xticks(range(len(magnitudes)), [f"{nm:g}" for nm in magnitudes], rotation=45)
    axes.set(title=title, xlabel="Noise magnitude NM", ylabel="Change of accuracy (points)")
    if crowded:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7)
    else:
        axes.legend()


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "redcane"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    write_atomic(path, buffer.getvalue())
