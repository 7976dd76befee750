"""From the Verilog of any 8 x 8 combinational multiplier to its product table and its transistor count.

Yosys reads the Verilog and flattens it to gates; the table is the evaluation of those gates for all 65,536 operand
pairs. The transistor count comes from one and the same flow for every circuit (`TRANSISTOR_FLOW`), and the mapped
netlist that it counts is evaluated too and must give the same table. Results are cached by content.
"""

from __future__ import annotations

import io
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path

from model.errors import RedcaneError
from model.files import digest, read_bounded, write_atomic
from model.multipliers.gates import Ports, has_signed_ports, multiplier_ports, product_table
from model.yosys import YosysError, run_yosys, yosys_version

MOST_VERILOG_BYTES = 1 << 20
_MODULE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,59}")
_MOST_NETLIST_BYTES = 64 << 20
_MOST_CACHE_BYTES = 32 << 20
_BATCH = 12
_SECONDS = (180, 12)  # for a batch, with the first start of Yosys on a busy machine, and for each of its circuits

# What a transistor estimate means: static CMOS gates chosen by ABC, counted with Yosys' table of gate costs.
TRANSISTOR_FLOW = "synth; abc -g cmos; opt_clean -purge"
_READ = """
design -reset; design -reset-vlog
read_verilog {file}.v
proc -norom
write_json {file}.modules.json
hierarchy -check {top}
proc -norom
flatten -noscopeinfo
write_rtlil {file}.il
techmap
write_json {file}.gates.json
"""
_COUNT = """
design -reset
read_rtlil {file}.il
{flow}
write_json {file}.mapped.json
tee -q -o {file}.stat.json stat -json -tech cmos
"""


class Circuit(NamedTuple):
    """Verilog to read: where it comes from (for messages), its text, the top module's name and whether its operands are
    signed, if that is known.
    """

    label: str
    verilog: str
    module: str | None = None
    signed: bool | None = None


@dataclass(frozen=True, eq=False)
class Extracted:
    """What a circuit's Verilog says."""

    module: str
    ports: Ports
    table: NDArray[np.uint16]
    """The products as words of 16 bits, uint16 [256, 256], indexed [a, b]: whatever they mean."""
    helpers: tuple[str, ...]
    """The other modules in the text."""
    transistors: int
    signed_ports: bool
    """Whether the ports are declared `signed`."""
    gates: bytes
    """The netlist whose transistors are counted, in Yosys' JSON, with the ports and the cells' connections only."""


def extract_table(verilog: Path | str, module: str | None = None) -> Extracted:
    """The table of an 8 x 8 multiplier from a Verilog file (Path) or text (str).

    Two 8-bit inputs are the operands, in the order of the ports (ports called A and B are A and B), the 16-bit output
    may have any name. `module` names the top where several modules could be it. Raises RedcaneError with the reason
    for what is not a combinational 8 x 8 multiplier.
    """
    if isinstance(verilog, Path):
        return extract_many([Circuit(str(verilog), read_verilog(verilog), module)])[0]
    return extract_many([Circuit("the given Verilog", verilog, module)])[0]


