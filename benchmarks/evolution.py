"""How many circuits a second the evolution tries on one core, from the exact multiplier and near its end, with the
processor's own instructions and with AVX2 only.

    python benchmarks/evolution.py [--evaluations 400000]

An evaluation is one offspring that is made and judged. Some cost more than their parent, or differ from it in inactive
nodes only: their error need not be computed. `simulated` counts the others, over all 65,536 operand pairs or until a
limit is broken. Seconds are the thread's CPU time, so that neighbours on the machine disturb little. Results are kept
beside this file as evolution.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path

import numpy as np

from model.files import write_atomic
from model.multipliers.chromosome import array_multiplier
from model.multipliers.evolve import Limits, _sums
from model.multipliers.evolved import half_normal_weights
from model.multipliers.kernel import TUNING, Kernel, flat

CASES = {
    "MAE 0.01 %": (Limits(mae=0.01), None),
    "MAE 0.1 %, worst case 0.8 %, bias 0.005 %": (Limits(mae=0.1, wce=0.8, bias=0.005), None),
    "MAE 1 %, worst case 8 %, bias 0.05 %": (Limits(mae=1, wce=8, bias=0.05), None),
    "std 0.3 %, bias 0.05 %": (Limits(std=0.3, bias=0.05), None),
    "worst case 1 %": (Limits(wce=1), None),
    "weighted MAE 0.05 %, MAE 1 %": (Limits(mae=1, weighted_mae=0.05), 48),
}
BUILDS = {"this": TUNING, "AVX2": "-march=x86-64-v3"}


def processor() -> str:
    """The processor's name and whether it has 512-bit registers."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    name = next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "unknown")
    level = next((level for level in ("avx512f", "avx2") if f" {level} " in text), "neither AVX-512 nor AVX2")
    return f"{name}, {level}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=400_000)
    chosen = parser.parse_args()
    rows = []
    print(f"{processor()}\n{'built for':11} {'limits':42} {'phase':6} {'evaluations/s':>14} {'simulated/s':>12} "
          f"{'transistors':>12}")
    for (built, tuning), (name, (limits, deviation)) in itertools.product(BUILDS.items(), CASES.items()):
        weights = None if deviation is None else half_normal_weights(deviation)
        kernel = Kernel(_sums(limits, weights), weights, tuning=tuning)
        genes, random = flat(array_multiplier()), np.array([1], np.uint64)
        for phase in ("first", "later"):
            simulated = np.zeros(1, np.int64)
            began = time.thread_time()
            cost = kernel.evolve(genes, random, chosen.evaluations // 4, simulated)
            seconds = time.thread_time() - began
            row = {"built_for": built, "limits": name, "phase": phase,
                   "evaluations_per_s": round(chosen.evaluations / seconds),
                   "simulated_per_s": round(int(simulated[0]) / seconds), "transistors": cost}
            rows.append(row)
            print(f"{built:11} {name:42} {phase:6} {row['evaluations_per_s']:14,} {row['simulated_per_s']:12,} "
                  f"{cost:12,}", flush=True)
    for built in BUILDS:
        slowest = min(row["evaluations_per_s"] for row in rows if row["built_for"] == built)
        print(f"{built}: {slowest:,} evaluations/s or more")
    result = {"processor": processor(), "rows": rows}
    write_atomic(Path(__file__).with_suffix(".json"), json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
