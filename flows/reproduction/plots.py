"""The figures of a benchmark's results as SVG, the same bytes for the same results."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from flows.reproduction.operations import saved_by_multiplier, shares
from flows.reproduction.paper import DEEPCAPS_COUNTS, SAVED
from model.files import write_atomic
from model.resilience import Resilience
from model.resilience_plots import plot_groups, plot_layers

OURS, PAPERS = "#0b6e8a", "#b9bec7"


def draw(results: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Draw all figures into a folder; their file names by what they show."""
    name = results["benchmark"]
    files = {what: f"{name}-{what}.svg" for what in ("energy", "profiles", "groups", "layers", "operands", "pareto")}
    paths = {what: folder / file for what, file in files.items()}
    resilience = Resilience.from_json(results["curves"])
    plot_groups(resilience, paths["groups"])
    plot_layers(resilience, paths["layers"])
    _energy(results["operations"], paths["energy"])
    _profiles(results["multipliers"]["shown"], paths["profiles"])
    _operands(results["multipliers"]["operands"], paths["operands"])
    _pareto(results["designs"], paths["pareto"])
    return files


def _energy(operations: Mapping[str, Any], path: Path) -> None:
    """Fig. 4, the shares of the energy, and Fig. 5, what approximate components save."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    sources = {
        "this network": operations["shares"]["network"],
        "DeepCaps, exact counts": operations["shares"]["deepcaps"],
        "DeepCaps, the paper's counts": shares(DEEPCAPS_COUNTS),
    }
    start = np.zeros(len(sources))
    for operation, color in (("multiplications", OURS), ("additions", "#7cc0a0"), ("other", "#b03a2e")):
        known = [100 - s["multiplications"] - s["additions"] if operation == "other" else s[operation]
                 for s in sources.values()]  # fmt: skip
        left.barh(list(sources), known, left=start, color=color, label=operation)
        start += known
    left.set(xlabel="% of the energy (Fig. 4)", xlim=(90, 100))
    left.legend(fontsize=7, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    ours = [saved_by_multiplier(s["multiplications"]) for s in sources.values()]
    right.barh(list(sources), ours, color=OURS)
    right.axvline(SAVED["multipliers"], color="black", linewidth=0.8, linestyle="--", label="the paper")
    right.set(xlabel="% saved by the multiplier NGR (Fig. 5)", yticks=[])
    right.legend(fontsize=7)
    _save(figure, path)


def _profiles(shown: Mapping[str, Any], path: Path) -> None:
    """Fig. 6: the errors of 1, 9 and 81 products, and the Gaussians of the same mean and deviation."""
    rows = len(shown)
    figure = Figure(figsize=(11, 2.6 * rows), layout="constrained")
    for line, (name, profiles) in zip(figure.subplots(rows, 3, squeeze=False), shown.items(), strict=True):
        for axes, found in zip(line, profiles, strict=True):
            histogram = found["histogram"]
            edges = np.linspace(histogram["first"], histogram["last"], len(histogram["counts"]) + 1)
            width, total = edges[1] - edges[0], sum(histogram["counts"])
            axes.stairs(np.array(histogram["counts"]) / (total * width), edges, fill=True, color="#9cc4d8")
            if found["deviation"] > 0:
                grid = np.linspace(edges[0], edges[-1], 300)
                z = (grid - found["mean"]) / found["deviation"]
                axes.plot(grid, np.exp(-z * z / 2) / (found["deviation"] * np.sqrt(2 * np.pi)), color="#b03a2e")
            axes.set_title(f"{name}, {found['terms']} MACs" + ("" if found["gaussian_like"] else ": not Gaussian-like"),
                           fontsize=9)  # fmt: skip
            axes.set(xlabel="error P' - P", yticks=[])
    _save(figure, path)


def _operands(operands: Mapping[str, Any], path: Path) -> None:
    """Fig. 11: how often each code stands at the multipliers of the convolutions, all and layer by layer."""
    columns = min(len(operands), 4)
    rows = -(-len(operands) // columns)
    figure = Figure(figsize=(4 * columns, 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for empty in panels[len(operands) :]:
        empty.set_axis_off()
    for axes, (name, ports) in zip(panels, operands.items(), strict=False):
        total = max(sum(ports["a"]), 1)
        for port, color, label in (("a", OURS, "activations"), ("b", "#b03a2e", "weights")):
            axes.stairs(100 * np.array(ports[port]) / total, np.arange(257), color=color, label=label, fill=port == "a",
                        alpha=0.7)  # fmt: skip
        axes.set_yscale("symlog", linthresh=0.1)  # more than half of all activations may be one code
        axes.set(xlabel="code (Eq. 1)", ylabel="% of the operands")
        axes.set_title(f"{name}: {total:,} pairs", fontsize=9)
        axes.legend(fontsize=7)
    _save(figure, path)


def _pareto(designs: Mapping[str, Any], path: Path) -> None:
    """Accuracy lost against the float network over the energy of the multipliers, relative to exact ones."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    base = designs["float"]["right"] / designs["float"]["images"]
    # the float network was not tried on the trial images: what exact multipliers get right there stands for it
    exact = next(d["components"] for d in designs["designs"] if d["kind"] == "exact")
    reference = max(d["trial"]["right"] for d in designs["designs"] if "trial" in d and d["components"] == exact)
    styles = {
        ("everywhere", "affine"): (".", "#d79b8e", "one everywhere, affine (trial images)"),
        ("everywhere", "sign-magnitude"): (".", "#8fb8c6", "one everywhere, sign-magnitude (trial images)"),
    }
    for (kind, number_format), (marker, color, label) in styles.items():
        rows = [d for d in designs["designs"] if d["kind"] == kind and number_format in d["formats"].values()]
        lost = [100 * (reference - d["trial"]["right"]) / d["trial"]["images"] for d in rows]
        axes.plot([100 * d["energy"] for d in rows], lost, marker, color=color, label=label, markersize=5)
    tested = [d for d in designs["designs"] if "test" in d]
    marks = {
        "everywhere": ("o", "one everywhere, test set"),
        "exact": ("s", "exact"),
        "paper": ("^", "the paper's method"),
        "ours": ("*", "our selection"),
    }
    for kind, (marker, label) in marks.items():
        rows = [d for d in tested if d["kind"] == kind]
        colors = ["#b03a2e" if "affine" in d["formats"].values() else OURS for d in rows]
        lost = [100 * (base - d["test"]["right"] / d["test"]["images"]) for d in rows]
        axes.scatter([100 * d["energy"] for d in rows], lost, marker=marker, c=colors, label=label, zorder=3,
                     s=120 if kind == "ours" else 40)  # fmt: skip
    axes.axhline(designs["budget_points"], color="grey", linewidth=0.8, linestyle="--", label="the budget")
    axes.set_yscale("symlog", linthresh=1)
    axes.invert_yaxis()
    axes.set(xlabel=f"% of the exact multipliers' {designs['cost'].split(' (')[0]}",
             ylabel="points of accuracy lost")  # fmt: skip
    axes.legend(fontsize=7)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "redcane"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    write_atomic(path, buffer.getvalue())
