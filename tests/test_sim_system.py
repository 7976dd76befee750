"""The accelerator in a system, from registers to results: equal to the reference, and to what its streams give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from hw.accelerator import Accelerator
from hw.generate import TOP, generate
from hw.parameters import Size
from hw.system import System, VerilogModule
from hw.verilog import to_verilog
from model import reference
from model.qnetwork import QNetwork
from sim.system import SYSTEM, program_runs, simulate_runs
from sim.verify import Scoreboard, load_program
from tests.random_networks import image_codes, networks
from tests.test_sim_accelerator import COMPONENTS, with_verilog_tables

slowly = {"deadline": None, "derandomize": True, "phases": [Phase.generate], "suppress_health_check": list(HealthCheck)}


@pytest.mark.filterwarnings("ignore:.*created but never used")  # the core is in another file
@settings(max_examples=1, **slowly)
@given(networks(), st.integers(0, 2**16))
def test_random_networks(tmp_path_factory: pytest.TempPathFactory, network: QNetwork, seed: int) -> None:
    network = with_verilog_tables(network)
    folder: Path = tmp_path_factory.mktemp("rtl")
    size = Size(4, 4, batch=2, bus_bits=64)
    p = generate(network, COMPONENTS, folder, size).parameters
    system = System(VerilogModule(Accelerator(p), TOP), p.word_bits // 8)
    (folder / f"{SYSTEM}.v").write_text(to_verilog(system, SYSTEM))
    images = image_codes(np.random.default_rng(seed), network, 3)
    batches = [images[:2], images[2:]]

    program, setup = load_program(network, folder)
    memory, runs = program_runs(program, setup, batches)
    modules = ["pe", *(kind.module for kind in p.kinds)]
    outcomes = simulate_runs(
        sorted(folder.glob("*.v")), memory, runs, bus_bits=64, latency=30, hold=0.3, seed=seed, isolate_modules=modules
    )
    assert outcomes[0].packets == []
    board = Scoreboard(program)
    traces = [[reference.run(network, image) for image in batch] for batch in batches]
    for number, outcome in enumerate(outcomes[1:]):
        batch = number // 2
        board.batch(2 * batch, outcome.frames, traces[batch], traced=number % 2 == 0)
        assert outcome.counters["bytes_read"] >= len(program.weights)
    assert board.first is None
    assert board.mismatches == 0
    assert board.compared > 3 * np.prod(network.image)
