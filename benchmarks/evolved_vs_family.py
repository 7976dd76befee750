"""What evolved multipliers, and all of the embedded library, save in a network against the truncated and broken-array
multipliers of ariths-gen.

    python benchmarks/evolved_vs_family.py [--config configs/digits.yaml] [--runs DIR]

The same trained network, resilience analysis, budget of accuracy and method of selection with every library, and the
same measure of cost: the transistors that switch with each operation's operands. Needs
`pip install 'redcane[library-tools]'`. Results are kept beside this file as evolved_vs_family.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from flows.config import Config
from flows.run import Run
from flows.stages import bring_up
from flows.tables import table
from model.files import write_atomic
from model.multipliers import family
from model.multipliers.library import EMBEDDED, import_folder, libraries_folder

LIBRARIES = ("ariths-gen", "evolved", "embedded")


def write_evolved(folder: Path) -> None:
    """The embedded library without what is put together by OR, as a library of the name "evolved"."""
    for file in EMBEDDED.glob("*.v"):
        if not file.stem.startswith("mul8u_or"):
            shutil.copy(file, folder)
    import_folder(folder, "evolved")


def outcome(config_path: Path, library: str, runs: Path) -> dict[str, Any]:
    """What the selection from a library came to; the analysed network is that of `runs`/analysed."""
    config = Config.load(config_path, {"assign.library": library})
    shared = Run(config, runs / "analysed" / config.name)
    bring_up(shared, "analyze")
    run = Run(config, runs / library / config.name)
    shutil.copytree(shared.folder, run.folder, dirs_exist_ok=True)
    bring_up(run, "quantize")
    chosen = run.read("selection.json", "choices", "cost")
    measured = run.read("accuracy.json", "float", "assigned")  # before fine-tuning, where that is configured
    spent = sum(choice["cost"] for choice in chosen["choices"])
    return {
        "library": library,
        "components": len(run.library.components),
        "compared_by": chosen["cost"],
        "spent_per_inference": spent,
        "saved": 1 - spent / (spent + sum(choice["saved"] for choice in chosen["choices"])),
        "assignment": {choice["operation"]: choice["component"] for choice in chosen["choices"]},
        "accuracy": {name: measured[name] for name in ("float", "assigned")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/digits.yaml"))
    parser.add_argument("--runs", type=Path, default=Path(tempfile.gettempdir()) / "redcane-evolved-vs-family")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["REDCANE_HOME"] = home  # the user's libraries stay as they are
        family.write(libraries_folder() / LIBRARIES[0])
        with tempfile.TemporaryDirectory() as circuits:
            write_evolved(Path(circuits))
        rows = [outcome(chosen.config, name, chosen.runs) for name in LIBRARIES]
    theirs, *others = rows
    print(f"compared by {theirs['compared_by']}\n")
    print(table(("library", "components", "spent an inference", "saved", "selection accuracy", "test accuracy"),
                [(row["library"], row["components"], f"{row['spent_per_inference']:.4g}", f"{100 * row['saved']:.1f} %",
                  *(f"{100 * row['accuracy']['assigned'][split]:.2f} %" for split in ("selection", "test")))
                 for row in rows]))  # fmt: skip
    ratios = {row["library"]: row["spent_per_inference"] / theirs["spent_per_inference"] for row in others}
    for row in others:
        print(f"\nwith the {row['library']} library the network needs {ratios[row['library']]:.3f} times what it needs "
              f"with ariths-gen's, and saves {row['saved'] / theirs['saved']:.2f} times as much")
    result = {"config": chosen.config.name, "ratio_spent": ratios, "rows": rows}
    write_atomic(Path(__file__).with_suffix(".json"), json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
