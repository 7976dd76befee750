"""The tables of the terminal: `redcane map` shows every operation, and what the cycle model says of it."""

from __future__ import annotations

from hypothesis import given, settings

from flows.tables import mapping_table
from hw.compiler import compile_network
from hw.cycles import predict
from hw.parameters import MultiplierKind, Size
from model.qnetwork import QAdd, QNetwork
from tests.random_deepcaps import deepcaps
from tests.random_networks import networks


@settings(max_examples=10, deadline=None)
@given(networks() | deepcaps())
def test_the_mapping_of_a_network(network: QNetwork) -> None:
    kinds = tuple(MultiplierKind(name, f"m{index}") for index, name in enumerate(sorted(network.tables)))
    program = compile_network(network, kinds, Size(batch=2))
    size, memories, blank, *_, total = lines = mapping_table(program).splitlines()
    assert size.startswith("4 x 4 PEs, batch 2,") and blank == ""
    assert f" {program.parameters.activation_bytes:,} bytes of activations" in memories
    rows = {line.split()[0]: line for line in lines[5:-1]}
    adders = {f"{layer.name}.add" for layer in network.layers if isinstance(layer, QAdd)}
    always = {key for key, _, _ in network.products() if not key.endswith(".agreement")}  # not with one iteration
    assert always | adders | {"class"} <= rows.keys()
    costs = predict(program)
    assert rows.keys() == costs.keys()
    for key in adders:
        assert rows[key].split()[1] == f"{costs[key].cycles / 2:,.0f}"
    assert f" {sum(cost.cycles for cost in costs.values()) / 2:,.0f} " in total
