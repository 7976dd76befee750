"""What an accelerator answered against what the reference says."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hw import isa
from hw.cycles import predict
from hw.program import Emission, Program, stretches_bytes
from model import reference
from model.qnetwork import Codes

Fault = dict[str, Any]  # the first value that differs, as verify.json has it


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
        payloads: dict[int, list[bytes]] = {}  # of each boundary, which comes in one packet or several
        for tag, payload in packets:
            if tag == program.COUNTERS_TAG:
                values = np.frombuffer(payload, "<u8").tolist()
                self.counters.append(dict(zip(isa.COUNTERS, values, strict=True)))
                continue
            emission, sent = program.emissions[tag], payloads.setdefault(tag, [])
            sent.append(payload)
            if len(sent) < len(emission.packets):
                continue
            sizes, wanted = [len(packet) for packet in sent], [stretches_bytes(packet) for packet in emission.packets]
            if sizes != wanted:
                self._differ(number, emission.boundary, [], f"{wanted} bytes", f"{sizes} bytes")
                continue
            got = program.decode(emission, sent)[: len(traces)]
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


def by_layer(program: Program, counters: list[dict[str, int]]) -> dict[str, dict[str, int]]:
    """What the counters, read after each layer and at the end, grew by in each."""
    ends = [_layer(step.label) for step in program.plain if step.opcode == isa.Opcode.COUNTERS]
    before = [dict.fromkeys(isa.COUNTERS, 0), *counters]
    return {
        layer: {name: now[name] - then[name] for name in isa.COUNTERS}
        for layer, then, now in zip(ends, before, counters, strict=False)
    }


def moving_cycles(counted: dict[str, int]) -> int:
    """The cycles in which nothing waited for the bus or for the receiver."""
    return counted["cycles"] - sum(counted[f"{what}_stalls"] for what in ("weight", "load", "store", "output"))


def cycle_fault(program: Program, layers: dict[str, dict[str, int]]) -> Fault | None:
    """The first layer whose cycles are not those of the cycle model, but for what the bus holds up."""
    wanted = dict.fromkeys(layers, 0)
    for label, cost in predict(program).items():
        wanted[_layer(label)] += cost.cycles - cost.stalls
    for layer, counted in layers.items():
        cycles = moving_cycles(counted)
        if cycles != wanted[layer]:
            return {"image": 0, "boundary": f"{layer}: cycles", "index": [], "expected": wanted[layer], "got": cycles}
    return None


def _layer(label: str) -> str:
    """The layer of a step: "layer.operation", or "class"."""
    return label.rpartition(".")[0] or label
