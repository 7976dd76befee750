"""C++ that is compiled at first use on the user's machine and kept in the cache: one file, one shared library."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from model.errors import RedcaneError
from model.files import digest
from model.multipliers.netlist import cache_folder

# without fused multiply-adds a float is the same on every machine; without errno a root is one instruction
_FLAGS: tuple[str, ...] = (
    *("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread"),
    *("-ffp-contract=off", "-fno-math-errno"),
)
_SECONDS = 300
_COMPILERS = ("g++", "clang++", "c++")


@cache
def load(source: Path, tuning: str | None = None) -> ctypes.CDLL:
    """The library of a C++ source file and the headers beside it, compiled by `$CXX` or the first of g++,
    clang++ and c++ that there is.

    `tuning` is one more option, such as `-march=native`, and is left out where the compiler does not know it. Kept in
    `$REDCANE_CACHE` (or the user's cache folder) by its source, options, compiler and machine. Raises RedcaneError when
    there is no compiler, or it fails.
    """
    compiler = next(filter(None, map(shutil.which, filter(None, (os.environ.get("CXX"), *_COMPILERS)))), None)
    if compiler is None:
        raise RedcaneError(f"no C++ compiler ({', '.join(_COMPILERS)}) is installed (Debian: apt install g++)")
    version, flags = _run([compiler, "--version"]), _FLAGS
    if tuning is not None:
        try:  # the predefined macros tell the instructions that `native` stands for
            version += _run([compiler, tuning, "-dM", "-E", "-x", "c++", "/dev/null"])
            flags = (*_FLAGS, tuning)
        except RedcaneError:
            pass
    sources = (source, *sorted(source.parent.glob("*.h")))
    key = "\0".join((*map(digest, sources), *flags, compiler, version, platform.machine()))
    library = cache_folder() / "native" / f"{source.stem}-{digest(key.encode())[:32]}.so"
    if library.is_file():
        try:
            return ctypes.CDLL(str(library))
        except OSError:  # damaged: made anew
            pass
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(dir=library.parent, prefix=".unfinished-")
    except OSError:  # an unwritable cache costs time, nothing else
        folder = tempfile.mkdtemp(prefix="redcane-")
    try:
        built = Path(folder) / library.name
        _run([compiler, *flags, "-o", str(built), str(source)])
        loaded = ctypes.CDLL(str(built))
        if built.parent.parent == library.parent:
            os.replace(built, library)
        return loaded
    except OSError as error:
        raise RedcaneError(f"{source.name}: the compiled library does not load: {error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(command: list[str]) -> str:
    """What a compiler prints. Raises RedcaneError with its first error when it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RedcaneError(f"{command[0]} cannot be run: {error}") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        reason = next((line for line in lines if "error:" in line), lines[-1])
        raise RedcaneError(f"{command[0]} fails: {reason[:300]}")
    return done.stdout
