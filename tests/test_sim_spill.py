"""Activations beyond the chip: networks that hardly fit, bit for bit, whatever the memory does; and their cycles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from hw.compiler import compile_network
from hw.cycles import predict
from hw.isa import Opcode
from hw.layer_program import layer_program
from hw.program import Program
from model import reference
from model.errors import RedcaneError
from model.qnetwork import (
    Coding,
    Product,
    QClassCaps,
    QConv,
    QConvLayer,
    QNetwork,
    QPrimaryCaps,
    Squash,
    exp_table,
)
from sim.experiment import Answer, Experiment
from sim.programs import Case, check_programs
from sim.runner import BenchFailed
from sim.scoreboard import Scoreboard, by_layer, cycle_fault
from sim.system import Memory, beats_of, simulate_runs
from sim.verify import Mismatch, add_layers, layer_results
from sim.waves import record
from tests import fuzz
from tests.random_networks import FLOAT, SIGNED, UNSIGNED, codes, requantizer
from tests.test_sim_accelerator import TABLES
from tests.test_sim_deepcaps import BUILD

MEMORY = 2**20  # bytes; it is a part of the build


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return BUILD.write(tmp_path_factory.mktemp("rtl"))


def descriptors(program: Program, opcode: Opcode) -> int:
    return sum(step.opcode == opcode for step in program.plain)


def wide_network() -> QNetwork:
    """Most of its values are between two convolutions, with padding, and with strides of one and two."""
    rng = np.random.default_rng(5)

    def product(a: Coding, b: Coding, out: Coding, terms: int) -> Product:
        return Product("sign-magnitude", a, b, out, requantizer(rng, out, 2**13 * np.sqrt(terms)), "wild")

    def conv(shape: tuple[int, ...], a: Coding, out: Coding, stride: int) -> QConv:
        bias = rng.integers(-5000, 5000, shape[0]).astype(np.int32)
        return QConv(codes(rng, SIGNED, shape), bias, stride, product(a, SIGNED, out, int(np.prod(shape[1:]))), 1)

    layers = (
        QConvLayer("conv1", conv((16, 3, 3, 4), UNSIGNED, UNSIGNED, 1)),
        QConvLayer("conv2", conv((12, 3, 3, 16), UNSIGNED, UNSIGNED, 2)),
        QPrimaryCaps("primary", conv((8, 3, 3, 12), UNSIGNED, FLOAT, 2), 4, Squash.for_scales(0.01, SIGNED)),
        QClassCaps(
            "classcaps",
            codes(rng, SIGNED, (72, 4, 2, 4)),
            product(SIGNED, SIGNED, SIGNED, 4),
            product(UNSIGNED, SIGNED, FLOAT, 72),
            product(SIGNED, SIGNED, SIGNED, 4),
            exp_table(0.05),
            Squash.for_scales(0.01, SIGNED),
            2,
        ),
    )
    network = QNetwork((24, 24, 4), UNSIGNED, layers, {"wild": TABLES["wild"]})
    network.check()
    return network


@pytest.mark.parametrize(("number", "latency", "hold"), [(0, 3, 0.5), (3, 60, 0.2)])
def test_random_networks_that_hardly_fit(sources: list[Path], number: int, latency: int, hold: float) -> None:
    cases: list[Case] = []

    @seed(number)
    @settings(max_examples=50, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(fuzz.drawn(BUILD))
    def draw(one: fuzz.Drawn) -> None:
        if one.narrow and (case := one.case(BUILD)) and case.program.spill_bytes:
            cases.append(case)

    draw()
    assert len(cases) > 4 and {len(case.images) for case in cases} > {1}
    faults = check_programs(sources, BUILD.parameters, cases, latency=latency, hold=hold, memory_bytes=MEMORY)
    assert faults == [None] * len(cases)


@pytest.mark.parametrize(("limit", "images"), [(4096, 1), (8192, 2)])
def test_cycles_with_loads_and_stores(sources: list[Path], limit: int, images: int) -> None:
    """All but what the bus adds is exact; with that, each layer is within 2 % of the model."""
    network, p = wide_network(), BUILD.parameters
    program = compile_network(network, BUILD.kinds, BUILD.size(images, limit))
    assert program.parameters.activation_bytes <= limit
    assert descriptors(program, Opcode.LOAD) > 4 and descriptors(program, Opcode.STORE) > 4
    batch = codes(np.random.default_rng(0), UNSIGNED, (images, *network.image))
    memory = Memory()
    commands = beats_of([*program.setup, program.image_packet(batch), program.start_packet(traced=False)])
    weights, activations = memory.place(program.weights), memory.reserve(program.spill_bytes)
    run = memory.run(weights, commands, program.results_bytes(traced=False), activations)
    [outcome] = simulate_runs(
        sources, memory.pieces, [run], bus_bits=p.bus_bits, memory_bytes=MEMORY,
        isolate_modules=["pe", *(kind.module for kind in p.kinds)],
    )  # fmt: skip
    board = Scoreboard(program)
    board.batch(0, outcome.packets, [reference.run(network, image) for image in batch], traced=False)
    assert board.first is None
    counted = by_layer(program, board.counters)
    assert cycle_fault(program, counted) is None
    assert counted["conv2"]["load_stalls"] > 0 and counted["conv1"]["store_stalls"] > 0
    for layer, found in counted.items():
        wanted = sum(cost.cycles for label, cost in predict(program).items() if layer in (label, label.split(".")[0]))
        assert abs(wanted - found["cycles"]) < 0.02 * found["cycles"], layer
    moved = sum(cost.spill_bytes for cost in predict(program).values())
    weight_bytes = sum(cost.weight_bytes for cost in predict(program).values())
    read_and_written = outcome.counters["bytes_read"] + outcome.counters["bytes_written"]
    assert 0 <= read_and_written - moved - weight_bytes - 4 * len(commands) < 2048  # the rest are the results


def test_layers_alone_read_from_outside(sources: list[Path]) -> None:
    network = wide_network()
    program = compile_network(network, BUILD.kinds, BUILD.size(1, 4096))
    assert [[region.external for region in program.inputs[layer.name]] for layer in network.layers] == [
        [False], [True], [False], [False]
    ]  # fmt: skip
    experiment = Experiment(sources[0].parent, program, hold=0.2)
    add_layers(experiment, network, codes(np.random.default_rng(1), UNSIGNED, (1, *network.image)), ["conv2", "conv1"])
    results = layer_results(experiment, experiment.simulate())
    assert {name: (result.mismatches, result.cycles) for name, result in results.items()} == {
        name: (0, result.predicted) for name, result in results.items()
    }
    assert results["conv1"].values == 24 * 24 * 16 and results["conv2"].values == 12 * 12 * 12


def test_waveforms_are_of_what_lies_on_the_chip() -> None:
    program = compile_network(wide_network(), BUILD.kinds, BUILD.size(1, 4096))
    answer = Answer(program, 0, [], traced=True)
    experiment = Experiment(Path(), program)
    experiment.add(np.zeros(1, np.uint32), answer)
    what = {"image": 0, "boundary": "conv1.mac", "index": [0, 0, 0]}
    with pytest.raises(RedcaneError, match=r"conv1\.mac does not lie on the chip"):
        record(experiment, Mismatch(0, what), Path("waves.vcd"))


def test_an_activation_memory_that_does_not_suffice() -> None:
    with pytest.raises(RedcaneError, match=r"1 KiB of activations do not suffice for the input of 1 images; it takes "
                       "activation_kib: 4 at least"):  # fmt: skip
        compile_network(wide_network(), BUILD.kinds, BUILD.size(1, 1024))
    with pytest.raises(RedcaneError, match="3,000 bytes of activations; take a power of two"):
        BUILD.size(1, 3000)


def test_errors_of_the_memory_are_told(sources: list[Path]) -> None:
    """Activations where there is no memory: the run breaks off, and the registers say why and where."""
    network = wide_network()
    program = compile_network(network, BUILD.kinds, BUILD.size(1, 4096))
    batch = codes(np.random.default_rng(0), UNSIGNED, (1, *network.image))
    alone = layer_program(program, "conv2")  # begins with a LOAD
    for piece, cause in ((program, "ACTIVATIONS_WRITE"), (alone, "ACTIVATIONS_READ")):
        memory = Memory()
        commands = beats_of([*piece.setup, piece.image_packet(batch), piece.start_packet(traced=False)])
        run = memory.run(memory.place(piece.weights), commands, piece.results_bytes(traced=False), activations=1 << 24)
        with pytest.raises(BenchFailed, match=rf"{cause} at 0x1000000 \(response 3\)"):
            simulate_runs(
                sources, memory.pieces, [run], bus_bits=BUILD.bus_bits, memory_bytes=MEMORY,
                isolate_modules=["pe", *(kind.module for kind in BUILD.kinds)],
            )  # fmt: skip
