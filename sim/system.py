"""Runs of the accelerator in a system: memory content and register settings in, result packets and counters out."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from amaranth.utils import ceil_log2
from numpy.typing import NDArray

from hw.program import Packet
from sim.driver import Run, packets
from sim.runner import simulate

PAGE = 4096  # bytes; what lies in memory begins at multiples of it
_BENCH = [Path(__file__).parent / name for name in ("system_bench.v", "axi_memory.v")]


@dataclass(frozen=True)
class Outcome:
    """What a run left behind: packets as (tag, payload), and the counters of the registers."""

    packets: list[tuple[int, bytes]]
    counters: dict[str, int]
    seconds: float  # of processor time, for the simulation of this run


@dataclass(frozen=True)
class Window:
    """The clock cycles, counted from the reset, in which waveforms are recorded, to `waves.vcd` in the folder."""

    first: int
    last: int


def simulate_runs(
    sources: Sequence[Path],
    memory: Mapping[int, NDArray[np.uint8]],
    runs: Sequence[Run],
    *,
    bus_bits: int,
    address_bits: int = 32,
    latency: int = 40,
    hold: float = 0.0,
    seed: int = 0,
    timeout_cycles: int = 10_000_000,
    isolate_modules: Sequence[str] = (),
    folder: Path | None = None,
    done: Path | None = None,
    memory_bytes: int = 0,
    window: Window | None = None,
) -> list[Outcome]:
    """Do `runs`, one after the other, on the system in `sources` (module `redcane`) and a memory that holds the
    bytes `memory` at their addresses.

    The memory answers after `latency` cycles, and each of its channels holds back in the share `hold` of all cycles
    (0 to 1, at random from `seed`). `done` is a file that grows by one byte a run. The memory holds at least
    `memory_bytes`: simulations of different content with a memory of the same size share a build. With a `window`, the
    sources have a module `waves` (`sim.waves`), waveforms are recorded, and all ends with the window.

    Raises sim.runner.BenchFailed when a run breaks off, ends in no interrupt within `timeout_cycles`, or breaks the
    protocol of AXI4; RedcaneError when a tool is missing or the sources do not compile.
    """
    width = bus_bits // 8
    end = max([address + len(content) for address, content in memory.items()]
              + [run.results_address + run.results_size for run in runs])  # fmt: skip
    words = 1 << ceil_log2(-(-max(end, memory_bytes) // width))
    with tempfile.TemporaryDirectory(prefix="redcane-system-") as scratch:
        files = {name: str(Path(scratch, name)) for name in ("memory.npz", "results.npz", "done")}
        np.savez(files["memory.npz"], **{str(address): content for address, content in memory.items()})  # type: ignore[arg-type]
        job = {
            "memory": files["memory.npz"], "results": files["results.npz"], "done": str(done or files["done"]),
            "runs": [asdict(run) for run in runs], "latency": latency, "hold": min(255, round(256 * hold)),
            "timeout_cycles": timeout_cycles,
        }  # fmt: skip
        sizes = [f"-GBITS={bus_bits}", f"-GADDRESS={address_bits}", f"-GWORDS={words}"]
        work = folder or Path(scratch, "run")
        if window:
            work.mkdir(parents=True, exist_ok=True)
            (work / "window.txt").write_text(f"{window.first} {window.last}\n")
        told = simulate([*sources, *_BENCH], "system_bench", "sim.bench_system", job, seed, work,
                        waves=window is not None, isolate_modules=isolate_modules, build_args=sizes)  # fmt: skip
        with np.load(files["results.npz"], allow_pickle=False) as arrays:
            results = [arrays[name].tobytes() for name in arrays.files]
    return [
        Outcome(packets(result), {name: value for name, value in run.items() if name != "seconds"}, run["seconds"])
        for result, run in zip(results, told["runs"], strict=True)
    ]


class Memory:
    """The content of a memory, laid out piece behind piece, each at a page of its own."""

    def __init__(self) -> None:
        self.pieces: dict[int, NDArray[np.uint8]] = {}
        self.end = 0

    def place(self, content: NDArray[np.uint8]) -> int:
        """The address where `content` will lie."""
        address = self.reserve(len(content))
        self.pieces[address] = content
        return address

    def reserve(self, size: int) -> int:
        """The address of room for `size` bytes."""
        address, self.end = self.end, self.end + -(-size // PAGE) * PAGE
        return address

    def run(self, weights: int, beats: NDArray[np.uint32], results_size: int, activations: int = 0) -> Run:
        """A run that plays these beats of commands, with its program's weights at `weights`, room for what it spills at
        `activations`, and room for its results.
        """
        commands = self.place(beats.astype("<u4").view(np.uint8))
        return Run(commands, len(beats), weights, self.reserve(results_size), results_size, activations)


def beats_of(packets: Sequence[Packet]) -> NDArray[np.uint32]:
    """Packets as they go over the stream of commands."""
    return np.concatenate([np.array(packet.beats(), np.uint32) for packet in packets])
