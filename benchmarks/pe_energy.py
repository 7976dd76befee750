"""The energy of a whole processing element: operand registers, sign logic, multiplier, accumulator.

The element multiplies and accumulates, one product a cycle: two operand registers, hw/pe.py with its product register,
and a 32-bit accumulator. What a format never uses is tied off before synthesis: the affine format has no signs;
sign-magnitude has signed B operands always (weights, votes) and one alignment.

Yosys maps it to the cells of a Liberty file by the steps of model/multipliers/characterize.py. The mapped netlist is
simulated, cycle by cycle in zero delay, on streams of real operands, and its accumulators must come out right. An
instance costs what OpenSTA says of one toggle, times its outputs' toggles (so without glitches), plus what it takes
without any toggle, which is the flip-flops' clock; plus leakage.
"""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
from amaranth import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import NDArray

import hw.pe
from hw.parameters import MultiplierKind
from hw.pe import PE
from hw.verilog import to_verilog
from model.files import digest, read_bounded, write_atomic
from model.multipliers.characterize import read_cells
from model.multipliers.component import Multiplier
from model.multipliers.netlist import cache_folder
from model.opensta import CLOCK_NS, analyse, opensta_version
from model.yosys import run_yosys, yosys_version

LANES, CYCLES = 2048, 48
"""Streams that are simulated side by side, and their length."""
LATENCY = 3  # cycles from an operand at the port to the accumulator that holds its product

