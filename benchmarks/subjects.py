"""What benchmarks have in common that take runs as `CONFIG:LIBRARY`, want OpenSTA and keep results in a file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.synthesize import find_liberty
from model.errors import RedcaneError
from model.files import write_atomic
from model.opensta import find_opensta

Measure = Callable[[str, str, Path, Path, str], dict[str, Any]]
"""Results for a configuration's name and a library's, from the folder of runs, a Liberty file and OpenSTA's path."""


def main(title: str | None, results: Path, measure: Measure, summary: Callable[[dict[str, Any]], str]) -> None:
    """Measure the subjects of the command line, keep what came out in `results`, and print all that is kept."""
    parser = argparse.ArgumentParser(description=title, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", metavar="CONFIG:LIBRARY")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    chosen = parser.parse_args()
    known: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    liberty, opensta = find_liberty(None), find_opensta()
    try:
        if liberty is None or opensta is None:
            raise RedcaneError("this benchmark wants Debian's packages opensta and qflow-tech-osu018")
        for subject in chosen.subjects:
            name, _, library = subject.partition(":")
            known[subject] = measure(name, library or "embedded", chosen.runs, liberty, opensta)
            write_atomic(results, json.dumps(known, indent=1) + "\n")
    except RedcaneError as error:
        sys.exit(str(error))
    print(summary(known))
