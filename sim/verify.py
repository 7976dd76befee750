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
from hw.generate import TOP
from hw.parameters import MultiplierKind
from hw.program import Emission, Program
from model import reference
from model.errors import RedcaneError
from model.files import read_bounded
from model.qnetwork import Codes, QNetwork
from sim.runner import simulate

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
        program = compile_network(network, kinds, parameters["rows"], parameters["columns"])
        same = json.loads(json.dumps(asdict(program.parameters))) == parameters
    except (ValueError, KeyError, TypeError) as problem:
        raise RedcaneError(f"{path}: not a description of an accelerator ({problem}); generate it again") from None
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

    Each image is computed twice: with every boundary emitted, and as in use, for its class and its cycles.
    `back_pressure` is the share of time that both streams hold back (seeded). `progress` is told the number of images
    done, now and then. Returns the content of verify.json (docs/artefacts.md): counts, the first mismatch or null,
    accuracies, cycles an image, utilisation.

    Raises RedcaneError for damaged files or a missing tool, sim.runner.BenchFailed when the accelerator does not
    answer.
    """
    program, setup = load_program(network, rtl)
    sources = sorted(rtl.glob("*.v"))
    modules = [kind.module for kind in program.parameters.kinds]
    beats, cuts, expected = [setup], [], [0]
    for image in images:
        for traced in (True, False):
            packets = [program.image_packet(image), program.start_packet(traced)]
            cuts.append(sum(len(b) for b in beats))
            beats.append(np.array([beat for packet in packets for beat in packet.beats()], np.uint32))
            expected.append(2 + traced * (len(program.emissions) - 1))
    with tempfile.TemporaryDirectory(prefix="redcane-verify-") as scratch:
        files = {"beats": str(Path(scratch, "beats.npy")), "received": str(Path(scratch, "received.npz")),
                 "done": str(Path(scratch, "done"))}  # fmt: skip
        np.save(files["beats"], np.concatenate(beats))
        job = {**files, "cuts": cuts, "frames": expected, "seed": seed, "back_pressure": back_pressure,
               "timeout_cycles": 20 * _upper_cycles(program, len(setup))}  # fmt: skip
        with _watching(Path(files["done"]), progress):
            simulate(sources, TOP, "sim.bench_accelerator", job, seed, isolate_modules=["pe", *modules])
        with np.load(files["received"], allow_pickle=False) as received:
            frames = np.split(received["beats"], np.cumsum(received["lengths"])[:-1])

    board = Scoreboard(program)
    reference_hits = rtl_hits = 0
    counters: list[dict[str, int]] = []
    position = 0
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        trace = reference.run(network, image)
        for traced in (True, False):
            count = 2 + traced * (len(program.emissions) - 1)
            board.image(number, frames[position : position + count], trace, traced)
            position += count
        counters.append(board.counters)
        reference_hits += int(trace["class"]) == label
        rtl_hits += board.answer == label
    p = program.parameters
    cycles = [c["cycles"] - c["output_stalls"] for c in counters]
    busy = sum(c["busy_pe_cycles"] for c in counters)
    return {
        "schema": 1,
        "images": len(images),
        "boundaries": [e.boundary for e in program.emissions.values()],
        "values_compared": board.compared,
        "mismatches": board.mismatches,
        "first_mismatch": board.first,
        "accuracy": {"reference": float(reference_hits / len(images)), "rtl": float(rtl_hits / len(images))},
        "cycles_per_image": {"mean": float(np.mean(cycles)), "min": min(cycles), "max": max(cycles)},
        "pe_utilisation": busy / (sum(cycles) * p.rows * p.columns),
        "counters_first_image": counters[0],
        "back_pressure": back_pressure,
        "multipliers": [kind.component for kind in p.kinds],
        "array": [p.rows, p.columns],
    }


@contextmanager
def _watching(done: Path, progress: Callable[[int], None]) -> Iterator[None]:
    """Tell `progress` how many runs the bench has put into the file `done`, halved: an image is run twice."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.3):
            if done.exists():
                progress(done.stat().st_size // 2)

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
        self.answer = -1  # the class of the last image, and its counters
        self.counters: dict[str, int] = {}

    def image(self, number: int, frames: list[NDArray[np.uint32]], trace: reference.Trace, traced: bool) -> None:
        """Compare the packets of one image, in the order of execution."""
        program = self._program
        wanted = [tag for tag in program.emissions if tag != program.CLASS_TAG] if traced else []
        wanted += [program.CLASS_TAG, program.COUNTERS_TAG]
        for tag, frame in zip(wanted, frames, strict=True):
            header, payload = int(frame[0]), frame[1:].astype("<u4").tobytes()
            size = header & 0xFFFFFF
            if header >> 24 != tag or len(payload) != -(-size // 4) * 4:
                self._differ(number, f"packet {tag}", [], f"header of tag {tag}", f"tag {header >> 24}, {size} bytes")
                continue
            if tag == program.COUNTERS_TAG:
                values = np.frombuffer(payload, "<u8").tolist()
                self.counters = dict(zip(isa.COUNTERS, values, strict=True))
                continue
            emission = program.emissions[tag]
            wanted_size = program.payload_bytes(emission)
            if size != wanted_size:
                self._differ(number, emission.boundary, [], f"{wanted_size} bytes", f"{size} bytes")
                continue
            self._compare(number, emission, program.decode(emission, payload), trace[emission.boundary])
            if tag == program.CLASS_TAG:
                self.answer = int(program.decode(emission, payload))

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
    return 4 * setup_beats + 16 * p.activation_bytes + 4 * p.weight_words * p.pixels + 64 * p.vote_words + 100_000