_TOP = """
module multiplier(input clk, input clear, input a_signed, input [7:0] a, input [7:0] b, output [31:0] sum);
  mac element(.clk(clk), .rst(1'b0), .clear(clear), .a_signed({a_signed}), .a(a), .b(b), .sum(sum));
endmodule
"""
_FLOW = """
read_verilog design.v component.v
hierarchy -check -top multiplier
proc -norom
synth -flatten -top multiplier
{full_adders}
techmap
opt
dfflibmap -liberty cells.lib
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
_MOST_BYTES = 64 << 20
Words = NDArray[np.uint64]


class Mac(wiring.Component):
    """sum := (clear ? 0 : sum) + a * b, through the registers of the operands and of the product; `clear` comes with
    the first operands of a sum. `align` is None for the affine format, whose corrections are not part of it.
    """

    def __init__(self, kind: MultiplierKind, align: int | None) -> None:
        self.kind, self.align = kind, align
        super().__init__({"a": In(8), "b": In(8), "a_signed": In(1), "clear": In(1), "sum": Out(signed(32))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.pe = pe = PE((self.kind,))
        clears = Signal(2)
        m.d.sync += [pe.a.eq(self.a), pe.b.eq(self.b), clears.eq(self.clear | clears << 1)]
        m.d.comb += [pe.valid.eq(1), pe.kind.eq(0), pe.align.eq(self.align or 0)]
        m.d.comb += [pe.a_signed.eq(self.a_signed), pe.b_signed.eq(self.align is not None)]
        m.d.sync += self.sum.eq(Mux(clears[1], 0, self.sum) + pe.product)
        return m


@dataclass(frozen=True)
class Stream:
    """What a network's operations put on the ports of an element in each lane, from the beginning of a sum on.

    Lane i is simulated from term `begin[i]` on for CYCLES terms; those before it are in its accumulator then.
    """

    a: NDArray[np.uint8]  # (LANES, T): bytes as the element takes them, sign and magnitude or the code
    b: NDArray[np.uint8]
    a_signed: NDArray[np.bool_]  # (LANES,)
    clear: NDArray[np.bool_]  # (LANES, T): a sum begins
    begin: NDArray[np.int64]  # (LANES,)

    def cut(self, values: NDArray[Any]) -> NDArray[Any]:
        """The simulated part (LANES, CYCLES) of what there is for every term (LANES, T)."""
        return np.take_along_axis(values, self.begin[:, None] + np.arange(CYCLES), axis=1)


@dataclass(frozen=True)
class Element:
    """A mapped element: its netlist and what its instances cost."""

    area: float
    netlist: dict[str, Any]
    toggle_pj: dict[str, float]  # energy of an instance if its outputs toggle once
    clock_pj: float  # of all instances in a cycle without toggles
    leakage_pj: float


@lru_cache(maxsize=8)
def map_element(component: Multiplier, align: int | None, liberty: Path, opensta: str) -> Element:
    """Map the element with this multiplier to the cells of a Liberty file, and ask OpenSTA what they cost; cached."""
    sources = [inspect.getsource(Mac), inspect.getsource(hw.pe), inspect.getsource(_mapped), _TOP, _FLOW]
    key = [*sources, component.verilog, component.module, component.ports, align, digest(liberty), yosys_version(),
           opensta_version(opensta)]  # fmt: skip
    file = cache_folder() / "elements" / f"{digest(json.dumps(key).encode())}.json"
    if file.exists():
        return Element(**json.loads(read_bounded(file, _MOST_BYTES)))
    element = _mapped(component, align, read_bounded(liberty, _MOST_BYTES), cells_of(liberty)[1], opensta)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps(asdict(element)))
    return element


def _mapped(component: Multiplier, align: int | None, library: bytes, rule: str | None, opensta: str) -> Element:
    kind = MultiplierKind(component.name, component.module, *component.ports)
    design = to_verilog(Mac(kind, align), "mac") + _TOP.format(a_signed="1'b0" if align is None else "a_signed")
    with tempfile.TemporaryDirectory(prefix="redcane-pe-") as name:
        folder = Path(name)
        files = {"cells.lib": library, "full_adder.v": (rule or "").encode(), "design.v": design.encode(),
                 "component.v": component.verilog.encode()}  # fmt: skip
        for file, content in files.items():
            (folder / file).write_bytes(content)
        run_yosys(_FLOW.format(full_adders="extract_fa -fa\ntechmap -map full_adder.v" if rule else ""), folder, 120)
        netlist = json.loads(read_bounded(folder / "mapped.json", _MOST_BYTES))["modules"]["multiplier"]
        area = json.loads(read_bounded(folder / "stat.json", _MOST_BYTES))["design"].get("area", 0.0)
        verilog = read_bounded(folder / "mapped.v", _MOST_BYTES).decode()
    netlist = {"ports": netlist["ports"], "cells": netlist["cells"]}
    if not netlist["cells"]:  # a multiplier that is constantly zero needs no element
        return Element(area, netlist, {}, 0.0, 0.0)
    busy, still = (analyse(opensta, verilog, library, "clk", activity) for activity in (1.0, 0.0))
    toggles = {name: energy - still.energy_pj[name] for name, energy in busy.energy_pj.items()}
    return Element(area, netlist, toggles, sum(still.energy_pj.values()), busy.leakage_w * CLOCK_NS * 1e3)


def products(table: NDArray[np.uint16], align: int | None, stream: Stream) -> NDArray[np.int64]:
    """What a multiplier of this table should make of a stream, int64 (LANES, T) (docs/numerics.md)."""
    a, b = stream.a.astype(np.int64), stream.b.astype(np.int64)
    if align is None:
        return table[a, b].astype(np.int64)
    a_signed = stream.a_signed[:, None]
    found = table[np.where(a_signed, (a & 127) << align, a), (b & 127) << align].astype(np.int64)
    return np.where((a_signed & (a > 127)) ^ (b > 127), -found, found)


def energy(element: Element, component: Multiplier, align: int | None, stream: Stream,
           liberty: Path) -> dict[str, float]:  # fmt: skip
    """Energies of a cycle in pJ: `logic`, `registers` (their data and their clock), `leakage`, and the `total`.

    An element whose accumulators do not hold the sums of the component's products is an error.
    """
    terms, clear = products(component.table, align, stream), stream.cut(stream.clear)
    before = np.arange(terms.shape[1]) < stream.begin[:, None]
    start = np.where(before, terms, 0).sum(axis=1)
    toggles, sums = _simulate(element.netlist, cells_of(liberty)[0], stream, start)
    expected = start + int(component.table[0, 0])  # the operand registers begin with zeros
    terms = stream.cut(terms)
    for t in range(CYCLES - LATENCY):
        expected = np.where(clear[:, t], 0, expected) + terms[:, t]
    if not np.array_equal(sums, expected):
        raise AssertionError(f"{component.name}: the mapped element does not sum up its products")
    parts = {"logic": 0.0, "registers": element.clock_pj, "leakage": element.leakage_pj}
    for name, rate in toggles.items():
        clocked = "CLK" in element.netlist["cells"][name]["connections"]
        parts["registers" if clocked else "logic"] += float(element.toggle_pj[name] * rate)
    return {**parts, "total": sum(parts.values())}


@cache
def cells_of(liberty: Path) -> tuple[Mapping[str, dict[str, Any]], str | None]:
    """The cells of a Liberty file as gates, and the rule that maps full adders."""
    return read_cells(read_bounded(liberty, _MOST_BYTES), liberty)


_GATES: dict[str, tuple[str, Callable[..., Words]]] = {
    "$_BUF_": ("A", lambda a: a),
    "$_NOT_": ("A", lambda a: ~a),
    "$_AND_": ("AB", lambda a, b: a & b),
    "$_OR_": ("AB", lambda a, b: a | b),
    "$_ANDNOT_": ("AB", lambda a, b: a & ~b),
    "$_ORNOT_": ("AB", lambda a, b: a | ~b),
    "$_XOR_": ("AB", lambda a, b: a ^ b),
    "$_MUX_": ("ABS", lambda a, b, s: a & ~s | b & s),
}


def _simulate(netlist: dict[str, Any], cells: Mapping[str, dict[str, Any]], stream: Stream,
              start: NDArray[np.int64]) -> tuple[dict[str, float], NDArray[np.int64]]:  # fmt: skip
    """Run all lanes at once, a bit each: toggles of every instance in a cycle, and what the accumulators hold last.

    `start` (LANES,) is what they hold at first.
    """
    clear, a, b = (stream.cut(values) for values in (stream.clear, stream.a, stream.b))
    registers: dict[int, int] = {}  # Q -> D
    drivers: dict[int, tuple[str, str]] = {}  # net -> instance, output pin
    feeds: dict[str, set[str]] = {}
    for name, instance in netlist["cells"].items():
        pins = {pin: nets[0] for pin, nets in instance["connections"].items()}
        if "CLK" in pins:
            registers[pins["Q"]] = pins["D"]
        else:
            drivers |= {pins[pin]: (name, pin) for pin, port in cells[instance["type"]]["ports"].items()
                        if port["direction"] == "output" and pin in pins}  # fmt: skip
    for name, instance in netlist["cells"].items():
        if "CLK" not in instance["connections"]:
            nets = [nets[0] for nets in instance["connections"].values()]
            feeds[name] = {drivers[net][0] for net in nets if net in drivers and drivers[net][0] != name}
    order = [_compiled(netlist["cells"][name], cells) for name in TopologicalSorter(feeds).static_order()]

    bits = {name: port["bits"] for name, port in netlist["ports"].items()}
    nothing = np.zeros(LANES // 64, np.uint64)
    state: dict[int | str, Words] = {"0": nothing, "1": ~nothing, "x": nothing}
    state |= dict.fromkeys(registers, nothing)
    for k, net in enumerate(bits["sum"]):
        if net in registers:
            state[net] = _packed(start >> k & 1)
    outputs = {name: [pins[0] for pin, pins in instance["connections"].items() if pin in ("Q",) or (
        "CLK" not in instance["connections"] and cells[instance["type"]]["ports"][pin]["direction"] == "output")]
        for name, instance in netlist["cells"].items()}  # fmt: skip
    watched = list(dict.fromkeys(net for nets in outputs.values() for net in nets))
    counts, before = np.zeros(len(watched), np.int64), None
    state |= {bits["a_signed"][0]: _packed(stream.a_signed)}
    for t in range(CYCLES):
        state[bits["clear"][0]] = _packed(clear[:, t])
        for port, values in (("a", a), ("b", b)):
            for k, net in enumerate(bits[port]):
                state[net] = _packed(values[:, t] >> k & 1)
        for compute in order:
            compute(state)
        now = np.array([state[net] for net in watched], np.uint64).reshape(len(watched), LANES // 64)
        if t > LATENCY and before is not None:
            counts += np.bitwise_count(now ^ before).sum(axis=1, dtype=np.int64)
        before = now
        if t < CYCLES - 1:
            state |= {q: state[d] for q, d in registers.items()}
    rates = dict(zip(watched, counts / (LANES * (CYCLES - 1 - LATENCY)), strict=True))
    toggles = {name: sum(rates[net] for net in nets) / max(1, len(nets)) for name, nets in outputs.items()}
    sums = sum(np.unpackbits(state[net].view(np.uint8), bitorder="little").astype(np.int64) << k
               for k, net in enumerate(bits["sum"]))  # fmt: skip
    return toggles, np.where(sums >> 31 & 1, sums - (1 << 32), sums)


def _compiled(
    instance: dict[str, Any], cells: Mapping[str, dict[str, Any]]
) -> Callable[[dict[int | str, Words]], None]:
    """A function that computes an instance's outputs from its inputs in a state."""
    cell = cells[instance["type"]]
    inner = {cell["ports"][pin]["bits"][0]: nets[0] for pin, nets in instance["connections"].items()}
    made = {gate["connections"]["Y"][0]: gate for gate in cell["cells"].values()}
    wanted = [port["bits"][0] for pin, port in cell["ports"].items()
              if port["direction"] == "output" and port["bits"][0] in inner]  # fmt: skip

    def value(net: Any, state: dict[int | str, Words]) -> Words:
        gate = made.get(net)
        if gate is None:
            return state[inner.get(net, net)]
        pins, function = _GATES[gate["type"]]
        return function(*(value(gate["connections"][pin][0], state) for pin in pins))

    def compute(state: dict[int | str, Words]) -> None:
        for net in wanted:
            state[inner[net]] = value(net, state)

    return compute


def _packed(flags: NDArray[Any]) -> Words:
    return np.packbits(flags.astype(np.uint8), bitorder="little").view(np.uint64)
