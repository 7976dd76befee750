"""Random networks through the whole accelerator under Verilator: equal to the reference at every boundary, and not
when a gate is wrong.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from hw.generate import generate
from hw.parameters import Size
from model.errors import RedcaneError
from model.qnetwork import FORMATS, Coding, Format, Product, QClassCaps, QNetwork, Squash, exp_table, unit_interval
from sim.scoreboard import cycle_fault
from sim.verify import first_mismatch, layer_results, load_program, single_layers, verify
from sim.waves import AFTER, BEFORE, record
from tests.random_networks import codes, image_codes, networks, requantizer

# Verilog and table of "multipliers" of which two in three are nothing of the kind: they do not commute, and their
# T[0, 0] is not zero. Those of signed operands differ in `product` only, and in how their words are read.
EXPRESSIONS = {"exact": "product", "wild": "product ^ {B, A} ^ 16'h5a5a", "wilder": "~{A, B ^ A}"}
A, B = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")


def words(product: np.ndarray) -> dict[str, np.ndarray]:
    tables = {"exact": product, "wild": product ^ (B << 8 | A) ^ 0x5A5A, "wilder": 0xFFFF ^ (A << 8 | B ^ A)}
    return {name: table.astype(np.uint16) for name, table in tables.items()}


SIGNED_PRODUCT = np.multiply.outer(np.arange(256).astype(np.int8).astype(int), np.arange(256).astype(np.int8))
TABLES = words(A * B) | {f"signed_{name}": table.view(np.int16) for name, table in words(SIGNED_PRODUCT).items()}


def component(name: str) -> SimpleNamespace:
    signed, kind = name.startswith("signed_"), name.removeprefix("signed_")
    operands = ("{{8{A[7]}}, A}", "{{8{B[7]}}, B}") if signed else ("{8'd0, A}", "{8'd0, B}")
    verilog = f"""module mul_{name} (input [7:0] A, input [7:0] B, output [15:0] O);
  wire [15:0] a = {operands[0]};
  wire [15:0] b = {operands[1]};
  wire [15:0] product = a * b;
  assign O = {EXPRESSIONS[kind]};
