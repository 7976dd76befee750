"""How well costs of multipliers tell their energy in a network's operations, as OpenSTA has it in a cell library.

    python benchmarks/switching.py compact-mnist:embedded compact-mnist:evoapprox ... [--runs runs]

Every argument is a file in configs/, whose network is trained where it is not, and a library. For each operation, each
component's energy with the operation's own operands, in the cells of qflow-tech-osu018, is compared with: the
transistors that switch in it (what `redcane assign` compares by), its transistors, and its published power. Told are
Spearman's rank correlation, and the mean error of the energy (of the mean energy) if one factor, the same for all
operations and components, makes energies of the costs. Wants OpenSTA. Results are kept in switching.json beside this
file, of other arguments too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import subjects
from scipy.stats import spearmanr  # type: ignore[import-untyped]  # it has no stubs

from flows.operands import captured
from flows.tables import table
from model.multipliers.characterize import characterize
from model.multipliers.library import load_library
from model.multipliers.switching import switched_transistors

HERE = Path(__file__).parent
RESULTS = HERE / "switching.json"


def measure(name: str, library: str, runs: Path, liberty: Path, opensta: str) -> dict[str, Any]:
    """Energies and costs of a library's unsigned components in a network's operations, compared."""
    components = [c for c in load_library(library).components.values() if not c.signed]
    operands = {key: c.operands() for key, c in captured(HERE.parent / "configs" / f"{name}.yaml", runs).items()}
    switched = switched_transistors(components, operands)
    energies: dict[str, list[float]] = {}
    for key, pairs in operands.items():
        found = characterize(components, liberty, opensta, pairs)
        energies[key] = [found[c.name].energy_pj or 0.0 for c in components]
        print(key, flush=True)
    costs = {
        "switched transistors": {key: [switched[key][c.name] for c in components] for key in operands},
        "transistors": {key: [float(c.cost.transistors) for c in components] for key in operands},
    }
    if all(c.cost.power_mw is not None for c in components):
        costs["published power"] = {key: [c.cost.power_mw or 0.0 for c in components] for key in operands}
    rows = {}
    energy = np.concatenate(list(energies.values()))
    for cost, of in costs.items():
        values = np.concatenate(list(of.values()))
        factor = float(values @ energy / (values @ values))
        ranks = {key: float(spearmanr(of[key], energies[key]).statistic) for key in operands}
        error = float(np.abs(factor * values - energy).mean() / energy.mean())
        rows[cost] = {"rank_correlation": ranks, "mean_error": error, "fj_per_unit": 1e3 * factor}
    exact = next(k for k, c in enumerate(components) if c.is_exact)
    taken = {key: of[exact] for key, of in energies.items()}  # pJ a multiplication
    return {"components": len(components), "exact_pj": taken, "costs": rows}


def summary(known: dict[str, Any]) -> str:
    """The results as text."""
    rows = []
    for name, row in known.items():
        for cost, of in row["costs"].items():
            ranks = of["rank_correlation"].values()
            rows.append((name, row["components"], cost, f"{min(ranks):.3f} to {max(ranks):.3f}",
                         f"{100 * of['mean_error']:.1f}", f"{of['fj_per_unit']:.4g}"))  # fmt: skip
    header = ("operands:library", "multipliers", "cost", "rank correlation", "mean error %", "fJ per unit")
    return table(header, rows, left=(0, 2))


if __name__ == "__main__":
    subjects.main(__doc__, RESULTS, measure, summary)
