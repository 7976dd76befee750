"""The accelerator as files: Verilog of the top, the PE and the chosen multipliers, and the compiled program."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import numpy as np

from hw.accelerator import Accelerator
from hw.compiler import best_mapping, compile_network
from hw.parameters import MultiplierKind, Size
from hw.pe import PE
from hw.program import Program
from hw.system import System
from hw.verilog import to_verilog
from model.errors import RedcaneError
from model.multipliers.product_table import is_signed
from model.qnetwork import QNetwork

TOP = "redcane"


class VerilogMultiplier(Protocol):
    """What the generator needs of a component of the library (`model.multipliers.component.Multiplier`)."""

    @property
    def name(self) -> str: ...
    @property
    def module(self) -> str: ...
    @property
    def verilog(self) -> str: ...
    @property
    def ports(self) -> tuple[str, str, str]: ...


def kinds_of(network: QNetwork, components: Mapping[str, VerilogMultiplier]) -> tuple[MultiplierKind, ...]:
    """The multipliers that a network uses, in the order of the PEs' selector.

    Raises RedcaneError when the library lacks one, or two of them would clash as Verilog modules.
    """
    kinds: list[MultiplierKind] = []
    for name in sorted({product.component for _, product, _ in network.products()}):
        if name not in components:
            raise RedcaneError(f"the network uses the multiplier {name!r}, which the library does not hold")
        component = components[name]
        signed = is_signed(network.tables[name])
        kinds.append(MultiplierKind(name, component.module, *component.ports, signed=signed))
    modules = [kind.module for kind in kinds]
    if len(set(modules)) != len(modules) or {"pe", TOP} & set(modules):
        raise RedcaneError(
            f"two Verilog modules of one accelerator have the same name: {', '.join(sorted([*modules, 'pe', TOP]))}"
        )
    return tuple(kinds)


def generate(
    network: QNetwork, components: Mapping[str, VerilogMultiplier], folder: Path, size: Size
) -> Program:
    """Write into `folder`: redcane.v (top), pe.v, one file for each multiplier, accelerator.json, program.hex and
    weights.bin; returns the program.

    program.hex holds what the host sends before the first image: one 32-bit beat of the input stream a line;
    weights.bin what lies in external memory.
    Raises RedcaneError when the network does not fit the accelerator or a multiplier is missing.
    """
    kinds = kinds_of(network, components)
    mapping = best_mapping(network, kinds, size)
    program = compile_network(network, kinds, size, mapping)
    (folder / f"{TOP}.v").write_text(to_verilog(System(Accelerator(program.parameters), size.rows * size.columns), TOP))
    (folder / "pe.v").write_text(to_verilog(PE(kinds), "pe"))
    for kind in kinds:
        (folder / f"{kind.module}.v").write_text(components[kind.component].verilog)
    beats = np.concatenate([np.array(packet.beats(), np.uint32) for packet in program.setup])
    (folder / "program.hex").write_text("\n".join(f"{beat:08x}" for beat in beats) + "\n")
    (folder / "weights.bin").write_bytes(program.weights.tobytes())
    described = {
        "schema": 4,
        "size": asdict(size),
        "parameters": asdict(program.parameters),
        "entry": program.entry,
        "traced_entry": program.traced_entry,
        "image_address": program.image.base,
        "image_pitch": program.image.row_bytes,
        "mapping": {layer: candidate.way for layer, candidate in mapping.chosen.items()},
        "spill_bytes": program.spill_bytes,
        "boundaries": [
            {
                "tag": tag,
                "boundary": e.boundary,
                "shape": list(e.region.shape),
                "coding": e.region.coding.kind,
                "votes": e.region.votes,
                "pitch": e.region.pitch,
                "packets": e.packets,
            }
            for tag, e in sorted(program.emissions.items())
        ],
    }
    (folder / "accelerator.json").write_text(json.dumps(described, indent=2) + "\n")
    return program
