"""What a multiplier costs in a cell library: every component through one and the same flow.

Yosys maps it to the cells of a Liberty file, full adders to the library's own (`FLOW`); the mapped netlist is
evaluated for all 65,536 operand pairs and must give the component's table. The area is the sum of the cells'. Delay,
and each instance's energy for one toggle, come from OpenSTA; how often an instance toggles is counted by ourselves
over a sequence of operand pairs, in zero delay (so glitches are left out). Results are cached by content.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.errors import RedcaneError
from model.files import digest, read_bounded, write_atomic
from model.multipliers.component import Multiplier
from model.multipliers.gates import PAIRS, Ports, product_table, signal_words
from model.multipliers.netlist import cache_folder
from model.opensta import CLOCK_NS, Report, analyse, opensta_version
from model.yosys import YosysError, run_yosys, yosys_version

SEQUENCE = 1 << 14
"""How many operand pairs, one after the other, the toggles are counted over."""

_SCHEMA = 1
_SECONDS = 120  # for a component
_MOST_LIBERTY_BYTES = 64 << 20
_MOST_JSON_BYTES = 64 << 20

_CELLS = """
read_liberty -ignore_miss_func cells.lib
write_json cells.json
"""
# Names are replaced by g1, g2, ... so that nothing from the component's text reaches OpenSTA.
FLOW = """
read_verilog component.v
hierarchy -check -top {module}
proc -norom
synth -flatten -top {module}
rename -top multiplier
{full_adders}
techmap
opt
read_liberty -lib cells.lib
abc -liberty cells.lib
opt_clean -purge
rename -hide
rename -enumerate -pattern g%
tee -q -o stat.json stat -json -liberty cells.lib
write_json mapped.json
splitnets -ports
opt_clean
write_verilog -noattr -noexpr -nohex mapped.v
"""
_FULL_ADDERS = "extract_fa -fa\ntechmap -map full_adder.v"
_FULL_ADDER = """
(* techmap_celltype = "$fa" *)
module full_adder (A, B, C, X, Y);
  parameter WIDTH = 1;
  input [WIDTH-1:0] A, B, C;
  output [WIDTH-1:0] X, Y;
  {cell} _TECHMAP_REPLACE_ (.{0}(A), .{1}(B), .{2}(C), .{carry}(X), .{sum}(Y));
endmodule
"""
_CARRY, _SUM = (0, 0, 0, 1, 0, 1, 1, 1), (0, 1, 1, 0, 1, 0, 0, 1)

Netlist = dict[str, Any]
"""A module in Yosys' JSON."""


class Characterisation(BaseModel):
    """A component in cells of a library."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    cells: int = Field(ge=0)
    area: float = Field(ge=0)
    """In the Liberty file's unit, square micrometres by custom."""
    delay_ns: float | None = None
    """The longest path; None, as the energies, without OpenSTA."""
    energy_pj: float | None = None
    """Mean energy of one multiplication, the leakage of a clock cycle of `CLOCK_NS` included."""
    leakage_pj: float | None = None
    """The leakage's part of it."""


def operand_sequence(histogram: ArrayLike | None = None, length: int = SEQUENCE, seed: int = 0) -> NDArray[np.int64]:
    """Operand pairs one after the other, int64 [length], each 256 a + b: independent draws, uniform by default.

    `histogram` [256, 256], indexed [a, b], says how often each pair occurs. Raises RedcaneError where it holds
    negative numbers or nothing.
    """
    rng = np.random.default_rng(seed)
    if histogram is None:
        return rng.integers(0, PAIRS, length)
    weights = np.asarray(histogram, np.float64)
    if weights.shape != (256, 256) or not np.isfinite(weights).all() or weights.min() < 0 or weights.sum() == 0:
        raise RedcaneError("an operand histogram is [256, 256], not negative, not all zero")
    return rng.choice(PAIRS, length, p=weights.ravel() / weights.sum())


def characterize(components: Sequence[Multiplier], liberty: Path, opensta: str | None,
                 sequence: NDArray[np.int64] | None = None,
                 done: Callable[[int], None] = lambda count: None) -> dict[str, Characterisation]:
    """The costs of components (by name) in the cells of a Liberty file.

    `opensta` is the program's path (`model.opensta.find_opensta`); with None there are areas only. `sequence` is an
    `operand_sequence`, or several in rows. `done` is told how many more components are finished. Raises RedcaneError,
    naming the component, where a tool fails or a mapped netlist does not multiply as its component's table says.
    """
    sequence = operand_sequence() if sequence is None else sequence
    library = read_bounded(liberty, _MOST_LIBERTY_BYTES)
    tools = [yosys_version(), opensta and opensta_version(opensta), CLOCK_NS, digest(library),
             digest(sequence.astype("<i8").tobytes()), sequence.shape]
    files = {c.name: _cache_file(c, tools) for c in components}
    found = {name: known for name, file in files.items() if (known := _cached(file, opensta is not None))}
    done(len(found))
    missing = [c for c in components if c.name not in found]
    cells, rule = read_cells(library, liberty) if missing else ({}, None)

    def measure(component: Multiplier) -> Characterisation:
        try:
            mapped, area, verilog = _map(component, library, rule)
            report = partial(analyse, opensta, verilog, library) if opensta else None
            return _measure(component, mapped, cells, area, sequence, report)
        except YosysError as error:
            raise RedcaneError(f"{component.name}: Yosys cannot map it to the cells of {liberty} ({error.reason}); "
                               "gates with their timing are needed") from None
        except RedcaneError as error:
            raise RedcaneError(f"{component.name}: {error}") from None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for component, result in zip(missing, pool.map(measure, missing), strict=True):
            found[component.name] = result
            with suppress(OSError):  # an unwritable cache costs time, nothing else
                write_atomic(files[component.name], result.model_dump_json())
            done(1)
    return {c.name: found[c.name] for c in components}


