"""What the generated hardware takes of an FPGA: Yosys' mapping to the cells of a family, and for ECP5, where nextpnr is
installed, the clock that the array of PEs reaches placed and routed by itself.

The whole accelerator is not routed: nextpnr's first router stands still on one of 4 x 4 PEs.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flows.synthesize import TOP, copy_verilog
from model.errors import RedcaneError
from model.files import read_bounded
from model.nextpnr import nextpnr_version, place_and_route
from model.yosys import run_yosys

FamilyName = Literal["ecp5", "xilinx"]

ARRAY, ARRAY_CLOCK = "redcane.core.matmul.array", "core_clk"

_SECONDS = 3600
_MOST_REPORT_BYTES = 64 << 20
_MOST_DESIGN_BYTES = 512 << 20
_ECP5_DEVICE = ["--85k", "--package", "CABGA756", "--speed", "6"]
_STATISTICS = "tee -q -o statistics.json stat -json"


def _script(synthesis: str, arguments: str = "") -> str:
    """The Yosys script of a family's `synthesis` command, with more `arguments` where it ends.

    Amaranth names a signal like a bit of a vector (`word[0]`), and the two collide where abc9 takes vectors apart
    (github.com/YosysHQ/yosys/issues/4349), so they are taken apart before it.
    """
    command = f"{synthesis} -top {{top}} -run"
    return f"{command} begin:map_luts\nsplitnets\nopt_clean\n{command} map_luts: {arguments}\n{_STATISTICS}"


@dataclass(frozen=True)
class Family:
    """How an FPGA family is mapped to, and how much of what its cells are."""

    title: str
    script: str
    luts: Mapping[str, int]
    flip_flops: tuple[str, ...]
    dsps: tuple[str, ...]
    block_rams: Mapping[str, int]  # in blocks of 18 Kbit


FAMILIES: dict[FamilyName, Family] = {
    "ecp5": Family(
        "Lattice ECP5",
        _script("synth_ecp5", "-json design.json"),
        {"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 4},  # a carry is two LUTs; a slice of RAM takes two pairs of them
        ("TRELLIS_FF",),
        ("MULT18X18D",),
        {"DP16KD": 1},
    ),
    "xilinx": Family(
        "Xilinx 7 series",
        _script("synth_xilinx -family xc7 -flatten"),
        {**{f"LUT{k}": 1 for k in range(1, 7)}, "INV": 1, "RAM32M": 4, "RAM64M": 4, "SRL16E": 1, "SRLC32E": 1,
         "RAM32X1D": 2, "RAM64X1D": 2, "RAM128X1D": 4, "RAM256X1S": 4},
        ("FDRE", "FDSE", "FDCE", "FDPE"),
        ("DSP48E1",),
        {"RAMB18E1": 1, "RAMB36E1": 2},
    ),
}  # fmt: skip


def estimate(rtl: Path, family: FamilyName, top: str = TOP, array: str = ARRAY) -> dict[str, Any]:
    """The Verilog in the folder `rtl` mapped to an FPGA family; the section `fpga` of synthesis.json.

    {"family", "luts" (those of carries and small memories included), "flip_flops", "dsps", "block_rams" (of 18 Kbit),
     "cells": {type: count}, "array": null or the same of the module `array` by itself, with
     "placed": {"device", "fmax_mhz", "nextpnr": version}}.

    Raises RedcaneError for a folder without Verilog, Verilog that Yosys refuses, an array that does not fit.
    """
    chosen = FAMILIES[family]
    with tempfile.TemporaryDirectory(prefix="redcane-fpga-") as name:
        folder = Path(name)
        result: dict[str, Any] = {"family": chosen.title, **_map(rtl, folder, chosen, top), "array": None}
        if family == "ecp5" and nextpnr_version():
            result["array"] = {**_map(rtl, folder, chosen, array), "placed": _place(folder, array)}
        return result


def _map(rtl: Path, folder: Path, family: Family, top: str) -> dict[str, Any]:
    """A module mapped to a family: how much of what."""
    files = " ".join(copy_verilog(rtl, folder))
    run_yosys(f"read_verilog {files}\nhierarchy -check -top {top}\n{family.script.format(top=top)}", folder, _SECONDS)
    statistics = json.loads(read_bounded(folder / "statistics.json", _MOST_REPORT_BYTES))
    counted: dict[str, int] = statistics["design"]["num_cells_by_type"]
    cells = {kind: count for kind, count in sorted(counted.items()) if not kind.startswith("$")}
    return {
        "luts": sum(cells.get(kind, 0) * size for kind, size in family.luts.items()),
        "flip_flops": sum(cells.get(kind, 0) for kind in family.flip_flops),
        "dsps": sum(cells.get(kind, 0) for kind in family.dsps),
        "block_rams": sum(cells.get(kind, 0) * size for kind, size in family.block_rams.items()),
        "cells": cells,
    }


def _place(folder: Path, array: str) -> dict[str, Any]:
    """Place and route design.json on the largest ECP5: the clock that the paths between its registers admit."""
    design = json.loads(read_bounded(folder / "design.json", _MOST_DESIGN_BYTES))
    (folder / "inside.json").write_text(json.dumps(without_pins(design, array, ARRAY_CLOCK)))
    arguments = [*_ECP5_DEVICE, "--json", "inside.json", "--report", "report.json", "--seed", "1", "--freq", "50",
                 "--lpf-allow-unconstrained", "--timing-allow-fail", "--router", "router1", "--quiet"]  # fmt: skip
    place_and_route(folder, arguments, _SECONDS)
    report = json.loads(read_bounded(folder / "report.json", _MOST_REPORT_BYTES))
    if not report.get("fmax"):
        raise RedcaneError("nextpnr found no clock in the design: synthesise a design with registers")
    fmax = min(clock["achieved"] for clock in report["fmax"].values())
    return {"device": "LFE5U-85F-6", "fmax_mhz": round(fmax, 1), "nextpnr": nextpnr_version()}


def without_pins(design: dict[str, Any], top: str, clock: str) -> dict[str, Any]:
    """Yosys' JSON of module `top` alone, mapped to ECP5, with all inputs but the clock driven by a chain of flip-flops
    from one pin, and no outputs.

    What is a part of a system has more ports than a package has pins. The chain adds a flip-flop for each
    bit of the inputs, and no logic.

    Raises RedcaneError when the module has no input of that name.
    """
    module = design["modules"][top]
    ports = module["ports"]
    if clock not in ports or ports[clock]["direction"] != "input":
        raise RedcaneError(f"{top}: it has no clock {clock!r}, so there is nothing to place for a clock rate")
    [clock_bit] = ports[clock]["bits"]
    bits = [bit for net in module["netnames"].values() for bit in net["bits"] if isinstance(bit, int)]
    pin = before = 1 + max(bits)
    inputs = [bit for name, port in ports.items() if port["direction"] == "input" and name != clock
              for bit in port["bits"]]  # fmt: skip
    for index, bit in enumerate(inputs):
        module["cells"][f"$inputs${index}"] = {
            "hide_name": 1,
            "type": "TRELLIS_FF",
            # a text of digits that is not a number ends with a space
            "parameters": {"GSR": "DISABLED", "CEMUX": "1 ", "CLKMUX": "CLK", "LSRMUX": "LSR", "REGSET": "RESET",
                           "SRMODE": "LSR_OVER_CE"},
            "attributes": {},
            "port_directions": {"CLK": "input", "LSR": "input", "DI": "input", "Q": "output"},
            "connections": {"CLK": [clock_bit], "LSR": ["0"], "DI": [before], "Q": [bit]},
        }  # fmt: skip
        before = bit
    module["ports"] = {clock: ports[clock], "pin": {"direction": "input", "bits": [pin]}}
    return {**design, "modules": {top: module}}


def in_words(fpga: Mapping[str, Any]) -> str:
    """An estimate in one line."""
    text = (
        f"{fpga['family']}: {fpga['luts']:,} LUTs, {fpga['flip_flops']:,} flip-flops, {fpga['dsps']} DSPs, "
        f"{fpga['block_rams']} block RAMs"
    )
    array = fpga["array"]
    if not array:
        return text
    placed = array["placed"]
    return f"{text}; the array alone {array['luts']:,} LUTs, {placed['fmax_mhz']} MHz routed on {placed['device']}"
