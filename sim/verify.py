"""Verification of a whole accelerator: its Verilog under Verilator against the integer reference, at every boundary."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hw.compiler import compile_network
from hw.cycles import predict
from hw.layer_program import layer_program, layers_of
from hw.parameters import MultiplierKind, Size
from hw.program import Program, region_bytes
from model import reference
from model.errors import RedcaneError
from model.files import read_bounded
from model.qnetwork import Codes, QNetwork
from sim.experiment import Answer, Experiment
from sim.scoreboard import Scoreboard, by_layer, moving_cycles
from sim.system import Outcome, beats_of

MAX_PROGRAM = 256 * 2**20
MAX_DESCRIPTION = 2**20


def load_program(network: QNetwork, rtl: Path) -> tuple[Program, NDArray[np.uint32]]:
    """The program of a generated accelerator, compiled again from the network, and the set-up beats as they stand in
    program.hex.

    Raises RedcaneError when the files are damaged or belong to another network.
    """
    path = rtl / "accelerator.json"
    try:
        described = json.loads(read_bounded(path, MAX_DESCRIPTION))
        parameters = described["parameters"]
        kinds = tuple(MultiplierKind(**kind) for kind in parameters["kinds"])
        program = compile_network(network, kinds, Size(**described["size"]))
        same = json.loads(json.dumps(asdict(program.parameters))) == parameters
    except (ValueError, KeyError, TypeError) as problem:
        raise RedcaneError(f"{path}: not a description of an accelerator ({problem}); generate it again") from None
    weights = rtl / "weights.bin"
    if read_bounded(weights, MAX_PROGRAM) != program.weights.tobytes():
        raise RedcaneError(f"{weights}: these are not the network's weights; generate it again")
    if not same:
        raise RedcaneError(f"{path}: this accelerator was generated for another network; generate it again")
    text = read_bounded(rtl / "program.hex", MAX_PROGRAM).decode("ascii", "replace")
    if not re.fullmatch(r"(?:[0-9a-f]{8}\n)+", text):
        raise RedcaneError(f"{rtl / 'program.hex'}: a line is not eight hexadecimal digits; generate it again")
    return program, np.array([int(word, 16) for word in text.split()], np.uint32)


def whole_images(
    network: QNetwork, rtl: Path, images: Codes, seed: int = 0, back_pressure: float = 0.3
) -> Experiment:
    """Set-up, then two runs for every batch of image codes (N, H, W, C): with every boundary emitted, and as in use.

    A last batch that is not full is filled up with zeros, which nobody looks at. Raises as `load_program` does.
    """
    program, setup = load_program(network, rtl)
    experiment = Experiment(rtl, program, back_pressure, seed)
    experiment.add(setup)
    for start in range(0, len(images), program.parameters.batch):
        batch = images[start : start + program.parameters.batch]
        traces = [reference.run(network, image) for image in batch]
        for traced in (True, False):
            beats = beats_of([program.image_packet(batch), program.start_packet(traced)])
            experiment.add(beats, Answer(program, start, traces, traced))
    return experiment


def single_layers(
    network: QNetwork, rtl: Path, images: Codes, layers: list[str], seed: int = 0, back_pressure: float = 0.3
) -> Experiment:
    """Every layer of `layers` alone, fed with the reference's codes: two runs for every batch of images (N, H, W, C),
    with all of the layer's boundaries emitted, and without.

    Raises RedcaneError as `load_program` does, and for a layer that the network does not have.
    """
    program, _ = load_program(network, rtl)
    experiment = Experiment(rtl, program, back_pressure, seed)
    add_layers(experiment, network, images, layers)
    return experiment


def add_layers(experiment: Experiment, network: QNetwork, images: Codes, layers: list[str]) -> None:
    """Add the runs of `single_layers`. Inputs that lie in external memory are put there. Raises as that does."""
    program = experiment.program
    size = program.parameters.batch
    reads = {layer.name: sources for layer, sources in network.sources()}
    traces = [reference.run(network, image) for image in images]
    for layer in layers:
        alone = layer_program(program, layer)
        for start in range(0, len(images), size):
            batch = traces[start : start + size]
            inputs, spilled = [], np.zeros(program.spill_bytes, np.uint8)
            for boundary, region in zip(reads[layer], program.inputs[layer], strict=True):
                codes = np.stack([trace[boundary] for trace in batch])
                if region.external:
                    spilled[region.base : region.base + region.total] = region_bytes(region, codes)
                else:
                    inputs.append(program.region_packet(region, codes))
            for traced in (True, False):
                beats = beats_of([*alone.setup, *inputs, alone.start_packet(traced)])
                experiment.add(beats, Answer(alone, start, batch, traced), spilled)


@dataclass
class LayerResult:
    """What the runs of one layer alone came to."""

    images: int = 0
    values: int = 0  # compared
    mismatches: int = 0
    cycles: int = 0  # of all batches, waiting for the bus not counted
    predicted: int = 0  # by the cycle model
    busy_pe_cycles: int = 0


def layer_results(experiment: Experiment, outcomes: list[Outcome]) -> dict[str, LayerResult]:
    """The results of `single_layers` by layer."""
    results: dict[str, LayerResult] = {}
    for answer, outcome in _answered(experiment, outcomes):
        board = Scoreboard(answer.program)
        board.batch(answer.image, outcome.packets, answer.traces, answer.traced)
        [layer] = layers_of(answer.program)
        result = results.setdefault(layer, LayerResult())
        result.values += board.compared
        result.mismatches += board.mismatches
        if not answer.traced and board.counters:
            counters = board.counters[-1]
            result.images += len(answer.traces)
            result.cycles += moving_cycles(counters)
            result.predicted += sum(cost.cycles - cost.stalls for cost in predict(answer.program).values())
            result.busy_pe_cycles += counters["busy_pe_cycles"]
    return results


@dataclass(frozen=True)
class Mismatch:
    """The first value that differs: the run of the experiment, and what verify.json says of it."""

    run: int
    what: dict[str, Any]


def first_mismatch(experiment: Experiment, outcomes: list[Outcome]) -> Mismatch | None:
    """Where the runs' answers are not the reference's."""
    for number, ((_, answer), outcome) in enumerate(zip(experiment.runs, outcomes, strict=False)):
        if answer:
            board = Scoreboard(answer.program)
            board.batch(answer.image, outcome.packets, answer.traces, answer.traced)
            if board.first:
                return Mismatch(number, board.first)
    return None


def verify(
    network: QNetwork,
    rtl: Path,
    images: Codes,
    labels: NDArray[np.int64],
    *,
    seed: int = 0,
    back_pressure: float = 0.3,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Run image codes (N, H, W, C) through the Verilog in `rtl` and compare every boundary with the reference.

    Each batch is computed twice, see `whole_images`. `back_pressure` is the share of time that both streams hold back
    (seeded). `progress` is told the number of images done, now and then. Returns the content of verify.json
    (docs/artefacts.md): counts, the first mismatch or null, accuracies, cycles an image, utilisation.

    Raises RedcaneError for damaged files or a missing tool, sim.runner.BenchFailed when the accelerator does not
    answer.
    """
    experiment = whole_images(network, rtl, images, seed, back_pressure)
    program = experiment.program
    p = program.parameters
    # The first run is the set-up; then each batch takes two.
    outcomes = experiment.simulate(lambda runs: progress(min(len(images), max(0, runs - 1) // 2 * p.batch)))
    board = Scoreboard(program)
    reference_hits = rtl_hits = 0
    counters: list[dict[str, int]] = []
    layers: dict[str, dict[str, int]] = {}
    for answer, outcome in _answered(experiment, outcomes):
        board.batch(answer.image, outcome.packets, answer.traces, answer.traced)
        if not answer.traced:
            counters.append(board.counters[-1])
            layers = layers or by_layer(program, board.counters)
            here = labels[answer.image :][: len(answer.traces)]
            reference_hits += sum(int(t["class"]) == label for t, label in zip(answer.traces, here, strict=True))
            rtl_hits += int((board.answers == here).sum())
    cycles = [(c["cycles"] - c["output_stalls"]) / p.batch for c in counters]
    busy = sum(c["busy_pe_cycles"] for c in counters)
    return {
        "schema": 2,
        "images": len(images),
        "boundaries": [e.boundary for e in program.emissions.values()],
        "values_compared": board.compared,
        "mismatches": board.mismatches,
        "first_mismatch": board.first,
        "accuracy": {"reference": float(reference_hits / len(images)), "rtl": float(rtl_hits / len(images))},
        "cycles_per_image": {"mean": float(np.mean(cycles)), "min": min(cycles), "max": max(cycles)},
        "pe_utilisation": busy / (p.batch * sum(cycles) * p.rows * p.columns),
        "counters_first_batch": counters[0],
        "layers_first_batch": layers,
        "bus_last_batch": outcomes[-1].counters,
        "back_pressure": back_pressure,
        "multipliers": [kind.component for kind in p.kinds],
        "array": [p.rows, p.columns],
        "batch": p.batch,
    }


def _answered(experiment: Experiment, outcomes: list[Outcome]) -> Iterator[tuple[Answer, Outcome]]:
    for (_, answer), outcome in zip(experiment.runs, outcomes, strict=True):
        if answer:
            yield answer, outcome