def _measure(component: Multiplier, mapped: Netlist, cells: Mapping[str, Netlist], area: float,
             sequence: NDArray[np.int64], report: Callable[[], Report] | None) -> Characterisation:
    flat, outputs = flatten(mapped, cells, component.ports)
    check(flat, component)
    if report is None:
        return Characterisation(cells=len(outputs), area=area)
    if not outputs:  # a constant, or wires alone
        return Characterisation(cells=0, area=area, delay_ns=0, energy_pj=0, leakage_pj=0)
    found = report()
    if strange := outputs.keys() ^ found.energy_pj.keys():
        raise RedcaneError(f"OpenSTA and Yosys do not see the same cells ({min(strange)[:60]})")
    rates = toggle_rates(flat, [net for nets in outputs.values() for net in nets], sequence)
    dynamic = sum(found.energy_pj[name] * sum(rates[net] for net in nets) / len(nets)
                  for name, nets in outputs.items())
    leakage = found.leakage_w * CLOCK_NS * 1e3
    return Characterisation(cells=len(outputs), area=area, delay_ns=found.delay_ns, energy_pj=dynamic + leakage,
                            leakage_pj=leakage)


def flatten(mapped: Netlist, cells: Mapping[str, Netlist], ports: Ports) -> tuple[Netlist, dict[str, list[int]]]:
    """A mapped netlist with each instance replaced by its cell's gates, and the output nets of each instance.

    The ports are called A, B and O in the result. Raises RedcaneError for cells that are not in `cells`.
    """
    names = dict(zip(ports, "ABO", strict=True))
    fresh = itertools.count(1 + max(_nets(mapped), default=0))
    gates: dict[str, Any] = {}
    outputs: dict[str, list[int]] = {}
    for name, instance in mapped["cells"].items():
        if instance["type"] not in cells:
            raise RedcaneError(f"its mapped netlist holds `{instance['type'][:60]}`, which is no cell of the library")
        cell = cells[instance["type"]]
        inner: dict[int | str, int | str] = {"0": "0", "1": "1", "x": "x", "z": "z"}
        driven = []
        for port, pin in cell["ports"].items():
            net = (instance["connections"].get(port) or ["x"])[0]
            if pin["direction"] == "input":
                inner[pin["bits"][0]] = net
            else:
                driven.append((pin["bits"][0], net if isinstance(net, int) else next(fresh)))
        for net in _nets(cell):
            inner.setdefault(net, next(fresh))
        for gate in cell["cells"].values():
            connections = {pin: [inner[net] for net in nets] for pin, nets in gate["connections"].items()}
            gates[str(len(gates))] = {"type": gate["type"], "connections": connections}
        for inside, net in driven:
            gates[str(len(gates))] = {"type": "$_BUF_", "connections": {"A": [inner[inside]], "Y": [net]}}
        outputs[name] = [net for _, net in driven]
    bits = {names[name]: port["bits"] for name, port in mapped["ports"].items() if name in names}
    return _module(bits["A"], bits["B"], bits["O"], gates), outputs


def check(flat: Netlist, component: Multiplier) -> None:
    """Raise RedcaneError unless a flat netlist (`flatten`) gives the component's table for all 65,536 pairs."""
    wrong = np.argwhere(product_table(flat) != component.table.view(np.uint16))
    if len(wrong):
        a, b = wrong[0]
        raise RedcaneError(f"its mapped netlist multiplies otherwise than its table for {len(wrong)} operand pairs, "
                           f"the first of them {a} x {b}")


def toggle_rates(flat: Netlist, nets: Sequence[int], sequence: NDArray[np.int64]) -> dict[int, float]:
    """How often each net of a flat netlist changes from one operand pair of the sequence to the next, 0 ... 1; from one
    row of several sequences to the next, nothing is counted.
    """
    rates = {}
    for start in range(0, len(nets), 64):
        probed = nets[start:start + 64]
        words = signal_words(flat, probed)[sequence]
        changes = words[..., 1:] ^ words[..., :-1]
        rates.update({net: float(np.mean(changes >> np.uint64(k) & np.uint64(1))) for k, net in enumerate(probed)})
    return rates


