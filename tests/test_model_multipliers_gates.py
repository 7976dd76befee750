"""The bit-parallel evaluation of netlists, against gates evaluated one operand pair at a time."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import RedcaneError
from model.multipliers import gates
from model.multipliers.gates import multiplier_ports, product_table

PLAIN: dict[str, tuple[str, Callable[..., int]]] = {
    "$_NOT_": ("A", lambda a: 1 - a),
    "$_BUF_": ("A", lambda a: a),
    "$_AND_": ("AB", lambda a, b: a & b),
    "$_NAND_": ("AB", lambda a, b: 1 - (a & b)),
    "$_ANDNOT_": ("AB", lambda a, b: a & (1 - b)),
    "$_OR_": ("AB", lambda a, b: a | b),
    "$_NOR_": ("AB", lambda a, b: 1 - (a | b)),
    "$_ORNOT_": ("AB", lambda a, b: a | (1 - b)),
    "$_XOR_": ("AB", lambda a, b: a ^ b),
    "$_XNOR_": ("AB", lambda a, b: 1 - (a ^ b)),
    "$_MUX_": ("ABS", lambda a, b, s: b if s else a),
    "$_NMUX_": ("ABS", lambda a, b, s: 1 - (b if s else a)),
    "$_AOI3_": ("ABC", lambda a, b, c: 1 - (a & b | c)),
    "$_OAI3_": ("ABC", lambda a, b, c: 1 - ((a | b) & c)),
    "$_AOI4_": ("ABCD", lambda a, b, c, d: 1 - (a & b | c & d)),
    "$_OAI4_": ("ABCD", lambda a, b, c, d: 1 - ((a | b) & (c | d))),
}
A_NETS, B_NETS = list(range(2, 10)), list(range(10, 18))


def module(cells: list[tuple[str, list[int | str], int]], outputs: list[int | str]) -> dict[str, Any]:
    """A flat netlist as Yosys' JSON has it: cells as (type, input nets, output net)."""
    return {
        "ports": {"A": {"direction": "input", "bits": A_NETS}, "B": {"direction": "input", "bits": B_NETS},
                  "O": {"direction": "output", "bits": outputs}},
        "cells": {f"c{k}": {"type": kind, "connections":
                            {**{p: [net] for p, net in zip(PLAIN[kind][0], nets, strict=True)}, "Y": [out]}}
                  for k, (kind, nets, out) in enumerate(cells)},
    }


@st.composite
def netlists(draw: st.DrawFn) -> tuple[list[tuple[str, list[int | str], int]], list[int | str]]:
    nets: list[int | str] = [*A_NETS, *B_NETS, "0", "1"]
    cells = []
    for output in range(18, 18 + draw(st.integers(1, 30))):
        kind = draw(st.sampled_from(sorted(PLAIN)))
        cells.append((kind, [draw(st.sampled_from(nets)) for _ in PLAIN[kind][0]], output))
        nets.append(output)
    outputs = [draw(st.sampled_from(nets)) for _ in range(16)]
    return draw(st.permutations(cells)), outputs


@settings(max_examples=60, deadline=None)
@given(netlist=netlists(), pairs=st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), min_size=8, max_size=8))
def test_every_netlist_evaluates_like_its_gates(netlist: Any, pairs: list[tuple[int, int]]) -> None:
    cells, outputs = netlist
    table = product_table(module(cells, outputs))
    for a, b in pairs:
        values: dict[int | str, int] = {"0": 0, "1": 1}
        values |= {net: a >> k & 1 for k, net in enumerate(A_NETS)} | {net: b >> k & 1 for k, net in enumerate(B_NETS)}
        for kind, nets, out in sorted(cells, key=lambda cell: cell[2]):
            values[out] = PLAIN[kind][1](*(values[net] for net in nets))
        assert table[a, b] == sum(values[net] << k for k, net in enumerate(outputs))


def test_a_large_netlist_is_evaluated_in_parts_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    netlist = module([("$_XOR_", [2, 10], 18), ("$_NAND_", [18, 9], 19)], [18, 19, *A_NETS, *B_NETS[2:]])
    whole = product_table(netlist)
    monkeypatch.setattr(gates, "_WORDS_AT_ONCE", 100)
    np.testing.assert_array_equal(product_table(netlist), whole)


@pytest.mark.parametrize(("cells", "output", "told"), [
    ([("$_AND_", [2, 3], 18)], 99, "bit 0 of O is undefined for A = 0 and B = 0"),
    ([("$_MUX_", [2, "x", 17], 18)], 18, "bit 0 of O is undefined for A = 0 and B = 128"),
    ([("$_AND_", ["z", 9], 18)], 18, "bit 0 of O is undefined for A = 128 and B = 0"),
    ([("$_AND_", [19, 2], 18), ("$_NOT_", [18], 19)], 18, "combinational loop"),
    ([("$_NOT_", [2], 18), ("$_NOT_", [3], 18)], 18, "same wire"),
    ([("$_NOT_", [2], 3)], 18, "drives an input port"),
])
def test_what_has_no_defined_product_is_refused(cells: Any, output: int, told: str) -> None:
    with pytest.raises(RedcaneError, match=told):
        product_table(module(cells, [output] + ["0"] * 15))


def test_an_undefined_value_that_cannot_pass_does_no_harm() -> None:
    table = product_table(module([("$_AND_", ["x", "0"], 18), ("$_OR_", [18, 2], 19)], [19] + ["0"] * 15))
    np.testing.assert_array_equal(table, np.repeat(np.arange(256) % 2, 256).reshape(256, 256))


def test_a_loop_that_reaches_no_output_does_no_harm() -> None:
    assert not product_table(module([("$_NOT_", [18], 18)], ["0"] * 16)).any()


def test_too_many_gates_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "_MOST_GATES", 3)
    with pytest.raises(RedcaneError, match="more than 3 gates"):
        product_table(module([("$_NOT_", [2], 18 + k) for k in range(4)], ["0"] * 16))


def test_the_ports_are_taken_by_width_and_name() -> None:
    netlist = module([], ["0"] * 16)
    netlist["ports"] = {"p": netlist["ports"]["O"], "B": netlist["ports"]["B"], "A": netlist["ports"]["A"]}
    assert multiplier_ports(netlist) == ("A", "B", "p")
