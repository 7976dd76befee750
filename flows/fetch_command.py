"""`redcane library fetch`: EvoApproxLib's release v1.0."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(actions: argparse._SubParsersAction[Any]) -> None:
    """Add the action to those of `redcane library`."""
    action = actions.add_parser(
        "fetch",
        help="get EvoApproxLib v1.0, the multipliers of the paper",
        description="Download EvoApproxLib v1.0 from its owner, or take a copy of it, check that it is that release by "
        "the product tables of its 36 circuits, and import it.",
    )
    action.add_argument("--from", dest="source", type=Path, metavar="PATH", help="a folder, a tar or a zip archive")
    action.add_argument("--name", default="evoapprox", metavar="NAME", help="default: %(default)s")
    action.set_defaults(command=fetch_release)


def fetch_release(chosen: argparse.Namespace) -> None:
    """Fetch, check, import, and show the library."""
    from model.multipliers.evoapprox import fetch
    from model.multipliers.library import describe

    print(describe(fetch(chosen.source, chosen.name)))
