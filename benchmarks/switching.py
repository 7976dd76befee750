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

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr  # type: ignore[import-untyped]  # it has no stubs

from flows.operands import captured
from flows.synthesize import find_liberty
from flows.tables import table
from model.errors import RedcaneError
from model.files import write_atomic
from model.multipliers.characterize import characterize
from model.multipliers.library import load_library
from model.multipliers.switching import switched_transistors
from model.opensta import find_opensta

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
    return {"components": len(components), "costs": rows}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", metavar="CONFIG:LIBRARY")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    chosen = parser.parse_args()
    known: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    liberty, opensta = find_liberty(None), find_opensta()
    try:
        if liberty is None or opensta is None:
            raise RedcaneError("this benchmark wants Debian's packages opensta and qflow-tech-osu018")
        for subject in chosen.subjects:
            name, _, library = subject.partition(":")
            known[subject] = measure(name, library or "embedded", chosen.runs, liberty, opensta)
            write_atomic(RESULTS, json.dumps(known, indent=1) + "\n")
    except RedcaneError as error:
        sys.exit(str(error))
    print(summary(known))


if __name__ == "__main__":
    main()
