"""`redcane library evolve`: a multiplier of the user's own, for the error and the operands that they name."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.errors import RedcaneError

if TYPE_CHECKING:
    from model.multipliers.evolve import Progress

LIMITS = {
    "mae": "mean absolute error",
    "wce": "worst case",
    "std": "standard deviation of the error",
    "bias": "absolute value of the mean error",
    "weighted-mae": "mean absolute error over the operands as weighted",
    "weighted-bias": "absolute value of the mean error over the operands as weighted",
    "noise": "root mean square of the error, a common gain apart, over that of the product, operands as weighted",
}


def add_parser(actions: argparse._SubParsersAction[Any]) -> None:
    """Add the action to those of `redcane library`."""
    action = actions.add_parser(
        "evolve",
        help="evolve a new multiplier: the smallest within limits on its error",
        description="Make a circuit smaller by evolution while its error stays within the limits, which hold together "
        "and are in percent of 65536, noise in percent of the product. Stopped with Ctrl-C, the same command goes on "
        "from there.",
    )
    for name, text in LIMITS.items():
        action.add_argument(f"--{name}", type=float, metavar="PERCENT", help=text)
    action.add_argument("--zero", action="store_true", help="products with a zero operand must be zero, whatever else "
                        "may be wrong")
    action.add_argument("--half-normal", type=float, metavar="DEVIATION", help="weigh small operands more, as networks "
                        "have them: half-normal with this deviation")
    action.add_argument("--operands", type=Path, metavar="CONFIG", help="weigh operands as this run's network has them")
    action.add_argument("--operation", metavar="KEY", help="in which operation, such as conv1.mac")
    action.add_argument("--separately", action="store_true", help="weigh the operands A and B independently")
    action.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where the run's folder lies "
                        "(default: runs)")
    action.add_argument("--start", default="array", metavar="COMPONENT", help="circuit to start from: array, a "
                        "component of the embedded library, or LIBRARY:COMPONENT (default: %(default)s)")
    action.add_argument("--minimise", choices=("transistors", "area"), default="transistors", help="transistors of "
                        "static CMOS, or areas of standard cells (default: %(default)s)")
    action.add_argument("--evaluations", type=int, default=10_000_000, metavar="N", help="circuits to try "
                        "(default: %(default)s, about a minute)")
    action.add_argument("--seed", type=int, default=0, metavar="S", help="of the search (default: %(default)s)")
    action.add_argument("--name", default="evolved", metavar="LIBRARY", help="library to add the result to "
                        "(default: %(default)s)")
    action.add_argument("--component", metavar="NAME", help="what to call the result (default: from its recipe)")
    action.set_defaults(command=evolve_component)


def evolve_component(chosen: argparse.Namespace) -> None:
    """Evolve one component and add it to a library of the user's."""
    from tqdm import tqdm  # type: ignore[import-untyped]  # it has no stubs

    from flows.operands import captured_weights
    from model.files import digest
    from model.multipliers.evolve import Limits
    from model.multipliers.evolved import Recipe, add, make
    from model.multipliers.library import check_name, describe
    from model.multipliers.netlist import cache_folder

    check_name(chosen.name)
    limits = Limits(**{name.replace("-", "_"): getattr(chosen, name.replace("-", "_")) for name in LIMITS},
                    zero=chosen.zero)
    weights = operands = None
    if (chosen.operands is None) != (chosen.operation is None):
        raise RedcaneError("--operands and --operation go together: which run's network, and which of its operations")
    if chosen.operands is not None:
        if chosen.half_normal is not None:
            raise RedcaneError("--half-normal and --operands both say how operands are weighted: give one of them")
        weights = captured_weights(chosen.operands, chosen.operation, chosen.runs, chosen.separately)
        operands = f"--operands {shlex.quote(str(chosen.operands))} --operation {chosen.operation}"
        operands += " --separately" if chosen.separately else ""
    recipe = Recipe("unnamed", limits, chosen.seed, chosen.evaluations, chosen.start, chosen.half_normal, operands,
                    chosen.minimise)
    # The folder of runs, and with it the network, is in no recipe: its operands are.
    identity = digest((recipe.command() + digest(b"" if weights is None else weights.tobytes())).encode())
    recipe = replace(recipe, component=chosen.component or f"mul8u_{identity[:8]}")
    checkpoint = cache_folder() / "evolution" / f"{identity}.npz"
    with tqdm(desc=recipe.component, total=chosen.evaluations, unit_scale=True, file=sys.stderr) as bar:
        def show(progress: Progress) -> None:
            bar.set_postfix({chosen.minimise: progress.cost}, refresh=False)
            bar.update(progress.evaluations - bar.n)

        circuit = make(recipe, weights, checkpoint, show)
    library = add(chosen.name, circuit, recipe.command())
    checkpoint.unlink(missing_ok=True)
    print(describe(library))
