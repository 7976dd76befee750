"""Switched transistors, against gates evaluated one operand pair after the other."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model_multipliers_gates import A_NETS, B_NETS, PLAIN, module, netlists

from model.multipliers import switching
from model.multipliers.library import load_library
from model.multipliers.netlist import Circuit, extract_many
from model.multipliers.switching import TRANSISTORS, switched_transistors

LIBRARY = load_library()


def netlist(name: str) -> dict[str, Any]:
    component = LIBRARY.get(name)
    found: dict[str, Any] = json.loads(extract_many([Circuit(name, component.verilog, component.module)])[0].gates)
    return found


@settings(max_examples=40, deadline=None)
@given(netlist=netlists(), runs=st.lists(st.lists(st.integers(0, 65535), min_size=4, max_size=4), min_size=1))
def test_every_gate_counts_when_its_output_changes(netlist: Any, runs: list[list[int]]) -> None:
    cells, outputs = netlist
    changes = 0
    for run in runs:
        before: dict[int | str, int] = {}
        for pair in run:
            values: dict[int | str, int] = {"0": 0, "1": 1}
            values |= {net: pair >> 8 >> k & 1 for k, net in enumerate(A_NETS)}
            values |= {net: pair >> k & 1 for k, net in enumerate(B_NETS)}
            for kind, nets, out in sorted(cells, key=lambda cell: cell[2]):
                values[out] = PLAIN[kind][1](*(values[net] for net in nets))
                changes += TRANSISTORS[kind] * (values[out] != before.get(out, values[out]))
            before = values
    words = switching._words(module(cells, outputs))
    assert sum(size * switching._changes(of_size, np.array(runs)) for size, of_size in words) == changes


@pytest.mark.parametrize("name", ["mul8u_exact", "mul8s_exact", "mul8u_e15", "mul8u_s07", "mul8u_or1_a2b3v5"])
def test_if_all_changed_it_would_be_the_transistors(name: str) -> None:
    gates = netlist(name)["cells"].values()
    assert sum(TRANSISTORS[gate["type"]] for gate in gates) == LIBRARY.get(name).cost.transistors


def test_what_repeats_switches_nothing_and_zeros_little() -> None:
    rng, exact = np.random.default_rng(0), LIBRARY.exact
    uniform = rng.integers(0, 65536, (512, 8))
    operands = {
        "the same": np.full((3, 50), 255 * 257),
        "one": uniform[:, :1],
        "uniform": uniform,
        "small": uniform & 0x0F0F,
        "zeros": uniform & 0x00FF,
    }
    found = {key: costs[exact.name] for key, costs in switched_transistors([exact], operands).items()}
    assert found["the same"] == found["one"] == 0
    assert found["zeros"] < 0.02 * found["uniform"] < found["small"] < 0.3 * found["uniform"]
    assert found["uniform"] < 0.5 * exact.cost.transistors


def test_by_operation_and_component() -> None:
    chosen = [LIBRARY.get("mul8u_exact"), LIBRARY.get("mul8u_or1_a2b3v5")]
    operands = {key: np.random.default_rng(k).integers(0, 65536, (4, 9)) for k, key in enumerate("xy")}
    found = switched_transistors(iter(chosen), operands)
    assert list(found) == ["x", "y"] and all(list(costs) == [c.name for c in chosen] for costs in found.values())
    assert found["x"] != found["y"]
    assert all(costs["mul8u_or1_a2b3v5"] < costs["mul8u_exact"] for costs in found.values())
