"""How much of a multiplier switches: its energy, as far as gates alone tell it, for the operands that it really sees.

A gate of static CMOS takes energy when its output changes, the more the larger it is. So a multiplication's *switched
transistors* are those of the gates whose outputs change from the product before, in zero delay (glitches are left out).
The gates are those whose transistors the library counts: were all outputs to change, it would be that count. No cell
library is needed, and benchmarks/switching.py shows how close OpenSTA's energies are in one.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.multipliers.component import Multiplier
from model.multipliers.gates import signal_words
from model.multipliers.netlist import Circuit, extract_many

TRANSISTORS = {
    "$_BUF_": 1, "$_NOT_": 2, "$_NAND_": 4, "$_NOR_": 4, "$_AND_": 6, "$_OR_": 6, "$_ANDNOT_": 6, "$_ORNOT_": 6,
    "$_AOI3_": 6, "$_OAI3_": 6, "$_AOI4_": 8, "$_OAI4_": 8, "$_NMUX_": 10, "$_MUX_": 12, "$_XOR_": 12, "$_XNOR_": 12,
}  # fmt: skip
"""Of a gate, as Yosys counts them (`stat -tech cmos`)."""
_NETS = 64  # of a word

Switched = dict[str, dict[str, float]]
"""Switched transistors of one multiplication by operation ("layer.operation") and component."""


def switched_transistors(components: Iterable[Multiplier], operands: Mapping[str, NDArray[np.int64]]) -> Switched:
    """What one multiplication by each component switches on average, by the operands' key and the component's name.

    `operands` are pairs in the order in which they are multiplied, each 256 a + b, int64 [runs, length]: what changes
    is counted along a run. A single pair switches nothing. Raises RedcaneError for a component that is not a
    combinational 8 x 8 multiplier.
    """
    chosen = list(components)
    found: Switched = {key: {} for key in operands}
    circuits = [Circuit(c.name, c.verilog, c.module) for c in chosen]
    for component, extracted in zip(chosen, extract_many(circuits), strict=True):
        words = _words(json.loads(extracted.gates))
        for key, pairs in operands.items():
            steps = max(1, pairs[..., 1:].size)
            found[key][component.name] = sum(size * _changes(of_size, pairs) for size, of_size in words) / steps
    return found


def _words(module: dict[str, Any]) -> list[tuple[int, NDArray[np.uint64]]]:
    """The outputs of the gates for all operand pairs, 64 in a word, with the transistors of each such gate."""
    of_size: dict[int, list[int]] = defaultdict(list)
    for gate in module["cells"].values():
        of_size[TRANSISTORS[gate["type"]]].append(gate["connections"]["Y"][0])
    return [(size, signal_words(module, nets[start:start + _NETS]))
            for size, nets in sorted(of_size.items()) for start in range(0, len(nets), _NETS)]  # fmt: skip


def _changes(words: NDArray[np.uint64], pairs: NDArray[np.int64]) -> int:
    """How often nets change along the runs of operand pairs, all together."""
    seen = words[pairs]
    return int(np.bitwise_count(seen[..., 1:] ^ seen[..., :-1]).sum())
