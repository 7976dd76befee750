"""A simulation put together: what lies in memory, the runs, and what the reference says that they answer."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hw.program import Program
from model import reference
from sim.driver import Run
from sim.system import Memory, Outcome, Window, simulate_runs

_MEMORY_BYTES = 2**20  # small networks have a memory of the same size, and so a build in common


@dataclass(frozen=True)
class Answer:
    """What a run has to answer: the packets of one of the program's entries for some images."""

    program: Program
    image: int  # number of the first
    traces: list[reference.Trace]
    traced: bool


@dataclass
class Experiment:
    """Runs on the accelerator in `rtl`, with the weights of `program` in memory; None is a run without an answer."""

    rtl: Path
    program: Program
    hold: float = 0.0
    seed: int = 0
    memory: Memory = field(default_factory=Memory)
    runs: list[tuple[Run, Answer | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._weights = self.memory.place(self.program.weights)
        self._activations = self.memory.reserve(self.program.spill_bytes)

    def add(
        self, beats: NDArray[np.uint32], answer: Answer | None = None, activations: NDArray[np.uint8] | None = None
    ) -> None:
        """A run that plays these beats of commands, and finds these spilled activations."""
        size = answer.program.results_bytes(answer.traced) if answer else 0
        spilled = self._activations if activations is None else self.memory.place(activations)
        self.runs.append((self.memory.run(self._weights, beats, size, spilled), answer))

    def simulate(
        self,
        progress: Callable[[int], None] = lambda done: None,
        count: int | None = None,
        more_sources: Sequence[Path] = (),
        folder: Path | None = None,
        window: Window | None = None,
    ) -> list[Outcome]:
        """Do the runs, or the first `count`. `progress` is told how many are done; for `folder` and `window` see
        `sim.system.simulate_runs`, which also says what is raised.
        """
        p = self.program.parameters
        runs = [run for run, _ in self.runs[:count]]
        with tempfile.TemporaryDirectory(prefix="redcane-experiment-") as scratch:
            done = Path(scratch, "done")
            with _watching(done, progress):
                return simulate_runs(
                    [*sorted(self.rtl.glob("*.v")), *more_sources], self.memory.pieces, runs, bus_bits=p.bus_bits,
                    hold=self.hold, seed=self.seed, timeout_cycles=20 * self._upper_cycles(), done=done,
                    isolate_modules=["pe", *(kind.module for kind in p.kinds)],
                    folder=folder or Path(scratch, "run"), window=window, memory_bytes=_MEMORY_BYTES,
                )  # fmt: skip

    def _upper_cycles(self) -> int:
        """More cycles than any of the runs can take without back-pressure."""
        p = self.program.parameters
        word = p.rows * p.columns
        uses = 4 * len(self.program.weights) // word * (p.pixels + p.word_beats)
        beats = max(run.commands_beats for run, _ in self.runs)
        activations = p.activation_bytes + 4 * self.program.spill_bytes
        return 4 * beats + 16 * activations + uses + (64 + word) * p.vote_words + 100_000


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
