"""A layer alone: the piece of a compiled program that computes it, which the host feeds with the layer's inputs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hw import isa
from hw.isa import Opcode, Target
from hw.linker import with_fetches
from hw.program import Packet, Program, Step
from model.errors import RedcaneError

_HALT = Step("", Opcode.HALT, {})


def layer_program(program: Program, layer: str) -> Program:
    """The program that computes one layer, everything in the same places; its counters follow it.

    The host puts the layer's inputs into memory (`Program.region_packet`) in place of an image. Both entries end with
    the layer; the traced one emits all of its boundaries.

    Raises RedcaneError for a layer that the program does not have.
    """
    word_bytes = program.parameters.word_bits // 8
    if layer not in layers_of(program):
        raise RedcaneError(f"layer {layer!r}: the network has {', '.join(layers_of(program))}")
    steps = [s for s in program.traced if s.label.rpartition(".")[0] == layer and s.opcode != Opcode.FETCH]
    traced = [*with_fetches(steps, word_bytes), _HALT]
    plain = [*with_fetches([s for s in steps if s.opcode != Opcode.EMIT], word_bytes), _HALT]
    code = np.array([word for s in plain + traced for word in isa.encode(s.opcode, s.fields)], np.uint32)
    setup = [Packet(Target.PROGRAM, 0, code), *(p for p in program.setup if p.target != Target.PROGRAM)]
    return replace(program, setup=setup, plain=plain, traced=traced, entry=0, traced_entry=len(plain) * isa.WORDS)


def layers_of(program: Program) -> list[str]:
    """The layers that a program computes, in order; the class at the end is none."""
    names = dict.fromkeys(step.label.rpartition(".")[0] for step in program.traced)
    return [name for name in names if name]
