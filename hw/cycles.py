"""The cycle model: how long a program takes, descriptor by descriptor, and how busy it keeps the PEs.

Exact for every unit, since no step depends on data. What the bus adds is a model: weights come at a beat a cycle once
their first has come, activations at the pace of the memory that they go to (`hw.spill`), and where both want the bus
they take turns. sim.verify holds it against the counters in the RTL.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hw import isa
from hw.isa import Opcode
from hw.loops import LEVELS
from hw.matmul import RESULT
from hw.parameters import Parameters
from hw.program import Program, Step
from hw.spill import piece_bytes

FETCH = isa.WORDS + 2  # of every descriptor, see hw.sequencer
LATENCY = 50  # cycles from a request for weights to its first beat, unless told otherwise
BURST = 16  # beats
_BETWEEN = 2  # cycles from a burst that is written to the next
_SOONER = 3  # cycles by which a burst is answered sooner than `latency` says of one that is read
_DIVISION = 7  # half the cycles of the softmax's divider, which bound it for few classes


@dataclass
class Cost:
    """What all descriptors of one operation take for one batch."""

    cycles: int = 0  # fetching the descriptors included
    stalls: int = 0  # of these, waiting for the bus
    products: int = 0  # lanes that hold operands, summed over the steps
    weight_bytes: int = 0  # that come over the bus
    spill_bytes: int = 0  # of activations that come and go over it, as whole beats
    jobs: int = 0


def steps(fields: dict[str, int]) -> int:
    """Cycles of a MATMUL's loop nest."""
    result = 1
    for level in LEVELS:
        result *= fields[f"{level}s"]
    return result


def products(fields: dict[str, int]) -> int:
    """Lanes with operands, summed over the steps of a MATMUL."""
    lanes = (fields["chunks"] - 1) * fields["lanes"] + fields["last_lanes"]
    columns = (fields["blocks"] - 1) * fields["columns"] + fields["last_columns"]
    return steps({**fields, "chunks": 1, "blocks": 1}) * lanes * columns


def predict(program: Program, latency: int = LATENCY) -> dict[str, Cost]:
    """The cost of every operation ("layer.operation", and "class") of the plain program, for one batch.

    `latency` is that of the external memory in cycles. Sending counters is not counted, as they stand still meanwhile.
    """
    return predict_steps(program.plain, program.parameters, latency)


def predict_steps(piece: Iterable[Step], p: Parameters, latency: int = LATENCY) -> dict[str, Cost]:
    """The same for any piece of a program."""
    costs: dict[str, Cost] = {}
    now = 0
    arrived = latency  # when the last word so far has come
    loaded, coming = 0, 0  # when all of the activations that were asked for are there, and beats of them on their way
    others = max(1, p.bus_bits // 8 // piece_bytes(p) - 1)  # beats that the bus has for others to each of these
    freed: list[int] = []  # when each word's last use was over
    for step in piece:
        if step.opcode == Opcode.HALT:
            continue
        cost = costs.setdefault(step.label, Cost())
        begin = now
        now += FETCH
        if step.opcode == Opcode.MATMUL:
            cost.jobs += 1
            cost.products += products(step.fields)
            if step.weights:
                words = step.weights[1]
                use = steps(step.fields) // words
                cost.weight_bytes += words * p.word_bits // 8
                for _ in range(words):
                    room = freed[-p.weight_words] if len(freed) >= p.weight_words else 0
                    begun = max(arrived, room)
                    shared = min(coming, p.word_beats // others) if begun < loaded else coming
                    coming -= shared
                    arrived = begun + p.word_beats + (shared if begun < loaded else 0)
                    cost.stalls += max(0, arrived - now)
                    now = max(now, arrived) + use
                    freed.append(now)
            else:
                now += steps(step.fields)
            now += RESULT + 1
        elif step.opcode in (Opcode.LOAD, Opcode.STORE):
            beats, pieces = _moved(step.fields, p)
            cost.spill_bytes += beats * p.bus_bits // 8
            if step.opcode == Opcode.LOAD:
                loaded = max(loaded, now + latency) + 1 + pieces
                coming += beats
            else:
                bursts = -(-beats // BURST)
                behind = max(0, beats + _BETWEEN * (bursts - 1) - pieces)
                stall = behind + beats - (bursts - 1) * BURST + latency - _SOONER
                now += pieces + 1 + stall
                cost.stalls += stall
        elif step.opcode == Opcode.WAIT:
            cost.stalls += max(0, loaded - now)
            now = max(now, loaded)
        else:
            now += _side_unit(step, p.lanes)
        cost.cycles += now - begin
    return costs


def _moved(transfer: dict[str, int], p: Parameters) -> tuple[int, int]:
    """Beats of the bus, and pieces (`hw.spill`), in which the bytes of a LOAD or STORE move."""
    bus = p.bus_bits // 8
    end = transfer["address"] % bus + transfer["count"]
    return -(-end // bus), -(-end // piece_bytes(p))


def _side_unit(step: Step, lanes: int) -> int:
    """Cycles of a descriptor that is not the array's, as the units' docstrings say."""
    fields = step.fields
    if step.opcode == Opcode.SQUASH:
        words = -(-fields["dim"] // lanes)
        return fields["count"] * words + 5 if fields.get("classify") else (fields["count"] + 1) * 2 * words + 5
    if step.opcode == Opcode.SOFTMAX:
        classes, blocks = fields["classes"], -(-fields["inputs"] // lanes)
        return (blocks + 2) * 2 * max(classes, _DIVISION) + 2 * classes + 8
    if step.opcode == Opcode.ADD:
        return 2 * -(-fields["count"] // lanes) + 5
    if step.opcode == Opcode.EMIT:
        return 1 + 3 * -(-fields["count"] // 4)
    return 0
