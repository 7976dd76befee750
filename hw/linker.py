"""Steps become a program: with requests for weights in their places, as words, on memories that are large enough."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hw import isa
from hw.assembler import Assembler
from hw.isa import Opcode, Target
from hw.program import Packet, Program, Region, Step
from model.errors import RedcaneError


def link(assembler: Assembler, image: Region, inputs: dict[str, list[Region]]) -> Program:
    """The program of all steps, for images at `image`, of layers with these inputs.

    Raises RedcaneError for a step that its descriptor cannot express.
    """
    p, layout = assembler.p, assembler.layout
    traced = with_fetches(assembler.steps, p.word_bits // 8)
    plain = [s for s in traced if s.opcode != Opcode.EMIT or s.fields["tag"] == Program.CLASS_TAG]
    code = np.array([word for s in plain + traced for word in _encode(s)], np.uint32)
    parameters = replace(
        p,
        spill=any(step.opcode in (Opcode.LOAD, Opcode.STORE) for step in plain),
        activation_bytes=_power_of_two(layout.chip.most + p.lanes),
        vote_words=layout.vote_words,
        bias_words=max(2, layout.bias_words),
        pixels=assembler.pixels,
        program_words=len(code) + isa.WORDS,  # the fetch may look past the end
        squash_tables=layout.squash_pages,
        exp_tables=layout.exp_pages,
    )
    setup = [Packet(Target.PROGRAM, 0, code), *layout.setup()]
    entries = 0, len(plain) * isa.WORDS
    return Program(
        parameters, setup, layout.weight_bytes(), plain, traced, *entries, image, inputs, layout.outside.most,
        assembler.emissions,
    )  # fmt: skip


def with_fetches(steps: list[Step], word_bytes: int) -> list[Step]:
    """The steps with their FETCH descriptors.

    Weights that lie and are used one after the other are asked for at once. A request goes out before the first job of
    the request before it: early enough to load ahead, and never so many that the sequencer, waiting to hand one over,
    keeps the job from starting that would make room.
    """
    runs: list[tuple[Step, int, int]] = []  # first job, first word, words
    for step in steps:
        if step.weights is None:
            continue
        first, words = step.weights
        if runs and runs[-1][1] + runs[-1][2] == first:
            job, start, known = runs[-1]
            runs[-1] = job, start, known + words
        else:
            runs.append((step, first, words))
    before: dict[int, list[Step]] = {id(job): [] for job, _, _ in runs}
    for number, (_, first, words) in enumerate(runs):
        job, *_ = runs[max(0, number - 1)]
        before[id(job)].append(Step(job.label, Opcode.FETCH, {"address": first * word_bytes, "words": words}))
    return [s for step in steps for s in (*before.get(id(step), ()), step)]


def _encode(step: Step) -> list[int]:
    try:
        return isa.encode(step.opcode, step.fields)
    except ValueError as problem:
        raise RedcaneError(f"{step.label}: more than an accelerator can be told ({problem})") from None


def _power_of_two(least: int) -> int:
    return 1 << max(1, (least - 1).bit_length())
