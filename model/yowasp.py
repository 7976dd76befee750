"""Tools from PyPI that are WebAssembly (YoWASP), each call confined to one folder, bounded in time and memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

_LOG_BYTES = 16 << 20
_MOST_BYTES_WRITTEN = 1 << 30

_LAUNCHER = """
import importlib, resource, sys
package, function, memory, written = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
if memory:
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
resource.setrlimit(resource.RLIMIT_FSIZE, (written, written))
sys.exit(getattr(importlib.import_module(package), function)(sys.argv[5:]))
"""


def call(
    program: tuple[str, str], arguments: list[str], folder: Path, stdin: str, timeout: float, memory: int
) -> tuple[int | None, str]:
    """Exit status (None after a timeout) and log, its first 16 MiB, of a program: its package and its function there.

    `folder` is the only place that it can read or write. `timeout` is in seconds, `memory` in bytes (0: no limit).
    """
    command = [sys.executable, "-c", _LAUNCHER, *program, str(memory), str(_MOST_BYTES_WRITTEN), *arguments]
    with tempfile.TemporaryDirectory(prefix="redcane-yowasp-") as scratch:
        # A killed tool leaves its temporary folder behind; TMPDIR puts it where we clear up.
        environment = {**os.environ, "YOWASP_MOUNT": "/=.", "TMPDIR": scratch}
        log = Path(scratch) / "log"
        with log.open("wb") as output:
            try:
                process = subprocess.run(command, input=stdin.encode(), stdout=output, stderr=subprocess.STDOUT,
                                         cwd=folder, env=environment, timeout=timeout, check=False)
                status: int | None = process.returncode
            except subprocess.TimeoutExpired:
                status = None
        with log.open("rb") as written:
            return status, written.read(_LOG_BYTES).decode("utf-8", "replace")
