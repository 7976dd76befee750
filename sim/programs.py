"""Many programs on one accelerator, each against the reference: hundreds of networks in one simulation.

What an accelerator computes is its program's business; one with room enough runs any network. So the build and the
start of a simulation are paid for once, and a small network costs its few thousand cycles.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hw.parameters import Parameters
from hw.program import Program
from model import reference
from model.qnetwork import Codes, QNetwork
from sim.driver import Run
from sim.runner import BenchFailed
from sim.scoreboard import Fault, Scoreboard, by_layer, cycle_fault
from sim.system import PAGE, Memory, Outcome, beats_of, simulate_runs


@dataclass(frozen=True)
class Case:
    """A network, its program, and a batch of image codes (N, H, W, C), at most as many as the program takes."""

    network: QNetwork
    program: Program
    images: Codes


def check_programs(
    sources: Sequence[Path],
    parameters: Parameters,
    cases: Sequence[Case],
    *,
    latency: int = 40,
    hold: float = 0.0,
    seed: int = 0,
    timeout_cycles: int = 1_000_000,
    memory_bytes: int = 2**25,
) -> list[Fault | None]:
    """What is wrong with each case on the accelerator of these `parameters` in `sources`; None where nothing is.

    Every case is loaded (program, biases, tables), then run twice, with every boundary emitted and as in use. Compared
    are the boundaries, the classes, and the cycles of each layer with the cycle model. As many cases go into one
    simulation as a memory of `memory_bytes` has room for. A case that breaks the simulation off has a fault that says
    so, and the others are checked without it. For `latency`, `hold`, `seed` and `timeout_cycles` (of a case) see
    `sim.system.simulate_runs`.

    Raises RedcaneError when a tool is missing or the sources do not compile.
    """
    options: dict[str, Any] = {
        "bus_bits": parameters.bus_bits, "latency": latency, "hold": hold, "seed": seed,
        "timeout_cycles": timeout_cycles, "memory_bytes": memory_bytes,
        "isolate_modules": ["pe", *(kind.module for kind in parameters.kinds)],
    }  # fmt: skip
    faults: list[Fault | None] = []
    while len(faults) < len(cases):
        faults += _simulated(sources, cases[len(faults) :], options)
    return faults


def _simulated(sources: Sequence[Path], cases: Sequence[Case], options: dict[str, Any]) -> list[Fault | None]:
    """The faults of the first of the cases: of those that fit the memory, up to one that breaks the simulation off."""
    memory = Memory()
    runs: list[Run] = []
    for case in cases:
        program = case.program
        if runs and memory.end + room(program) > options["memory_bytes"]:
            break
        image = program.image_packet(case.images)
        commands = beats_of([*program.setup, image, program.start_packet(True), image, program.start_packet(False)])
        results = program.results_bytes(True) + program.results_bytes(False)
        weights, activations = memory.place(program.weights), memory.reserve(program.spill_bytes)
        runs.append(memory.run(weights, commands, results, activations))
    with tempfile.TemporaryDirectory(prefix="redcane-programs-") as scratch:
        done = Path(scratch, "done")
        try:
            outcomes = simulate_runs(sources, memory.pieces, runs, done=done, **options)
        except BenchFailed as failure:
            whole = done.stat().st_size if done.exists() else 0
            if whole == len(runs):
                raise
            broken = {"image": 0, "boundary": "run", "index": [], "expected": "an end", "got": str(failure)}
            return [*(_simulated(sources, cases[:whole], options) if whole else []), broken]
    return [_fault(case, outcome) for case, outcome in zip(cases, outcomes, strict=False)]


def room(program: Program) -> int:
    """More bytes than a case takes in memory."""
    setup = sum(4 * (2 + len(packet.words)) for packet in program.setup)
    results = program.results_bytes(True) + program.results_bytes(False)
    return len(program.weights) + program.spill_bytes + setup + 4 * program.image.total + results + 5 * PAGE


def _fault(case: Case, outcome: Outcome) -> Fault | None:
    board, program = Scoreboard(case.program), case.program
    traces = [reference.run(case.network, image) for image in case.images]
    first = len(program.packet_tags(True))
    board.batch(0, outcome.packets[:first], traces, True)
    board.batch(0, outcome.packets[first:], traces, False)
    if board.first:
        return board.first
    return cycle_fault(program, by_layer(program, board.counters))
