"""What the generated hardware costs: cells and transistors of every module by Yosys, areas too with a Liberty file.

The hierarchy is kept, so a module is mapped once however many instances it has. Memories are not mapped: they are
counted in bits, since on silicon they are macros (SRAM) and not made of these cells.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model.errors import RedcaneError
from model.files import digest, read_bounded
from model.yosys import YosysError, run_yosys

SCHEMA = 1
TOP = "redcane"
DEBIAN_LIBERTY = Path("/usr/share/qflow/tech/osu018/osu018_stdcells.lib")
"""Where Debian's package qflow-tech-osu018 puts a free 180 nm cell library."""

_SECONDS = 1800
_MOST_VERILOG_BYTES = 64 << 20
_MOST_LIBERTY_BYTES = 64 << 20
_MOST_REPORT_BYTES = 256 << 20

# Registers are brought to the plain flip-flop, so that enables and resets are counted as the gates they are. ABC's
# scripts are Yosys' own without `scorr`, which takes minutes for a requantiser's multiplier and saves nothing there.
_FLOW = """
read_verilog {files}
hierarchy -check -top {top}
proc
memory -nomap
opt -full
write_json before.json
alumacc
share
opt
techmap
opt -fast
dfflegalize -cell $_DFF_P_ 01
opt_clean
design -save gates
abc -g cmos -script +strash;dc2;dch,-f;map
opt_clean -purge
tee -q -o transistors.json stat -json -tech cmos
"""
_LIBERTY_FLOW = """
design -load gates
dfflibmap -liberty cells.lib
abc -liberty cells.lib -script +strash;dc2;dch,-f;strash;&get,-n;&nf;&put
opt_clean -purge
tee -q -o area.json stat -json -liberty cells.lib
"""


@dataclass(frozen=True)
class Module:
    """One instance of a module, with everything inside it."""

    instances: int  # in the whole design
    cells: int  # gates and flip-flops of static CMOS, as ABC chose them
    transistors: int  # Yosys' estimate for these cells
    flip_flops: int
    memory_bits: int  # in memories, which the cells leave out
    area: float | None = None  # in the Liberty file's unit (square micrometres by custom), memories left out


def find_liberty(given: str | None) -> Path | None:
    """The Liberty file to use: the given one, else Debian's if it is installed, else none."""
    if given is not None:
        path = Path(given)
        read_bounded(path, _MOST_LIBERTY_BYTES)
        return path
    return DEBIAN_LIBERTY if DEBIAN_LIBERTY.is_file() else None


def synthesize(rtl: Path, liberty: Path | None = None, top: str = TOP) -> dict[str, Any]:
    """Map the Verilog in the folder `rtl` to gates; the content of synthesis.json.

    {"schema": 1, "top": "redcane", "liberty": {"file": name, "sha256": hash} or null, "flow": Yosys' script,
     "modules": {name: the fields of Module}}; the module `top` holds the totals.

    Raises RedcaneError for a folder without Verilog, Verilog or Liberty that Yosys refuses, and a design with parts
    that are neither gates nor memories.
    """
    with tempfile.TemporaryDirectory(prefix="redcane-synthesis-") as name:
        folder = Path(name)
        script = _FLOW.format(files=" ".join(copy_verilog(rtl, folder)), top=top)
        if liberty is not None:
            (folder / "cells.lib").write_bytes(read_bounded(liberty, _MOST_LIBERTY_BYTES))
            script += _LIBERTY_FLOW
        try:
            run_yosys(script, folder, timeout=_SECONDS)
        except YosysError as error:
            if (folder / "transistors.json").exists():  # so it went wrong with the Liberty file
                raise RedcaneError(
                    f"{liberty}: Yosys cannot map to these cells ({error.reason}); "
                    "gates and a flip-flop with their timing are needed"
                ) from None
            raise
        bits = _memory_bits(_json(folder / "before.json"))
        mapped = _json(folder / "transistors.json")["modules"]
        areas = _json(folder / "area.json")["modules"] if liberty is not None else {}
    return {
        "schema": SCHEMA,
        "top": top,
        "liberty": {"file": liberty.name, "sha256": digest(liberty)} if liberty is not None else None,
        "flow": script.strip().splitlines(),
        "modules": {name: asdict(module) for name, module in _modules(mapped, bits, areas, top).items()},
    }


def copy_verilog(rtl: Path, folder: Path) -> list[str]:
    """Yosys sees one folder only; its names go into a script, so odd ones are refused."""
    files = sorted(rtl.glob("*.v"))
    if not files:
        raise RedcaneError(f"{rtl}: holds no Verilog (*.v) to synthesise; generate it first")
    for file in files:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.$-]*", file.name):
            raise RedcaneError(f"{file}: rename it to letters, digits and underscores to have it synthesised")
        if file.stat().st_size > _MOST_VERILOG_BYTES:
            raise RedcaneError(f"{file}: larger than the {_MOST_VERILOG_BYTES} bytes that are synthesised")
        shutil.copyfile(file, folder / file.name)
    return [file.name for file in files]


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(read_bounded(path, _MOST_REPORT_BYTES))
    return content


def _memory_bits(netlist: dict[str, Any]) -> dict[str, int]:
    """The bits of the memories that stand in each module itself."""
    bits: Counter[str] = Counter()
    for name, module in netlist["modules"].items():
        for cell in module["cells"].values():
            if cell["type"] in ("$mem", "$mem_v2"):
                bits[name] += int(cell["parameters"]["SIZE"], 2) * int(cell["parameters"]["WIDTH"], 2)
    return bits


def _modules(mapped: dict[str, Any], bits: dict[str, int], areas: dict[str, Any], top: str) -> dict[str, Module]:
    """Yosys counts a module's own cells; an instance's costs are those and its sub-modules'."""
    own = {name.removeprefix("\\"): statistics for name, statistics in mapped.items()}
    own_area = {name.removeprefix("\\"): statistics for name, statistics in areas.items()}
    inner = {n: {t: k for t, k in s["num_cells_by_type"].items() if t in own} for n, s in own.items()}
    for name, statistics in own.items():
        foreign = [t for t in statistics["num_cells_by_type"] if t not in own and not t.startswith(("$_", "$mem"))]
        if foreign:
            raise RedcaneError(f"synthesis: {name} holds {foreign[0]}, which is neither a gate nor a memory")
    done: dict[str, Module] = {}

    def cost(name: str) -> Module:
        if name not in done:
            types: dict[str, int] = own[name]["num_cells_by_type"]
            parts = [(cost(sub), count) for sub, count in inner[name].items()]
            done[name] = Module(
                instances=0,
                cells=sum(k for t, k in types.items() if t.startswith("$_")) + sum(p.cells * k for p, k in parts),
                transistors=int(str(own[name].get("estimated_num_transistors", "0")).rstrip("+")),  # parts included
                flip_flops=sum(k for t, k in types.items() if t.startswith("$_DFF"))
                + sum(p.flip_flops * k for p, k in parts),
                memory_bits=bits.get(name, 0) + sum(p.memory_bits * k for p, k in parts),
                area=own_area[name].get("area", 0.0) if areas else None,  # none for a module of memories alone
            )
        return done[name]

    def count(name: str, times: int) -> None:
        instances[name] += times
        for sub, k in inner[name].items():
            count(sub, times * k)

    instances: Counter[str] = Counter()
    cost(top)
    count(top, 1)
    return {name: Module(**{**asdict(done[name]), "instances": instances[name]}) for name in sorted(done)}
