"""What the search finds within the same loss where weights, biases and requantisers are fitted, and where they are not.

    python benchmarks/fitting.py compact-mnist:embedded compact-fashion:evoapprox ... [--points 0.5] [--runs runs]

Every argument is a file in configs/ and a library. Nothing is fine-tuned; an assignment may lose so many POINTS of the
selection images. The runs are made in RUNS/fitted/LIBRARY-POINTS/NAME and RUNS/unfitted/... up to `quantize`. Results
are kept in fitting.json beside this file, of other runs too.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from flows.config import Config
from flows.run import Run
from flows.stages import bring_up
from flows.tables import table

HERE = Path(__file__).parent
RESULTS = HERE / "fitting.json"
VARIANTS = {"unfitted": False, "fitted": True}


def measure(name: str, library: str, points: float, fit: bool, folder: Path) -> dict[str, Any]:
    """One variant's saving and accuracies."""
    chosen = {"assign.library": library, "assign.budget_points": points, "finetune.epochs": 0,
              "finetune.recovers_points": 0.0, "quantize.fit_multipliers": fit}  # fmt: skip
    config = Config.load(HERE.parent / "configs" / f"{name}.yaml", chosen)
    run = Run(config, folder / f"{library}-{points:g}" / config.name)
    bring_up(run, "quantize")
    found, accuracy = run.read("selection.json"), run.read("accuracy.json")
    full = found["history"][0]["cost"]
    return {
        "saved": 1 - sum(choice["cost"] for choice in found["choices"]) / full,
        "measurements": found["measurements"],
        "components": {choice["operation"]: choice["component"] for choice in found["choices"]},
        "accuracy": {kind: accuracy[kind] for kind in ("float", "exact_8_bit", "assigned")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs_of", nargs="+", metavar="CONFIG:LIBRARY")
    parser.add_argument("--points", type=float, default=0.5)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    asked = parser.parse_args()
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for item in asked.runs_of:
        name, _, library = item.partition(":")
        known[f"{item} {asked.points:g}"] = {
            variant: measure(name, library, asked.points, fit, asked.runs / variant)
            for variant, fit in VARIANTS.items()
        }
        RESULTS.write_text(json.dumps(known, indent=1) + "\n")
    rows = [
        [key, variant, *(f"{100 * row['accuracy'][kind][split]:.2f}" for kind in ("float", "exact_8_bit", "assigned")
                         for split in ("validation", "test")), f"{100 * row['saved']:.1f}", row["measurements"]]
        for key, of in known.items() for variant, row in of.items()
    ]  # fmt: skip
    header = ["run, points", "", "float: val.", "test", "8 bits: val.", "test", "assigned: val.", "test", "saved %",
              "measured"]  # fmt: skip
    print(table(header, rows, left=(0, 1)))


if __name__ == "__main__":
    main()
