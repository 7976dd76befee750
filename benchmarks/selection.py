"""What `redcane assign` came to: accuracy, and what is left of the saving at the level of the processing element.

    python benchmarks/selection.py compact-mnist:embedded compact-mnist:evoapprox ... [--runs runs]

Every argument is a file in configs/ and a library; its run's folder is RUNS/LIBRARY/NAME, made up to `quantize` where
it is not. Energies are of one inference, by operation, with that operation's real operands in the 8-bit network with
exact multipliers and in the final one, in the cells of qflow-tech-osu018, in the order in which they are multiplied: of
the multiplier alone as `redcane library characterize` measures it, and of the whole element with one multiplier
(operand registers, sign logic, product register, 32-bit accumulator) as benchmarks/pe_energy.py does.
Wants OpenSTA. Results are kept in selection.json beside this file, of other runs too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import subjects
from formats import stream
from pe_energy import energy, map_element

from flows.config import Config
from flows.run import Run
from flows.stages import bring_up
from flows.tables import table
from model.assignment import load_assignment
from model.multipliers.characterize import characterize

HERE = Path(__file__).parent
RESULTS = HERE / "selection.json"
ACCURACIES = ("float", "exact_8_bit", "assigned", "finetuned")


def measure(name: str, library: str, runs: Path, liberty: Path, opensta: str) -> dict[str, Any]:
    """One run's accuracies, costs and energies."""
    config = Config.load(HERE.parent / "configs" / f"{name}.yaml", {"assign.library": library})
    run = Run(config, runs / library / config.name)
    bring_up(run, "quantize")
    chosen, found = run.read("selection.json"), run.read("accuracy.json")
    assigned = load_assignment(run.folder / "assignment.yaml", list(config.formats()), run.library)
    networks = {"exact": run.quantized(config.formats()), "assigned": run.qnetwork()}
    counts = run.multiplications()
    spent = {level: dict.fromkeys(networks, 0.0) for level in ("multipliers", "elements")}
    for which, network in networks.items():
        for key, captured in run.captures(network).items():
            operands, sums = captured.operands(), stream({key: captured}, {key: 1})
            component, align = captured.product.component, captured.product.align
            multiplier = run.library.get(component)
            alone = characterize([multiplier], liberty, opensta, operands)[component].energy_pj
            element = map_element(multiplier, align, liberty, opensta)
            whole = energy(element, multiplier, align, sums, liberty)["total"]
            for level, of_one in (("multipliers", alone), ("elements", whole)):
                assert of_one is not None  # OpenSTA is there
                spent[level][which] += 1e-6 * counts[key] * of_one
    full = chosen["history"][0]["cost"]
    guided = next(step for step in chosen["history"] if step["assignment"] == chosen["guided"])
    return {
        "cost": chosen["cost"],
        "assignment": assigned.components,
        "aligns": assigned.aligns,
        "saved": {"by the noise": 1 - guided["cost"] / full,
                  "by measuring": 1 - sum(choice["cost"] for choice in chosen["choices"]) / full},
        "measurements": chosen["measurements"],
        "bound_points": chosen["bound_points"],
        "accuracy": {which: {split: found[which][split] for split in ("validation", "test")}
                     for which in ACCURACIES if which in found},
        "energy_uj": spent,
    }  # fmt: skip


def summary(known: dict[str, Any]) -> str:
    """The results as text."""
    rows = []
    for name, row in known.items():
        accuracy = (f"{100 * row['accuracy'][which][split]:.2f}" if which in row["accuracy"] else "-"
                    for which in ACCURACIES for split in ("validation", "test"))  # fmt: skip
        energies = (100 * (1 - of["assigned"] / of["exact"]) for of in row["energy_uj"].values())
        saved = (f"{100 * part:.1f}" for part in row["saved"].values())
        rows.append((name, *accuracy, *saved, row["measurements"], *(f"{part:.1f}" for part in energies)))
    header = ["run", "float: validation", "test", "8 bits: validation", "test", "assigned: validation", "test",
              "fine-tuned: validation", "test"]  # fmt: skip
    header += ["saved % by the noise", "by measuring", "measurements", "energy saved %: multipliers", "elements"]
    return table(header, rows)


if __name__ == "__main__":
    subjects.main(__doc__, RESULTS, measure, summary)