def read_verilog(path: Path) -> str:
    """The text of a Verilog file of at most 1 MiB; RedcaneError where it is missing, larger, or not UTF-8."""
    try:
        return read_bounded(path, MOST_VERILOG_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RedcaneError(f"{path}: not UTF-8 text (byte {error.start}): save the Verilog as UTF-8") from None


def extract_many(circuits: Sequence[Circuit]) -> list[Extracted]:
    """The tables of several circuits, in their order; those not in the cache share a few Yosys processes.

    Raises RedcaneError, naming the circuit, at the first that is not a combinational 8 x 8 multiplier.
    """
    known = {circuit: extracted for circuit in dict.fromkeys(circuits) if (extracted := _cached(circuit))}
    missing = [circuit for circuit in dict.fromkeys(circuits) if circuit not in known]
    for circuit in missing:
        _check_text(circuit)
    for start in range(0, len(missing), _BATCH):
        batch = missing[start:start + _BATCH]
        known.update(zip(batch, _extract(batch), strict=True))
        for circuit in batch:
            for module in {circuit.module, known[circuit].module}:  # the next time, the top may be known
                _store(circuit._replace(module=module), known[circuit])
    return [known[circuit] for circuit in circuits]


def _check_text(circuit: Circuit) -> None:
    """Refuse what Yosys should not even see."""
    if len(circuit.verilog.encode()) > MOST_VERILOG_BYTES:
        raise RedcaneError(f"{circuit.label}: larger than the {MOST_VERILOG_BYTES} bytes that a multiplier may have")
    if "\0" in circuit.verilog:
        raise RedcaneError(f"{circuit.label}: not Verilog text (it holds a zero byte)")
    if circuit.module is not None and not _MODULE_NAME.fullmatch(circuit.module):
        raise RedcaneError(f"{circuit.label}: `{circuit.module[:80]}` is not a module name")
    code = re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', " ", circuit.verilog, flags=re.DOTALL)
    if reads := re.search(r"`include\b|\$readmem[bh]\b|\$fopen\b", code):
        raise RedcaneError(f"{circuit.label}: it reads other files (`{reads[0]}`): put everything into this one file")


def _extract(batch: Sequence[Circuit]) -> list[Extracted]:
    """Two Yosys processes for the batch: one reads, and what was accepted as a multiplier is counted by the other."""
    with tempfile.TemporaryDirectory(prefix="redcane-netlist-") as name:
        folder = Path(name)
        for index, circuit in enumerate(batch):
            (folder / f"{index}.v").write_text(circuit.verilog, encoding="utf-8")
        scripts = (_READ.format(file=index, top=f"-top {circuit.module}" if circuit.module else "-auto-top")
                   for index, circuit in enumerate(batch))
        read = _each(batch, folder, scripts, lambda written, circuit: _accept(written, circuit.module))
        scripts = (_COUNT.format(file=index, flow=TRANSISTOR_FLOW) for index in range(len(batch)))
        mapped = _each(batch, folder, scripts, lambda written, _: _count(written))
        for circuit, (_, _, table, _, _), (mapped_table, _, _) in zip(batch, read, mapped, strict=True):
            if not np.array_equal(table, mapped_table):
                raise RedcaneError(f"{circuit.label}: Yosys' mapped netlist does not multiply as its Verilog does")
        return [Extracted(module, ports, table, helpers, transistors, signed_ports, gates)
                for (module, ports, table, helpers, signed_ports), (_, transistors, gates)
                in zip(read, mapped, strict=True)]


_Written = Callable[[str], dict[str, Any]]
_Result = TypeVar("_Result")


def _each(batch: Sequence[Circuit], folder: Path, scripts: Iterable[str],
          finish: Callable[[_Written, Circuit], _Result]) -> list[_Result]:
    """Run one script for each circuit in one Yosys process, then `finish` each with what was written about it.

    The circuit at which Yosys stopped is the first that lacks a file.
    """
    stopped = "it gave no reason"
    try:
        run_yosys("".join(scripts), folder, timeout=_SECONDS[0] + _SECONDS[1] * len(batch))
    except YosysError as error:
        stopped = error.reason

    def written(index: int, name: str) -> dict[str, Any]:
        path = folder / f"{index}.{name}.json"
        if not path.exists():
            raise YosysError(stopped)
        if path.stat().st_size > _MOST_NETLIST_BYTES:
            raise RedcaneError(f"its netlist is larger than the {_MOST_NETLIST_BYTES >> 20} MiB that are read")
        try:
            netlist: dict[str, Any] = json.loads(path.read_bytes())
        except ValueError:  # stopped while it was writing this file
            raise YosysError(stopped) from None
        return netlist

    results = []
    for index, circuit in enumerate(batch):
        try:
            results.append(finish(partial(written, index), circuit))
        except YosysError as error:
            raise RedcaneError(f"{circuit.label}: {error}".replace(f" {index}.v:", " line ")) from None
        except RedcaneError as error:
            raise RedcaneError(f"{circuit.label}: {error}") from None
    return results


def _accept(written: _Written, module: str | None) -> tuple[str, Ports, NDArray[np.uint16], tuple[str, ...], bool]:
    modules = written("modules")["modules"]
    if module is None:
        _check_one_top(modules)
    name, netlist = _only_module(written("gates"))
    if not _MODULE_NAME.fullmatch(name):
        raise RedcaneError(f"`{name[:80]}` is not a plain module name: use letters, digits and _")
    table = product_table(netlist)
    helpers = tuple(other for other in modules if other != name)
    return name, multiplier_ports(netlist), table, helpers, has_signed_ports(netlist)


def _count(written: _Written) -> tuple[NDArray[np.uint16], int, bytes]:
    _, netlist = _only_module(written("mapped"))
    count = str(written("stat")["design"].get("estimated_num_transistors", 0))
    cells = [{"type": cell["type"], "connections": cell["connections"]} for cell in netlist["cells"].values()]
    gates = {"ports": netlist["ports"], "cells": dict(zip(map(str, range(len(cells))), cells, strict=True))}
    return product_table(netlist), int(count.rstrip("+")), json.dumps(gates, separators=(",", ":")).encode()


def _check_one_top(modules: dict[str, Any]) -> None:
    """Refuse a file in which more than one module is instantiated by no other."""
    used = {cell["type"] for module in modules.values() for cell in module["cells"].values()}
    tops = [name for name in modules if name not in used]
    if len(tops) > 1:
        raise RedcaneError(f"several modules could be the multiplier ({', '.join(tops[:6])}): keep one in the file")


def _only_module(netlist: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    modules = [(n, m) for n, m in netlist["modules"].items() if "blackbox" not in m.get("attributes", {})]
    if not modules:
        raise RedcaneError("it holds no module with ports and logic")
    if len(modules) != 1:
        raise RedcaneError(f"it should flatten to one module, not to {len(modules)}")
    return modules[0]


def cache_folder() -> Path:
    """Where what can be made again is kept: `$REDCANE_CACHE`, or the user's cache folder."""
    return Path(os.environ.get("REDCANE_CACHE") or user_cache_path("redcane", appauthor=False))


def _cache_file(circuit: Circuit) -> Path:
    key = json.dumps([4, yosys_version(), _READ, _COUNT, TRANSISTOR_FLOW, circuit.module, circuit.verilog])
    return cache_folder() / "multipliers" / f"{digest(key.encode())}.npz"


def _cached(circuit: Circuit) -> Extracted | None:
    """What the cache knows; an entry that is damaged in any way counts as missing."""
    try:
        content = io.BytesIO(read_bounded(_cache_file(circuit), _MOST_CACHE_BYTES))
        if sum(member.file_size for member in zipfile.ZipFile(content).infolist()) > _MOST_CACHE_BYTES:
            return None
        with np.load(content, allow_pickle=False) as arrays:
            table, names, transistors = arrays["table"], arrays["names"], arrays["transistors"]
            signed_ports, gates = bool(arrays["signed_ports"]), arrays["gates"].tobytes()
        if table.shape != (256, 256) or table.dtype != np.uint16 or names.ndim != 1 or names.dtype.kind != "U":
            return None
        module, a, b, out, *helpers = (str(name) for name in names)
        return Extracted(module, Ports(a, b, out), table, tuple(helpers), int(transistors), signed_ports, gates)
    except (RedcaneError, OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None


def _store(circuit: Circuit, extracted: Extracted) -> None:
    content = io.BytesIO()
    np.savez_compressed(
        content, table=extracted.table, transistors=extracted.transistors, signed_ports=extracted.signed_ports,
        gates=np.frombuffer(extracted.gates, np.uint8),
        names=np.array([extracted.module, *extracted.ports, *extracted.helpers], dtype=np.str_),
    )
    with suppress(OSError):  # an unwritable cache costs time, nothing else
        write_atomic(_cache_file(circuit), content.getvalue())
