"""Evolved multipliers against the best of EvoApproxLib within the same limits, synthesised alike.

    python benchmarks/evolved_vs_evoapprox.py PATH [--evaluations 2000000] [--seeds 3] [--config configs/digits.yaml]

PATH is a checkout of EvoApproxLib v1.0. Both sides keep the same limits: `uniform` is the MAE over all pairs and a
worst case of 8 times that; the others are the MAE over the operand pairs that an operation of the configuration's
trained network really sees (it is trained first where it is not) and a worst case of 25 %. The rival is the component
of fewest transistors within them. With `--strict` ours must also keep the rival's own worst case, which often is far
below the limit. Transistors are what the library's own flow counts for either side. The ratio of ours to theirs,
below 1 where ours is smaller, is given as best, mean and worst over the seeds. Results are kept beside this file as
evolved_vs_evoapprox.json, or -strict.json; losses are shown like wins.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flows.evolve_command import captured_weights
from model.files import write_atomic
from model.multipliers.component import Multiplier
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


def compare(limit: float, weights: NDArray[np.int32] | None, rivals: list[Multiplier], seeds: int,
            evaluations: int, strict: bool) -> dict[str, object]:
    """The rival and ours of every seed, for one limit on the MAE in percent."""
    wce = 8 * limit if weights is None else 25.0
    within = [c for c in rivals
              if error_figures(c.table, weights).mae_percent <= limit and c.figures.wce_percent <= wce]
    rival = min(within, key=lambda c: (c.cost.transistors, c.name))
    transistors = rival.cost.transistors
    wce = rival.figures.wce_percent if strict else wce
    limits = Limits(mae=limit, wce=wce) if weights is None else Limits(weighted_mae=limit, wce=wce)
    ours = []
    for seed in range(1, seeds + 1):
        circuit = evolve(limits, seed, evaluations, weights, start_circuit("mul8u_exact"))
        ours.append(extract_table(circuit.verilog("evolved")).transistors)
    return {"limit_percent": limit, "rival": rival.name, "rival_transistors": transistors, "wce_percent": wce,
            "ours": ours, "ratio": [count / max(transistors, 1) for count in ours]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--evaluations", type=int, default=2_000_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--config", type=Path, default=Path("configs/digits.yaml"))
    parser.add_argument("--runs", type=Path, default=Path(tempfile.gettempdir()) / "redcane-evolved-runs")
    parser.add_argument("--group", choices=("uniform", "weighted"), help="only these limits; the others' results stay")
    parser.add_argument("--strict", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["REDCANE_HOME"] = home  # the user's libraries stay as they are
        rivals = list(import_folder(chosen.path).components.values())
    target = Path(__file__).with_name(f"{Path(__file__).stem}{'-strict' if chosen.strict else ''}.json")
    result = json.loads(target.read_bytes()) if target.exists() else {}
    if (result.get("evaluations"), result.get("seeds")) != (chosen.evaluations, chosen.seeds):
        result = {"evaluations": chosen.evaluations, "seeds": chosen.seeds}
    print(f"{len(rivals)} components of EvoApproxLib; {chosen.seeds} seeds of {chosen.evaluations} evaluations\n"
          f"{'operands':24} {'limit %':>8}  {'rival':12} {'its':>5}  {'ours':20} {'best':>6} {'mean':>6} {'worst':>6}")
    for group in (chosen.group,) if chosen.group else ("uniform", "weighted"):
        cases = [("uniform", limit) for limit in UNIFORM] if group == "uniform" else [
            (key, limit) for key, limits in WEIGHTED.items() for limit in limits]
        rows, known = [], {}
        for key, limit in cases:
            if key != "uniform" and key not in known:
                known[key] = captured_weights(chosen.config, key, chosen.runs, separately=False)
            row = {"operands": key, **compare(limit, known.get(key), rivals, chosen.seeds, chosen.evaluations,
                                              chosen.strict)}
            rows.append(row)
            ratio = row["ratio"]
            assert isinstance(ratio, list)
            print(f"{key:24} {limit:8g}  {row['rival']:12} {row['rival_transistors']:5}  {row['ours']!s:20} "
                  f"{min(ratio):6.3f} {np.mean(ratio):6.3f} {max(ratio):6.3f}{'  LOST' if min(ratio) > 1 else ''}",
                  flush=True)
        ratios = np.array([row["ratio"] for row in rows])
        summary = {"best_of_seeds": ratios.min(axis=1).mean(), "mean_of_seeds": ratios.mean(),
                   "worst_of_seeds": ratios.max(axis=1).mean(), "lost": int((ratios.min(axis=1) > 1).sum())}
        result[group] = {"rows": rows, "mean_ratio": summary}
        best, mean, worst, lost = summary.values()
        print(f"{group}: mean ratio {best:.3f} (best of seeds), {mean:.3f} (mean), {worst:.3f} (worst); "
              f"{lost} of {len(rows)} lost\n", flush=True)
        write_atomic(target, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
