"""Evolved multipliers against the best of EvoApproxLib within the same limits, synthesised alike.

    python benchmarks/evolved_vs_evoapprox.py PATH [--evaluations 3000000] [--seeds 3] [--config configs/digits.yaml]

PATH is a checkout of EvoApproxLib v1.0. Areas are those of `redcane library characterize`, one flow for either side;
without a Liberty file transistors are compared, and the first line says so. The rival is the component of least area
within the limits. Three groups of limits, the same for both sides:

    uniform   the MAE over all operand pairs, and a worst case of 8 times that
    strict    the same, but ours must also keep the rival's own worst case, which often is far below that
    weighted  the MAE over the pairs that an operation of the configuration's trained network really sees (it is trained
              first where it is not), and a worst case of 25 %; rivals may have their operands exchanged

The ratio of ours to theirs, below 1 where ours is smaller, is given as best, mean and worst over the seeds; losses are
shown like wins. Results are kept beside this file as evolved_vs_evoapprox.json after every limit, and what is there for
the same arguments is not computed again.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.operands import captured_weights
from flows.synthesize import find_liberty
from model.files import write_atomic
from model.multipliers.characterize import characterize
from model.multipliers.chromosome import Measure
from model.multipliers.component import Cost, Multiplier
from model.multipliers.error_figures import error_figures
from model.multipliers.evolve import Limits, evolve
from model.multipliers.evolved import start_circuit
from model.multipliers.library import import_folder
from model.multipliers.netlist import extract_table

UNIFORM = (0.01, 0.03, 0.1, 0.3, 0.6, 1.0, 2.0, 4.0)
WEIGHTED = {
    "conv1.mac": (0.1, 0.4),
    "primary.mac": (0.02, 0.1),
    "classcaps.votes": (0.05, 0.2),
    "classcaps.weighted_sum": (0.02, 0.1),
    "classcaps.agreement": (0.01, 0.05),
}
GROUPS: dict[str, list[tuple[str, float]]] = {
    "uniform": [("uniform", limit) for limit in UNIFORM],
    "weighted": [(key, limit) for key, limits in WEIGHTED.items() for limit in limits],
    "strict": [("uniform", limit) for limit in UNIFORM],
}


def sizes(components: list[Multiplier], liberty: Path | None) -> list[float]:
    """The area of each component, or its transistors without a Liberty file."""
    if liberty is None:
        return [float(c.cost.transistors) for c in components]
    found = characterize(components, liberty, None)
    return [found[c.name].area for c in components]


def evolved(limits: Limits, seed: int, evaluations: int, weights: NDArray[np.int32] | None,
            minimise: Measure) -> Multiplier:
    """A multiplier of ours."""
    circuit = evolve(limits, seed, evaluations, weights, start_circuit("mul8u_exact"), measure=minimise)
    verilog = circuit.verilog("evolved")
    found = extract_table(verilog)
    return Multiplier("evolved", "evolved", verilog, found.ports, found.table, Cost(found.transistors), "", "")


def compare(group: str, limit: float, weights: NDArray[np.int32] | None, rivals: list[tuple[float, Multiplier]],
            chosen: argparse.Namespace, liberty: Path | None) -> dict[str, Any]:
    """The rival and ours of every seed, for one limit on the MAE in percent."""
    wce = 8 * limit if weights is None else 25.0

    def within(c: Multiplier) -> bool:
        tables = (c.table,) if weights is None else (c.table, c.table.T)
        return c.figures.wce_percent <= wce and min(error_figures(t, weights).mae_percent for t in tables) <= limit

    size, rival = min(((s, c) for s, c in rivals if within(c)), key=lambda pair: (pair[0], pair[1].name))
    wce = rival.figures.wce_percent if group == "strict" else wce
    limits = Limits(mae=limit, wce=wce) if weights is None else Limits(weighted_mae=limit, wce=wce)
    ours = []
    for seed in range(1, chosen.seeds + 1):
        ours += sizes([evolved(limits, seed, chosen.evaluations, weights, chosen.minimise)], liberty)
    return {"limit_percent": limit, "wce_percent": wce, "rival": rival.name, "rival_size": size, "ours": ours,
            "ratio": [one / size for one in ours]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--evaluations", type=int, default=3_000_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--config", type=Path, default=Path("configs/digits.yaml"))
    parser.add_argument("--runs", type=Path, default=Path(tempfile.gettempdir()) / "redcane-evolved-runs")
    parser.add_argument("--group", choices=tuple(GROUPS), action="append", help="only these limits (again for more)")
    parser.add_argument("--minimise", choices=("area", "transistors"), default="area", help="what evolution minimises")
    parser.add_argument("--liberty", metavar="FILE", help="default: that of Debian's package qflow-tech-osu018")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["REDCANE_HOME"] = home  # the user's libraries stay as they are
        components = [c for c in import_folder(chosen.path).components.values() if not c.signed]
    liberty = find_liberty(chosen.liberty)
    rivals = list(zip(sizes(components, liberty), components, strict=True))
    unit = f"area in {liberty.name}" if liberty else "transistors, since there is no Liberty file"
    setting = {"evaluations": chosen.evaluations, "seeds": chosen.seeds, "minimised": chosen.minimise, "size": unit}
    suffix = "" if chosen.minimise == "area" else f"-{chosen.minimise}"
    target = Path(__file__).with_name(f"{Path(__file__).stem}{suffix}.json")
    result = json.loads(target.read_bytes()) if target.exists() else {}
    if {key: result.get(key) for key in setting} != setting:
        result = setting
    print(f"{len(rivals)} components of EvoApproxLib; {chosen.seeds} seeds of {chosen.evaluations} evaluations that "
          f"minimise {chosen.minimise}; compared: {unit}\n{'group':9} {'operands':24} {'limit %':>8}  {'rival':12} "
          f"{'its':>6}  {'ours, by seed':24} {'best':>6} {'mean':>6} {'worst':>6}")
    known: dict[str, NDArray[np.int32] | None] = {"uniform": None}
    for group in chosen.group or GROUPS:
        rows = result.setdefault(group, {"rows": []})["rows"]
        for key, limit in GROUPS[group]:
            row = next((row for row in rows if (row["operands"], row["limit_percent"]) == (key, limit)), None)
            if row is None:
                if key not in known:
                    known[key] = captured_weights(chosen.config, key, chosen.runs, separately=False)
                row = {"operands": key, **compare(group, limit, known[key], rivals, chosen, liberty)}
                rows.append(row)
            ratios = np.array([row["ratio"] for row in rows])
            best, mean, worst = ratios.min(axis=1), ratios.mean(axis=1), ratios.max(axis=1)
            result[group]["mean_ratio"] = {"best_of_seeds": best.mean(), "mean_of_seeds": mean.mean(),
                                           "worst_of_seeds": worst.mean(), "lost": int((best > 1).sum())}
            write_atomic(target, json.dumps(result, indent=1) + "\n")
            ratio, ours = row["ratio"], " ".join(f"{size:.0f}" for size in row["ours"])
            print(f"{group:9} {key:24} {limit:8g}  {row['rival']:12} {row['rival_size']:6.0f}  {ours:24} "
                  f"{min(ratio):6.3f} {np.mean(ratio):6.3f} {max(ratio):6.3f}{'  LOST' if min(ratio) > 1 else ''}",
                  flush=True)
        best, mean, worst, lost = result[group]["mean_ratio"].values()
        print(f"{group}: mean ratio {best:.3f} (best of seeds), {mean:.3f} (mean), {worst:.3f} (worst); "
              f"{lost} of {len(rows)} lost\n", flush=True)


if __name__ == "__main__":
    main()
