"""The accelerator's surroundings in a system, with a small core in its place: DMA, registers, interrupt, errors."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hw import registers
from hw.generate import TOP
from hw.isa import Target
from hw.registers import Cause
from hw.system import System, check_sizes
from hw.verilog import to_verilog
from model.errors import RedcaneError
from sim.driver import Run, packets
from sim.runner import BenchFailed, simulate
from sim.system import simulate_runs
from tests.core_standin import CoreStandin

SEED = 5
MEMORY = 1 << 17
COMMANDS, WEIGHTS, RESULTS = 0x1D0, 0x8000, 0x18F90  # commands and results begin within a burst, and cross 4 KiB


def packet(target: Target, address: int, payload: list[int]) -> list[int]:
    return [target << 28 | len(payload), address, *payload]


class Traffic:
    """Random commands for the stand-in, and the packets that they must give."""

    def __init__(self, rng: np.random.Generator, memory: NDArray[np.uint8], word_bytes: int, rounds: int) -> None:
        weights = memory[WEIGHTS:].view("<u4").astype(object)  # sums without a limit
        self.beats: list[int] = []
        self.wanted: list[tuple[int, bytes]] = []
        for number in range(rounds):
            echo = rng.integers(0, 2**32, rng.integers(0, 60)).tolist()
            self.beats += packet(Target.ACTIVATIONS, number, echo)
            self.wanted.append((number, np.array(echo, "<u4").tobytes()))
            self.beats += packet(Target.START, int(rng.integers(0, 20)), [])
            requests, got = [], []
            for _ in range(rng.integers(1, 8)):
                address, words = int(rng.integers(0, 256)) * word_bytes, int(rng.integers(0, 24))
                requests += [address, words]
                got += weights[address // 4 : address // 4 + words * word_bytes // 4].tolist()
            self.beats += packet(Target.EXP_TABLE, number, requests)
            sums = [sum(got), sum((i + 1) * word for i, word in enumerate(got)), 0]
            self.wanted.append((number, (np.array(sums, object) & 0xFFFFFFFF).astype("<u4").tobytes()))

    def run(self, **changes: int) -> dict[str, int]:
        return {
            "commands_address": COMMANDS, "commands_beats": len(self.beats), "weights_base": WEIGHTS,
            "results_address": RESULTS, "results_size": self.size,
        } | changes  # fmt: skip

    def answered(self, words: int) -> int:
        """Bytes of the results when no more than the first `words` of the commands arrive."""
        position = answers = 0
        while position + 2 <= words:
            size = self.beats[position] & 0xFFFFFFF
            here = min(size, words - position - 2)
            if self.beats[position] >> 28 == Target.ACTIVATIONS:
                answers += 1 + here
            elif self.beats[position] >> 28 == Target.EXP_TABLE and here == size:
                answers += 4
            position += 2 + size
        return 4 * answers

    @property
    def size(self) -> int:
        """Bytes of the results."""
        return sum(4 + len(payload) for _, payload in self.wanted)


class Bench:
    """A system of one size, its memory, and what came of the steps."""

    def __init__(
        self, folder: Path, bus_bits: int, word_bytes: int, rounds: int, name: str = "system", **sizes: int
    ) -> None:
        self.folder = folder
        self.source = folder / "system.v"
        self.source.write_text(to_verilog(System(CoreStandin(bus_bits, word_bytes), word_bytes, **sizes), name))
        rng = np.random.default_rng(SEED)
        self.memory = rng.integers(0, 256, MEMORY).astype(np.uint8)
        self.traffic = Traffic(rng, self.memory, word_bytes, rounds)
        beats = np.array(self.traffic.beats, "<u4").view(np.uint8)
        self.memory[COMMANDS : COMMANDS + len(beats)] = beats

    def steps(self, *steps: dict[str, Any], pauses: float) -> tuple[list[dict[str, Any]], list[bytes]]:
        """What each step told, and its results; nothing but the room for results may have changed."""
        after, results = self.folder / "memory.npy", self.folder / "results.npz"
        np.save(after, self.memory)
        job = {"memory": str(after), "results": str(results), "steps": list(steps), "pauses": pauses, "seed": SEED}
        told = simulate([self.source], "system", "tests.bench_system", job, SEED, self.folder)
        changed = np.flatnonzero(np.load(after) != self.memory)
        assert len(changed) and changed[0] >= RESULTS and changed[-1] < RESULTS + self.traffic.size
        with np.load(results) as arrays:
            return told["steps"], [arrays[name].tobytes() for name in arrays.files]


@pytest.mark.parametrize(
    ("bus_bits", "word_bytes", "sizes"),
    [(32, 16, {"burst": 32, "outstanding": 3}), (128, 64, {"burst": 4, "outstanding": 5, "address_bits": 40})],
)
def test_everything_arrives_once_and_in_order(
    tmp_path: Path, bus_bits: int, word_bytes: int, sizes: dict[str, int]
) -> None:
    bench = Bench(tmp_path, bus_bits, word_bytes, 12, **sizes)
    traffic = bench.traffic
    told, results = bench.steps({"run": traffic.run()}, {"run": traffic.run()}, pauses=0.4)
    assert [packets(result) for result in results] == [traffic.wanted, traffic.wanted]
    for step in told:
        assert step["error"] is None
        assert step["bytes_written"] >= traffic.size
        assert step["bytes_read"] > 4 * len(traffic.beats)
        assert 0 < step["weight_stalls"] < step["cycles"]
        assert 0 < step["command_stalls"] < step["cycles"]


def test_errors_are_told_and_reset_helps(tmp_path: Path) -> None:
    """Each fault breaks its run off, and the run after the reset is right. So is one after a reset at any moment."""
    bench = Bench(tmp_path, 64, 64, 5, burst=8, outstanding=4)
    traffic = bench.traffic
    good = {"run": traffic.run()}
    faults: list[tuple[dict[str, Any], str]] = [
        ({"run": traffic.run(), "fault": [COMMANDS + 0x10, COMMANDS + 0x18]}, f"{Cause.COMMANDS_READ.name} at 0x1d0"),
        ({"run": traffic.run(), "fault": [WEIGHTS, RESULTS]}, Cause.WEIGHTS_READ.name),
        ({"run": traffic.run(), "fault": [RESULTS + 0x80, RESULTS + 0x88]}, f"{Cause.RESULTS_WRITE.name} at 0x19000"),
        ({"run": traffic.run(results_size=traffic.size - 4)}, Cause.RESULTS_OVERFLOW.name),
    ]
    steps: list[dict[str, Any]] = [good]
    for step, _ in faults:
        steps += [step, good]
    for cycles in (1, 40, 333, 1000):
        steps += [{"run": traffic.run(), "reset_after": cycles}, good]
    told, results = bench.steps(*steps, pauses=0.2)
    assert all(step["error"] is None for step in told[::2])
    assert [packets(result) for result in results[::2]] == [traffic.wanted] * (len(steps) // 2 + 1)
    for (_, message), step, result in zip(faults, told[1::2], results[1::2], strict=False):
        assert message in step["error"]
        assert len(result) <= traffic.size - 4
    assert len(results[1]) == traffic.answered(0x10 // 4)  # nothing from the fault on has reached the core


def test_registers_are_what_their_page_says(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 64, 64, 5, burst=8, outstanding=4)
    addresses = dict.fromkeys(registers.BUS_ADDRESSES, 2**32 - 8)
    masks = addresses | {"RESULTS_SIZE": 2**32 - 4, "COMMANDS_BEATS": 2**32 - 1, "IRQ_ENABLE": 3, "ACTIVATIONS_BASE": 0}
    job = {"seed": SEED, "sizes": {"bus_bytes": 8, "address_bits": 32, "word_bytes": 64}, "masks": masks}
    told = simulate([bench.source], "system", "tests.bench_registers", job, SEED, tmp_path)
    assert told["registers"] == sum(register.words for register in registers.MAP)


def test_the_page_of_the_registers() -> None:
    page = Path(__file__).parent.parent / "docs" / "registers.md"
    assert page.read_text() == registers.page(), "run `python -m hw.registers > docs/registers.md`"


def test_no_two_registers_share_a_place() -> None:
    places = [register.offset + 4 * i for register in registers.MAP for i in range(register.words)]
    assert len(set(places)) == len(places)
    assert max(places) < 1 << registers.ADDRESS_BITS
    for register in registers.MAP:
        assert register.offset % 4 == 0
        taken = [field.low + i for field in register.fields for i in range(field.width)]
        assert len(set(taken)) == len(taken) and all(bit < register.width for bit in taken)


def test_latency_is_hidden_and_a_fast_memory_gives_the_same(tmp_path: Path) -> None:
    """On the memory of sim.system: random requests with everything held back at random, then one long request at a
    latency that the bursts under way cover; and memory that is not there.
    """
    bench = Bench(tmp_path, 64, 64, 8, name=TOP, burst=8, outstanding=4)
    traffic, latency, words = bench.traffic, 3 * 8 - 4, 512
    run = Run(**traffic.run())
    long = np.array(packet(Target.EXP_TABLE, 0, [0, words]), "<u4").view(np.uint8)
    long_run = dataclasses.replace(run, commands_address=MEMORY, commands_beats=len(long) // 4, weights_base=0)
    memory = {0: bench.memory, MEMORY: long}
    sources: dict[str, Any] = {"sources": [bench.source], "memory": memory, "bus_bits": 64, "seed": SEED}
    held = simulate_runs(runs=[run, run], latency=9, hold=0.4, **sources)
    assert [outcome.packets for outcome in held] == [traffic.wanted, traffic.wanted]

    [fast] = simulate_runs(runs=[long_run], latency=latency, **sources)
    weights = bench.memory[: 64 * words].view("<u4").astype(object)
    assert fast.packets[0][1][:4] == (sum(weights) & 0xFFFFFFFF).to_bytes(4, "little")
    assert fast.counters["bytes_read"] == 64 * words + 8 * -(-len(long) // 8)
    assert fast.counters["weight_stalls"] < latency + 8  # before the first beat, then never
    assert fast.counters["cycles"] < 8 * words + 4 * (latency + 20)

    lost = dataclasses.replace(run, weights_base=1 << 20)
    with pytest.raises(BenchFailed, match=r"WEIGHTS_READ at 0x1.* \(response 3\)"):
        simulate_runs(runs=[lost], latency=latency, **sources)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((24, 16, 32, 16, 4), "a bus of 24 bits"),
        ((256, 16, 32, 16, 4), "words of 16 bytes"),
        ((32, 48, 32, 16, 4), "words of 48 bytes"),
        ((32, 16, 65, 16, 4), "addresses of 65 bits"),
        ((512, 64, 32, 128, 4), "from 2 to 64 beats"),
        ((32, 16, 32, 12, 4), "4 bursts of 12 beats"),
        ((32, 16, 32, 16, 1), "1 bursts"),
        ((32, 16, 32, 1, 4), "4 bursts of 1 beats"),
    ],
)
def test_sizes_that_cannot_be(sizes: tuple[int, int, int, int, int], message: str) -> None:
    with pytest.raises(RedcaneError, match=message):
        check_sizes(*sizes)


def test_results_that_end_early() -> None:
    assert packets(b"\x02\0\0\x07ab\0\0\0\0\0\x08") == [(7, b"ab"), (8, b"")]
    with pytest.raises(RedcaneError, match="packet 0 of 2 bytes"):
        packets(b"\x02\0\0\x07")
