"""The products of a generated PE, every one of them: its netlist evaluated for all operands, against the tables.

Simulation shows what the images bring about; an approximate multiplier with a wrong gate may pass that way. Here pe.v
and the multipliers as they lie in the folder are flattened to gates, the registers opened, and the gates evaluated
for all 65,536 pairs of bytes, in every number format and for every multiplier.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hw.generate import TOP
from model.errors import RedcaneError
from model.files import read_bounded
from model.multipliers.gates import product_table
from model.multipliers.netlist import MOST_VERILOG_BYTES
from model.yosys import run_yosys

_SECONDS = 300
_MOST_NETLIST_BYTES = 64 << 20
_MOST_DESCRIPTION_BYTES = 1 << 20
_PORTS = {"a": 8, "b": 8, "a_signed": 1, "b_signed": 1, "align": 1, "valid": 1, "kind": 0, "clk": 1, "rst": 1,
          "product": 17}  # fmt: skip
_FLOW = """
read_verilog pe.v {multipliers}
hierarchy -check -top pe
proc -norom
flatten -noscopeinfo
opt -full
techmap
dfflegalize -cell $_DFF_P_ 01
opt_clean
write_json pe.json
"""


def check_products(tables: Mapping[str, NDArray[np.integer]], rtl: Path) -> dict[str, Any]:
    """Every product of the PE in the folder `rtl` against the product tables of its network, by component.

    Returns {"products": how many were compared, "differing": how many differ, "first": null or the first of those:
    component, a and b (bytes), a_signed, b_signed, align, expected, got}.

    Raises RedcaneError for files that are missing, no Verilog of gates, or not a PE's.
    """
    kinds = _kinds(rtl)
    unknown = [name for name, _ in kinds if name not in tables]
    if unknown:
        raise RedcaneError(
            f"{rtl}: it holds the multiplier {unknown[0]!r}, which the network does not use; generate it again"
        )
    module = _gates(rtl)
    compared = differing = 0
    first: dict[str, Any] | None = None
    for kind, (name, is_signed) in enumerate(kinds):
        for flags in _flags():
            wanted = _wanted(tables[name], is_signed, flags)
            got = _evaluate(module, {**flags, "kind": kind, "rst": 0}, rtl)
            wrong = np.argwhere(got != wanted)
            compared += wanted.size
            differing += len(wrong)
            if len(wrong) and first is None:
                a, b = (int(i) for i in wrong[0])
                first = {
                    "component": name,
                    "a": a,
                    "b": b,
                    **flags,
                    "expected": int(wanted[a, b]),
                    "got": int(got[a, b]),
                }
    return {"products": compared, "differing": differing, "first": first}


def _flags() -> Iterator[dict[str, int]]:
    """All settings under which a PE works, and one under which it rests."""
    for a_signed, b_signed, align in product((0, 1), repeat=3):
        if a_signed | b_signed or not align:  # nothing to align without a sign
            yield {"a_signed": a_signed, "b_signed": b_signed, "align": align, "valid": 1}
    yield {"a_signed": 0, "b_signed": 0, "align": 0, "valid": 0}


def _wanted(table: NDArray[np.integer], is_signed: bool, flags: dict[str, int]) -> NDArray[np.int64]:
    """What `hw.pe.PE` promises for all bytes, (256, 256) as [a, b]."""
    bytes_ = np.arange(256)
    if is_signed:  # sign and magnitude to two's complement
        ports = np.where(bytes_ >> 7, -(bytes_ & 127), bytes_) & 255
        return table.astype(np.int64)[np.ix_(ports, ports)] * flags["valid"]
    magnitudes, signs = [], []
    for has_sign in (flags["a_signed"], flags["b_signed"]):
        magnitudes.append((bytes_ & 127) << flags["align"] if has_sign else bytes_)
        signs.append(np.where(has_sign & (bytes_ >> 7), -1, 1))
    return table.astype(np.int64)[np.ix_(*magnitudes)] * np.outer(*signs) * flags["valid"]


def _evaluate(module: dict[str, Any], inputs: dict[str, int], rtl: Path) -> NDArray[np.int64]:
    """The 17-bit product of the PE for all bytes and one setting of the other inputs, (256, 256) as [a, b]."""
    ports = {name: port["bits"] for name, port in module["ports"].items()}
    fixed = {net: str(value >> bit & 1) for name, value in inputs.items() for bit, net in enumerate(ports[name])}
    cells = {}
    for name, cell in module["cells"].items():
        nets = {pin: [fixed.get(net, net) for net in bits] for pin, bits in cell["connections"].items()}
        if cell["type"] == "$_DFF_P_":
            cells[name] = {"type": "$_BUF_", "connections": {"A": nets["D"], "Y": nets["Q"]}}
        else:
            cells[name] = {"type": cell["type"], "connections": nets}

    def output(bits: list[Any]) -> NDArray[np.int64]:
        described = {"A": ("input", ports["a"]), "B": ("input", ports["b"]), "O": ("output", bits)}
        flat = {"ports": {n: {"direction": d, "bits": bits} for n, (d, bits) in described.items()}, "cells": cells}
        try:
            return product_table(flat).astype(np.int64)
        except RedcaneError as error:
            raise RedcaneError(f"{rtl / 'pe.v'}: {error}") from None

    sign = output([ports["product"][16], *["0"] * 15])
    return output(ports["product"][:16]) - (sign << 16)


def _kinds(rtl: Path) -> list[tuple[str, bool]]:
    """The multipliers of the PE and whether they are signed, in the order of its selector."""
    path = rtl / "accelerator.json"
    try:
        kinds = _json(path, _MOST_DESCRIPTION_BYTES)["parameters"]["kinds"]
        return [(str(kind["component"]), bool(kind["signed"])) for kind in kinds]
    except (ValueError, KeyError, TypeError) as problem:
        raise RedcaneError(f"{path}: not a description of an accelerator ({problem}); generate it again") from None


def _gates(rtl: Path) -> dict[str, Any]:
    """The PE as one flat module of gates and flip-flops."""
    with tempfile.TemporaryDirectory(prefix="redcane-structure-") as scratch:
        folder = Path(scratch)
        files = [path for path in sorted(rtl.glob("*.v")) if path.name not in (f"{TOP}.v", "pe.v")]
        (folder / "pe.v").write_bytes(read_bounded(rtl / "pe.v", MOST_VERILOG_BYTES))
        for index, path in enumerate(files):
            (folder / f"{index}.v").write_bytes(read_bounded(path, MOST_VERILOG_BYTES))
        run_yosys(_FLOW.format(multipliers=" ".join(f"{i}.v" for i in range(len(files)))), folder, _SECONDS)
        module: dict[str, Any] = _json(folder / "pe.json", _MOST_NETLIST_BYTES)["modules"]["pe"]
    found = {name: len(port["bits"]) for name, port in module["ports"].items()}
    if found.keys() != _PORTS.keys() or any(found[name] < width for name, width in _PORTS.items()):
        raise RedcaneError(f"{rtl / 'pe.v'}: its ports are not those of a PE ({', '.join(found)}); generate it again")
    return module


def _json(path: Path, most: int) -> Any:
    return json.loads(read_bounded(path, most))