endmodule
"""
    return SimpleNamespace(name=name, module=f"mul_{name}", verilog=verilog, ports=("A", "B", "O"))


COMPONENTS = {name: component(name) for name in TABLES}


def with_verilog_tables(network: QNetwork) -> QNetwork:
    return dataclasses.replace(network, tables={name: TABLES[name] for name in network.tables})


def check(network: QNetwork, seed: int, rows: int, columns: int, folder: Path) -> dict:
    generate(network, COMPONENTS, folder, Size(rows, columns, batch=1 + seed % 2, bus_bits=32 << seed % 3))
    images = image_codes(np.random.default_rng(seed), network, 3)
    return verify(network, folder, images, np.zeros(3, np.int64), seed=seed, back_pressure=0.4)


def equal_to_the_reference(
    network: QNetwork, seed: int, shape: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    network = with_verilog_tables(network)
    folder = tmp_path_factory.mktemp("rtl")
    result = check(network, seed, *shape, folder)
    assert result["first_mismatch"] is None
    assert result["mismatches"] == 0
    assert result["values_compared"] > 3 * np.prod(network.image)
    assert 0 < result["pe_utilisation"] < 1
    assert cycle_fault(load_program(network, folder)[0], result["layers_first_batch"]) is None
    assert result["accuracy"]["rtl"] == result["accuracy"]["reference"]


seeds = st.integers(0, 2**16)
shapes = st.sampled_from([(4, 4), (8, 4), (4, 8), (8, 8)])
slowly = {"deadline": None, "derandomize": True, "phases": [Phase.generate], "suppress_health_check": list(HealthCheck)}


@settings(max_examples=2, **slowly)
@given(networks(), seeds, shapes)
def test_random_networks(tmp_path_factory, network: QNetwork, seed: int, shape: tuple[int, int]) -> None:
    equal_to_the_reference(network, seed, shape, tmp_path_factory)


@pytest.mark.slow
@settings(max_examples=60, **slowly)
@given(networks(), seeds, shapes)
def test_many_random_networks(tmp_path_factory, network: QNetwork, seed: int, shape: tuple[int, int]) -> None:
    equal_to_the_reference(network, seed, shape, tmp_path_factory)


@pytest.mark.parametrize("format", FORMATS)
def test_routing_alone(tmp_path: Path, format: Format) -> None:
    """Votes and three iterations: capsules that fill no word, sixteen dims, a wild multiplier in every operation."""
    rng = np.random.default_rng(7)
    coupling, signed = unit_interval(format), Coding("signed", 1 / 127)
    operand = Coding("affine", 1 / 127, 131) if format == "affine" else signed
    prefix, align = ("signed_", 0) if format == "twos-complement" else ("", 1)
    inputs, dim_in, classes, dim = 37, 6, 10, 16

    def product(a: Coding, b: Coding, out: Coding, component: str, terms: int) -> Product:
        return Product(format, a, b, out, requantizer(rng, out, terms), prefix + component, align)

    layer = QClassCaps(
        "classcaps",
        codes(rng, operand, (inputs, dim_in, classes, dim)),
        product(operand, operand, operand, "wild", dim_in),
        product(coupling, operand, Coding("float", 1 / 127), "exact", inputs),
        product(operand, operand, signed, "wilder", dim),
        exp_table(0.05),
        Squash.for_scales(0.01, operand),
        3,
    )
    used = {p.component: TABLES[p.component] for p in layer.products().values()}
    network = QNetwork((inputs, 1, dim_in), operand, (layer,), used)
    network.check()
    result = check(network, 3, 4, 4, tmp_path)
    assert result["first_mismatch"] is None
    assert result["values_compared"] > 3 * inputs * classes * dim


@settings(max_examples=1, **slowly)
@given(networks())
def test_a_wrong_gate_and_wrong_files_are_found(tmp_path_factory, network: QNetwork) -> None:
    names = {
        key: ("signed_" if product.format == "twos-complement" else "") + ("exact" if key == "conv1.mac" else "wild")
        for key, product, _ in network.products()
    }
    network = network.with_components(names, TABLES)
    folder = tmp_path_factory.mktemp("rtl")
    generate(network, COMPONENTS, folder, Size())
    used = names["conv1.mac"]
    path = folder / f"mul_{used}.v"
    path.write_text(path.read_text().replace("assign O = ", "assign O = 16'h8000 ^ "))
    images = image_codes(np.random.default_rng(1), network, 1)
    first = verify(network, folder, images, np.zeros(1, np.int64))["first_mismatch"]
    assert first["boundary"] == "conv1.mac"
    assert first["expected"] != first["got"]
    assert len(first["index"]) == 3

    # The layers alone: wrong where the multiplier is.
    experiment = single_layers(network, folder, images, [layer.name for layer in network.layers])
    outcomes = experiment.simulate()
    results = layer_results(experiment, outcomes)
    assert results["conv1"].mismatches > 0
    assert results["primary"].mismatches == results["classcaps"].mismatches == 0
    assert all(result.cycles == result.predicted for result in results.values())
    assert sum(result.values for result in results.values()) > 100
    with pytest.raises(RedcaneError, match="layer 'conv2': the network has conv1, primary, classcaps"):
        single_layers(network, folder, images, ["conv2"])

    found = first_mismatch(experiment, outcomes)
    assert found is not None
    assert found.what == first
    window = record(experiment, found, folder / "waves.vcd")
    assert window.last - window.first == BEFORE + AFTER
    times = re.findall(r"^#(\d+)", (folder / "waves.vcd").read_text(), re.MULTILINE)
    begin, end = int(times[0]) / 10_000, int(times[-1]) / 10_000  # of ps in a cycle; those before the reset count, too
    assert window.first <= begin < window.first + 10
    assert window.last <= end < window.last + 10

    (folder / "program.hex").write_text("not a number\n")
    with pytest.raises(RedcaneError, match=r"program\.hex"):
        verify(network, folder, images, np.zeros(1, np.int64))
    (folder / "accelerator.json").write_text("{}")
    with pytest.raises(RedcaneError, match="generate it again"):
        verify(network, folder, images, np.zeros(1, np.int64))
