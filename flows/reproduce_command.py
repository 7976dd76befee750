"""`redcane reproduce`: the paper's tables, figures and findings for one benchmark."""

from __future__ import annotations

import argparse
import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.errors import RedcaneError

if TYPE_CHECKING:
    from collections.abc import Callable

CONFIGS = Path(__file__).parent.parent / "configs"
TRIAL_IMAGES = 500


def add_parser(commands: argparse._SubParsersAction[Any], options: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add the command to those of `redcane`; `options` adds those that every command of a run has."""
    command = commands.add_parser(
        "reproduce",
        help="the paper's tables, figures and findings for a benchmark -> reproduction.json, reproduction.md",
        description="Tables I, II, IV, Figs. 4 to 6 and 9 to 12, and the final design, from the published weights of a "
        "benchmark: the name of a file in configs/, or a configuration of your own.",
    )
    command.add_argument("config", metavar="BENCHMARK", help="such as capsnet-mnist, or the path of a configuration")
    options(command)
    command.add_argument("--curve-images", type=int, metavar="N", help="test images for the curves (default: 200 to "
                         "2000, by the size of the network)")  # fmt: skip
    command.add_argument("--trial-images", type=int, default=TRIAL_IMAGES, metavar="N", help="validation images to try "
                         "one multiplier everywhere on (default: %(default)s)")  # fmt: skip
    command.set_defaults(command=reproduce)


def reproduce(chosen: argparse.Namespace) -> None:
    """Bring the results up to date, draw and write them, and print the findings."""
    from flows.main import run_of
    from flows.reproduction.page import write_page
    from flows.reproduction.stages import RESULT
    from flows.reproduction.stages import reproduce as results_of

    for option, value in (("--curve-images", chosen.curve_images), ("--trial-images", chosen.trial_images)):
        if value is not None and not 1 <= value <= 10**6:
            raise RedcaneError(f"{option}: {value} should be a number from 1 to 1,000,000")
    started = os.times().elapsed
    chosen.config = configuration(chosen.config)
    run = run_of(chosen)
    results = results_of(run, chosen.curve_images, chosen.trial_images)
    page = write_page([results], run.folder / "reproduction.md", run.folder)
    print("\n".join(f"{f['verdict']:15} {f['claim']} ({f['where']})" for f in results["findings"]))
    print(f"\nresults {run.folder / RESULT}\npage    {page}")
    spent = os.times()  # of this process and of those that it has waited for
    processor = spent.user + spent.system + spent.children_user + spent.children_system
    print(f"took    {(spent.elapsed - started) / 60:.1f} minutes, {processor / 60:.1f} of processor time")


def configuration(benchmark: str) -> Path:
    """The configuration of a benchmark; RedcaneError, naming similar ones, where there is none."""
    path = Path(benchmark)
    if path.suffix in (".yaml", ".yml"):
        return path
    known = {file.stem: file for file in sorted(CONFIGS.glob("*.yaml"))}
    if benchmark not in known:
        near = difflib.get_close_matches(benchmark[:80], known, 2, 0.4) or known
        there = f"there is {' or '.join(near)}, or " if near else ""
        raise RedcaneError(f"no benchmark `{benchmark[:80]}`: {there}give a configuration's path, such as mine.yaml")
    return known[benchmark]
