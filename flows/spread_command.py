"""`redcane spread`: how much of a result is the luck of one training, told by the same experiment from several seeds.

Whatever is random in a run comes from its seed: first weights, order and augmentation of the images, injected noise,
which operands are sampled. Each seed has a run of its own, NAME-seed-N, trained anew and quantised in the end.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from model.errors import RedcaneError

if TYPE_CHECKING:
    from flows.run import Run

SCHEMA = 1
FIGURES = {
    "floating": "float %",
    "eight_bit": "8 bit %",
    "assigned": "assigned %",
    "lost": "points lost",
    "lost_in_selection": "on selection images",
    "saved": "saved %",
}
"""What is told of every seed, as percentages, with titles."""


@dataclass(frozen=True)
class Outcome:
    """What the run of one seed came to. Accuracies and losses are of the test images unless it is said, in percent."""

    seed: int
    floating: float
    eight_bit: float  # of the 8-bit network with exact multipliers
    assigned: float  # with its multipliers, fine-tuned where that is configured
    lost: float  # by that, against float
    lost_in_selection: float  # the same, of the images that the multipliers were selected on
    saved: float  # of what exact multipliers cost in the same network
    critical_nm: dict[str, float]  # of the groups of operations
    resilient: dict[str, bool]
    components: dict[str, str]  # by operation


def add_parser(commands: argparse._SubParsersAction[Any], options: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add the command to those of `redcane`; `options` adds those that every command of a run has."""
    command = commands.add_parser(
        "spread",
        help="the same experiment from several seeds, and how far its results lie apart -> NAME-spread.json",
        description="Trains, analyses, assigns and quantises a network anew for every seed, each in a run of its own, "
        "NAME-seed-N, and shows mean and standard deviation of what comes out. A stopped command goes on.",
    )
    command.add_argument("config", type=Path, metavar="CONFIG", help="configuration, such as configs/digits.yaml")
    options(command)
    command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    command.set_defaults(command=spread)


def spread(chosen: argparse.Namespace) -> None:
    """Bring the runs of all seeds up to date; print the table, and keep it as runs/NAME-spread.json."""
    from flows.config import Config
    from flows.main import run_of
    from flows.stages import bring_up, tell
    from model.files import write_atomic

    if len(set(chosen.seeds)) < max(2, len(chosen.seeds)):
        raise RedcaneError("--seeds: give two different numbers or more, such as --seeds 0 1 2")
    config = Config.load(chosen.config, {})
    chosen.train_anew = True
    found = []
    for seed in chosen.seeds:
        name = f"{config.name}-seed-{seed}"
        tell(f"seed {seed}: {chosen.runs / name}")
        run = run_of(chosen, {"seed": seed, "name": name})
        bring_up(run, "quantize")
        found.append(outcome(run))
    path = chosen.runs / f"{config.name}-spread.json"
    about = {"schema": SCHEMA, "benchmark": config.name, "library": run.library.name, "saved_of": _measure(run),
             "budget_points": run.config.assign.budget_points}  # fmt: skip
    write_atomic(path, json.dumps({**about, "outcomes": [asdict(one) for one in found]}, indent=1) + "\n")
    print("\n".join([*in_words(found, run.config.assign.budget_points, _measure(run)), "", f"results {path}"]))


def outcome(run: Run) -> Outcome:
    """What a quantised run came to."""
    from model.operations import GROUPS
    from model.resilience import Resilience

    accuracy = run.read("accuracy.json", "float", "exact_8_bit", "assigned", "costs")
    ours, spent = accuracy.get("finetuned", accuracy["assigned"]), accuracy["costs"]["operations"].values()
    groups = Resilience.from_json(run.read("resilience.json")).groups
    return Outcome(
        seed=run.config.seed,
        floating=100 * accuracy["float"]["test"],
        eight_bit=100 * accuracy["exact_8_bit"]["test"],
        assigned=100 * ours["test"],
        lost=100 * (accuracy["float"]["test"] - ours["test"]),
        lost_in_selection=100 * (accuracy["float"]["selection"] - ours["selection"]),
        saved=100 * (1 - sum(one["assigned"] for one in spent) / sum(one["exact"] for one in spent)),
        critical_nm={GROUPS[key]: one.critical_nm for key, one in groups.items()},
        resilient={GROUPS[key]: one.resilient for key, one in groups.items()},
        components={key: product.component for key, product, _ in run.qnetwork().products()},
    )


def in_words(outcomes: Sequence[Outcome], budget: float, measure: str) -> Iterator[str]:
    """The lines of the terminal: a table of the seeds, and what the analysis found in each."""
    from flows.tables import table

    yield f"saved: {measure}"
    yield ""
    yield table(["seed", *FIGURES.values()], list(rows([asdict(one) for one in outcomes])))
    kept = sum(one.lost_in_selection <= budget + 1e-9 for one in outcomes)
    yield ""
    yield f"budget of {budget:g} points kept on the selection images: {kept} of {len(outcomes)} seeds"
    for group in outcomes[0].resilient:
        marked = sum(one.resilient[group] for one in outcomes)
        critical = ", ".join(f"{one.critical_nm[group]:g}" for one in outcomes)
        yield f"{group}: resilient in {marked} of {len(outcomes)} seeds, critical NM {critical}"


def rows(outcomes: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """A row for every outcome, then their means and deviations."""
    for one in outcomes:
        yield [str(one["seed"]), *(f"{one[name]:.2f}" for name in FIGURES)]
    for title, of in (("mean", mean), ("deviation", stdev)):
        yield [title, *(f"{of([one[name] for one in outcomes]):.2f}" for name in FIGURES)]


def _measure(run: Run) -> str:
    return str(run.read("accuracy.json", "costs")["costs"]["total"])
