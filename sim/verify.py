"""Verification of a whole accelerator: its Verilog under Verilator against the integer reference, at every boundary."""

from __future__ import annotations

import json
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hw import isa
from hw.compiler import compile_network
from hw.parameters import MultiplierKind, Size
from hw.program import Emission, Program
from model import reference
from model.errors import RedcaneError
from model.files import read_bounded
from model.qnetwork import Codes, QNetwork
from sim.system import program_runs, simulate_runs

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

    Each batch is computed twice: with every boundary emitted, and as in use, for its classes and its cycles; a last
    batch that is not full is filled up with zeros, which nobody looks at.
    `back_pressure` is the share of time that both streams hold back (seeded). `progress` is told the number of images
    done, now and then. Returns the content of verify.json (docs/artefacts.md): counts, the first mismatch or null,
    accuracies, cycles an image, utilisation.

    Raises RedcaneError for damaged files or a missing tool, sim.runner.BenchFailed when the accelerator does not
    answer.
    """
    program, setup = load_program(network, rtl)
    p = program.parameters
    batches = [images[start : start + p.batch] for start in range(0, len(images), p.batch)]
    memory, runs = program_runs(program, setup, batches)
    with tempfile.TemporaryDirectory(prefix="redcane-verify-") as scratch:
        done = Path(scratch, "done")
        # The first run is the set-up; then each batch takes two.
        with _watching(done, lambda runs: progress(min(len(images), max(0, runs - 1) // 2 * p.batch))):
            outcomes = simulate_runs(
                sorted(rtl.glob("*.v")), memory.pieces, runs, bus_bits=p.bus_bits, hold=back_pressure, seed=seed,
                timeout_cycles=20 * _upper_cycles(program, len(setup)),
                isolate_modules=["pe", *(kind.module for kind in p.kinds)], folder=Path(scratch, "run"), done=done,
            )  # fmt: skip

    board = Scoreboard(program)
    reference_hits = rtl_hits = 0
    counters: list[dict[str, int]] = []
    layers: dict[str, dict[str, int]] = {}
    remaining = iter(outcomes[1:])
    for number, batch in enumerate(batches):
        traces = [reference.run(network, image) for image in batch]
        for traced in (True, False):
            outcome = next(remaining)
            board.batch(number * p.batch, outcome.packets, traces, traced)
        counters.append(board.counters[-1])
        layers = layers or by_layer(program, board.counters)
        here = labels[number * p.batch :][: len(batch)]
        reference_hits += sum(int(trace["class"]) == label for trace, label in zip(traces, here, strict=True))
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
        "bus_last_batch": outcome.counters,
        "back_pressure": back_pressure,
        "multipliers": [kind.component for kind in p.kinds],
        "array": [p.rows, p.columns],
        "batch": p.batch,
    }


def by_layer(program: Program, counters: list[dict[str, int]]) -> dict[str, dict[str, int]]:
    """What the counters, read after each layer and at the end, grew by in each."""
    ends = [step.label.rsplit(".", 1)[0] for step in program.plain if step.opcode == isa.Opcode.COUNTERS]
    before = [dict.fromkeys(isa.COUNTERS, 0), *counters]
    return {
        layer: {name: now[name] - then[name] for name in isa.COUNTERS}
        for layer, then, now in zip(ends, before, counters, strict=False)
    }


@contextmanager
def _watching(done: Path, progress: Callable[[int], None]) -> Iterator[None]:
    """Tell `progress` how many runs the bench has put into the file `done`."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.3):
            if done.exists():
                progress(done.stat().st_size)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


class Scoreboard:
    """Holds packets against the reference's traces and remembers the first difference."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self.compared = 0
        self.mismatches = 0
        self.first: dict[str, Any] | None = None
        self.answers = np.zeros(0, np.int64)  # the classes of the last batch
        self.counters: list[dict[str, int]] = []  # of the last batch, after each layer and at the end

    def batch(
        self, number: int, packets: list[tuple[int, bytes]], traces: list[reference.Trace], traced: bool
    ) -> None:
        """Compare the packets of one batch, in the order of execution; `number` is that of its first image."""
        program = self._program
        self.counters = []
        tags = program.packet_tags(traced)
        if [tag for tag, _ in packets] != tags:
            got_tags = [tag for tag, _ in packets]
            self._differ(number, "packets", [], f"tags {tags}", f"tags {got_tags}")
            return
        for tag, payload in packets:
            if tag == program.COUNTERS_TAG:
                values = np.frombuffer(payload, "<u8").tolist()
                self.counters.append(dict(zip(isa.COUNTERS, values, strict=True)))
                continue
            emission = program.emissions[tag]
            wanted_size = program.payload_bytes(emission)
            if len(payload) != wanted_size:
                self._differ(number, emission.boundary, [], f"{wanted_size} bytes", f"{len(payload)} bytes")
                continue
            got = program.decode(emission, payload)[: len(traces)]
            for index, trace in enumerate(traces):
                self._compare(number + index, emission, got[index], trace[emission.boundary])
            if tag == program.CLASS_TAG:
                self.answers = got.astype(np.int64)

    def _compare(self, number: int, emission: Emission, got: Codes, wanted: NDArray) -> None:
        wanted = wanted.reshape(got.shape)
        self.compared += got.size
        wrong = np.argwhere(got != wanted)
        if len(wrong):
            self.mismatches += len(wrong) - 1
            index = tuple(wrong[0])
            self._differ(number, emission.boundary, [int(i) for i in index], int(wanted[index]), int(got[index]))

    def _differ(self, number: int, boundary: str, index: list[int], expected: Any, got: Any) -> None:
        self.mismatches += 1
        if self.first is None:
            self.first = {"image": number, "boundary": boundary, "index": index, "expected": expected, "got": got}


def _upper_cycles(program: Program, setup_beats: int) -> int:
    """More cycles than set-up and one traced image can take without back-pressure."""
    p = program.parameters
    word = p.rows * p.columns
    uses = 4 * len(program.weights) // word * (p.pixels + p.word_beats)
    return 4 * setup_beats + 16 * p.activation_bytes + uses + (64 + word) * p.vote_words + 100_000