def full_adder(cells: Mapping[str, Netlist]) -> str | None:
    """The techmap rule, as Verilog, that maps Yosys' `$fa` to the library's smallest full adder; None without one."""
    found = []
    for name, cell in cells.items():
        inputs, outputs = ([port for port, pin in cell["ports"].items() if pin["direction"] == direction]
                           for direction in ("input", "output"))
        if len(inputs) != 3 or len(outputs) != 2 or not all(map(str.isidentifier, (name, *inputs, *outputs))):
            continue
        pins = [cell["ports"][p]["bits"][0] for p in (*inputs, *outputs)]
        spare = list(range(-13, 0))
        try:
            table = product_table(_module(spare[:8], pins[:3] + spare[8:], pins[3:] + ["0"] * 14, cell["cells"]))
        except RedcaneError:
            continue  # a flip-flop, say
        by_function = {tuple(int(v) for v in table[0, :8] >> k & 1): pin for k, pin in enumerate(outputs)}
        if by_function.keys() == {_CARRY, _SUM}:
            area = float(cell["attributes"].get("area", "inf"))
            rule = _FULL_ADDER.format(*inputs, cell=name, carry=by_function[_CARRY], sum=by_function[_SUM])
            found.append((area, rule))
    return min(found)[1] if found else None


def _module(a: list[Any], b: list[Any], out: list[Any], gates: dict[str, Any]) -> Netlist:
    ports = {"A": ("input", a), "B": ("input", b), "O": ("output", out)}
    return {"ports": {n: {"direction": d, "bits": bits} for n, (d, bits) in ports.items()}, "cells": gates}


def _nets(module: Netlist) -> set[int]:
    """All nets of a module."""
    bits = [*(port["bits"] for port in module["ports"].values()),
            *(nets for cell in module["cells"].values() for nets in cell["connections"].values())]
    return {net for nets in bits for net in nets if isinstance(net, int)}


def read_cells(library: bytes, liberty: Path) -> tuple[dict[str, Netlist], str | None]:
    """The library's cells as gates, those with pins of several bits left out, and the full adder's rule."""
    with tempfile.TemporaryDirectory(prefix="redcane-characterize-") as name:
        folder = Path(name)
        (folder / "cells.lib").write_bytes(library)
        try:
            run_yosys(_CELLS, folder)
        except YosysError as error:
            raise RedcaneError(f"{liberty}: Yosys cannot read it as a Liberty file ({error.reason})") from None
        modules = json.loads(read_bounded(folder / "cells.json", _MOST_JSON_BYTES))["modules"]
    cells = {name: cell for name, cell in modules.items()
             if all(len(pin["bits"]) == 1 and pin["direction"] != "inout" for pin in cell["ports"].values())}
    if not cells:
        raise RedcaneError(f"{liberty}: it holds no cells")
    return cells, full_adder(cells)


def _map(component: Multiplier, library: bytes, rule: str | None) -> tuple[Netlist, float, str]:
    """Mapped netlist, area and Verilog of a component, from a Yosys process of its own.

    Of its own, since Yosys numbers what it makes and ABC's choices follow that order: a component's area must not
    depend on which others are measured with it.
    """
    with tempfile.TemporaryDirectory(prefix="redcane-characterize-") as name:
        folder = Path(name)
        (folder / "cells.lib").write_bytes(library)
        (folder / "full_adder.v").write_text(rule or "")
        (folder / "component.v").write_text(component.verilog, encoding="utf-8")
        run_yosys(FLOW.format(module=component.module, full_adders=_FULL_ADDERS if rule else ""), folder, _SECONDS)
        mapped = json.loads(read_bounded(folder / "mapped.json", _MOST_JSON_BYTES))["modules"]["multiplier"]
        area = json.loads(read_bounded(folder / "stat.json", _MOST_JSON_BYTES))["design"].get("area", 0)
        return mapped, float(area), read_bounded(folder / "mapped.v", _MOST_JSON_BYTES).decode()


def _cache_file(component: Multiplier, tools: list[Any]) -> Path:
    key = json.dumps([_SCHEMA, FLOW, _FULL_ADDERS, _FULL_ADDER, tools, component.module, component.ports,
                      component.table_sha256, component.verilog])
    return cache_folder() / "characterized" / f"{digest(key.encode())}.json"


def _cached(file: Path, with_power: bool) -> Characterisation | None:
    """What the cache knows; an entry that is damaged in any way counts as missing."""
    try:
        found = Characterisation.model_validate_json(read_bounded(file, 1 << 16))
    except (RedcaneError, OSError, ValidationError):
        return None
    complete = None not in (found.delay_ns, found.energy_pj, found.leakage_pj)
    return found if complete or not with_power else None
