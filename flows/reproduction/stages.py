"""The stages that reproduce the paper on a run, behind those of the run itself."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from flows.reproduction import curves, designs, multipliers
from flows.reproduction.findings import findings
from flows.reproduction.operations import count
from flows.reproduction.paper import ACCURACY
from flows.run import Run
from flows.stage import PARTIAL, Json, Pipeline, Stage
from flows.stages import stages_of, tell, write_json
from flows.tools import need_yosys
from model.errors import RedcaneError
from model.fitting import GROWTHS

RESULT = "reproduction.json"
SCHEMA = 1
_PARTS = ("operations", "multipliers", "curves", "designs")
_CHOOSING = ("assign", "finetune", "quantize")


def reproduce(run: Run, images: int | None, trial_images: int) -> dict[str, Any]:
    """Bring all of a benchmark's results up to date, and return them.

    `images` test images are taken for the curves (None: what is affordable), `trial_images` validation images to try
    multipliers everywhere on. Raises RedcaneError where the network is neither published nor trained.
    """
    run.check()
    pipeline = Pipeline(_stages(run, images, trial_images), run.folder, run, run.provenance, tell)
    train = pipeline.up_to("train")[0]
    if run.config.weights is None and not pipeline.is_fresh(train):
        raise RedcaneError(
            f"{run.config.name}: there are no published weights and {run.folder} holds no trained network; "
            "`redcane train CONFIG` trains it there"
        )
    pipeline.bring_up("reproduce")
    return run.read(RESULT, "findings", "operations", "multipliers", "curves", "designs")


def _stages(run: Run, images: int | None, trial_images: int) -> list[Stage[Run]]:
    def partial(name: str) -> Path:
        (run.folder / PARTIAL).mkdir(exist_ok=True)
        return run.folder / PARTIAL / name

    def write(name: str, content: Json, scratch: Path, about: Json) -> None:
        write_json(scratch / f"reproduction-{name}.json", content, about)

    def measure_curves(run: Run, scratch: Path, about: Json) -> None:
        store = partial("reproduction.sqlite")
        write("curves", curves.measure(run, store, images), scratch, about)
        store.unlink(missing_ok=True)

    def measure_designs(run: Run, scratch: Path, about: Json) -> None:
        kept = partial("reproduction-designs.json")
        write("designs", designs.rivals(run, kept, trial_images), scratch, about)
        kept.unlink(missing_ok=True)

    def choose_anew(run: Run, scratch: Path, about: Json) -> None:
        folder = partial("anew")
        write("anew", {"design": _by_the_other_measure(run, folder)}, scratch, about)
        shutil.rmtree(folder)

    def sections(*names: str) -> Json:
        return {name: run.config.model_dump()[name] for name in names}

    data = {"dataset": run.dataset_hash, "seed": run.config.seed}
    library = {"library": run.library_hash}
    train, analyze, *others = stages_of(run)
    return [
        train,
        Stage(
            "operations",
            outputs=("reproduction-operations.json",),
            make=lambda run, scratch, about: write("operations", count(run.config.shape()), scratch, about),
            settings=lambda run: sections("network"),
        ),
        Stage(
            "multipliers",
            inputs=("network.safetensors",),
            outputs=("reproduction-multipliers.json",),
            make=lambda run, scratch, about: write("multipliers", multipliers.profile(run), scratch, about),
            version=4,
            settings=lambda run: {**sections("quantize"), "images": run.config.assign.images, **data, **library},
            require=lambda run: need_yosys(),
        ),
        Stage(
            "curves",
            inputs=("network.safetensors",),
            outputs=("reproduction-curves.json",),
            make=measure_curves,
            version=2,
            settings=lambda run: {**sections("analyze"), **data, "images": images},
        ),
        analyze,
        Stage(
            "designs",
            inputs=("network.safetensors", "training.json", "resilience.json"),
            outputs=("reproduction-designs.json",),
            make=measure_designs,
            version=4,
            settings=lambda run: {**sections("quantize"), **data, **library, "trial_images": trial_images},
            require=lambda run: need_yosys(),
        ),
        *others,
        Stage(
            "anew",
            inputs=(*train.outputs, *analyze.outputs),
            outputs=("reproduction-anew.json",),
            make=choose_anew,
            settings=lambda run: {
                **sections("network", "train", *_CHOOSING),
                **data,
                **library,
                "copies": run.config.copies,
                "growths": list(GROWTHS),
                "versions": [stage.version for stage in others if stage.name in _CHOOSING],
            },
            require=lambda run: need_yosys(),
        ),
        Stage(
            "reproduce",
            inputs=(
                "network.safetensors",
                "training.json",
                "selection.json",
                "qmodel",
                "accuracy.json",
                "reproduction-anew.json",
                *(f"reproduction-{name}.json" for name in _PARTS),
            ),
            outputs=(RESULT,),
            make=_collect,
            version=8,
            settings=lambda run: {**sections("quantize", "assign", "finetune"), **data, **library},
            require=lambda run: need_yosys(),
        ),
    ]


def _by_the_other_measure(run: Run, folder: Path) -> Json:
    """Our design once more, made in this folder: its multipliers are chosen by the other measure of their cost.

    What switches tells what a multiplier takes in this network; the library's own figure is what the paper compares.
    """
    other = run.compared_by("library" if run.config.assign.compare_by == "switching" else "switching", folder)
    pipeline = Pipeline(stages_of(other), folder, other, other.provenance, lambda text: tell(f"anew: {text}"))
    pipeline.take_over(run.folder, "analyze")
    pipeline.bring_up("quantize")
    return designs.ours(other)


def _collect(run: Run, scratch: Path, about: Json) -> None:
    """All results in one file, with the verdicts on the paper's findings."""
    parts = {}
    for name in _PARTS:
        parts[name] = run.read(f"reproduction-{name}.json", "provenance")
        parts[name] = {key: value for key, value in parts[name].items() if key not in ("provenance", "schema")}
    parts["curves"]["schema"] = run.read("reproduction-curves.json", "schema")["schema"]
    ours = [designs.ours(run), run.read("reproduction-anew.json", "design")["design"]]
    parts["designs"]["designs"] = [*ours, *parts["designs"]["designs"]]
    parts["designs"]["fitted"] = run.config.quantize.fit_multipliers
    parts["designs"]["finetune_epochs"] = run.config.finetune.epochs
    designs.add_switching(run, parts["designs"]["designs"])
    parts["designs"]["budget_points"] = run.config.assign.budget_points
    training, config = run.read("training.json", "accuracy"), run.config
    tests = len(run.dataset.test)
    results: Json = {
        "schema": SCHEMA,
        "benchmark": config.name,
        "network": config.network.kind,
        "dataset": config.dataset,
        "published": config.weights is not None,
        "accuracy": {
            "right": round(training["accuracy"]["test"] * tests),
            "images": tests,
            "paper": ACCURACY.get((config.network.kind, config.dataset)),
        },
        **parts,
    }
    results["findings"] = [vars(finding) for finding in findings(results)]
    write_json(scratch / RESULT, results, about)
