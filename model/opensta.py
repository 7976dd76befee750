"""OpenSTA (`sta`), a timing and power analyser that the user may have installed, run once for one mapped netlist.

Debian's version 2.0.17 reads no switching activity from a simulation. So all instances are given the same activity,
and the caller scales each instance's energy by what it simulated. Two traps: without a clock *and* input delays
relative to it the dynamic power collapses, and activities of single pins have no effect.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from model.errors import RedcaneError

PACKAGE = "opensta"
CLOCK_NS = 10.0
"""The clock period at which powers are taken; dynamic energies do not depend on it."""

_SECONDS = 60
_MOST_OUTPUT_BYTES = 64 << 20
_SCRIPT = f"""
read_liberty cells.lib
set_cmd_units -time ns -power W
read_verilog mapped.v
link_design multiplier
create_clock -name clock -period {CLOCK_NS:g} {{clock}}
set_input_delay -clock clock 0 [all_inputs]
set_output_delay -clock clock 0 [all_outputs]
set_power_activity -global -activity {{activity}}
report_checks -path_delay max -format end -digits 6
report_power -digits 12 -instances [get_cells *]
"""


@dataclass(frozen=True)
class Report:
    """What OpenSTA says about a netlist."""

    delay_ns: float
    """The longest path from an input to an output; 0 where there is none."""
    energy_pj: dict[str, float]
    """Dynamic energy (internal and of the nets driven) by instance, in pJ, if it switches once."""
    leakage_w: float


def find_opensta() -> str | None:
    """The path of the program `sta`, or None where there is none."""
    return shutil.which("sta")


def opensta_version(program: str) -> str:
    """The version that `program` says it has; RedcaneError when it is not OpenSTA."""
    version = _call([program, "-version"], None).strip()
    if not re.fullmatch(r"\d+\.\d+[\w.]*", version):
        raise RedcaneError(f"{program} is not OpenSTA (it does not tell its version): install {PACKAGE} or remove it")
    return version


def analyse(program: str, verilog: str, liberty: bytes, clock: str | None = None, activity: float = 1.0) -> Report:
    """Delay and power of the module `multiplier` in a Verilog netlist of `liberty`'s cells.

    `clock` is the port of its clock, if it has one; `activity` is how often every net switches in a clock cycle.
    Raises RedcaneError when OpenSTA fails, takes over a minute, or does not say it in the form that we know.
    """
    with tempfile.TemporaryDirectory(prefix="redcane-sta-") as name:
        folder = Path(name)
        (folder / "mapped.v").write_text(verilog, encoding="utf-8")
        (folder / "cells.lib").write_bytes(liberty)
        script = _SCRIPT.format(clock=f"[get_ports {clock}]" if clock else "", activity=activity)
        (folder / "script.tcl").write_text(script)
        return read_report(_call([program, "-no_init", "-no_splash", "-exit", "script.tcl"], folder))


def read_report(text: str) -> Report:
    """OpenSTA's output for the script above; RedcaneError where it is an error or holds no powers."""
    if error := re.search(r"^Error: (.*)$", text, re.M):
        raise RedcaneError(f"OpenSTA stopped: {error[1][:200]}")
    number = r"(-?\d[\d.]*(?:e[+-]?\d+)?)"
    path = re.search(rf"^.*\(\w+\) +{number} +{number} +{number} \(", text, re.M)
    if not path and "No paths found" not in text:
        raise RedcaneError("OpenSTA reported no delay in a form known here")
    energies, leakage = {}, 0.0
    for internal, switching, leaking, _, name in re.findall(rf"^ *{' +'.join([number] * 4)} +(\S+)$", text, re.M):
        energies[name] = (float(internal) + float(switching)) * CLOCK_NS * 1e3  # W x ns = 1000 pJ
        leakage += float(leaking)
    if not energies or not all(map(math.isfinite, [leakage, *energies.values()])):
        raise RedcaneError("OpenSTA reported no power: the Liberty file may lack it")
    return Report(float(path[2]) if path else 0.0, energies, leakage)


def _call(command: list[str], folder: Path | None) -> str:
    with tempfile.TemporaryFile() as output:
        try:
            subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=folder,
                           timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise RedcaneError(f"OpenSTA ran longer than {_SECONDS} seconds") from None
        except OSError as error:
            raise RedcaneError(f"OpenSTA does not start ({error.strerror}): {command[0]}") from None
        output.seek(0)
        return output.read(_MOST_OUTPUT_BYTES).decode("utf-8", "replace")
