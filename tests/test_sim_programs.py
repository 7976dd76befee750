"""Many networks on one accelerator in one simulation: each equal to the reference, and what is wrong is told of the
network that it is wrong with.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hw import isa
from hw.compiler import compile_network
from hw.isa import Opcode, Target
from hw.mapping import NetworkMapping, map_network
from sim.programs import Case, check_programs, room
from tests import fuzz

BUILD = replace(fuzz.build(2), multipliers=("wild", "signed_wilder"))  # 4 x 4
ROOM = 2**19  # bytes of memory; it is a part of the build


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return BUILD.write(tmp_path_factory.mktemp("rtl"))


def drawn(number: int, most: int) -> list[Case]:
    every: list[fuzz.Drawn] = []
    fuzz.each_drawn(number, BUILD, most, every.append)
    return [case for one in every if (case := one.case(BUILD))]


def test_random_networks_on_one_build(sources: list[Path]) -> None:
    cases = drawn(0, 60)
    assert len({case.network.image for case in cases}) > 10
    assert sum(room(case.program) for case in cases) > ROOM  # so there are several simulations
    faults = check_programs(sources, BUILD.parameters, cases, latency=BUILD.latency, hold=0.2, memory_bytes=ROOM)
    assert faults == [None] * len(cases)


def test_every_way_to_lie_on_the_array_makes_the_same_codes(sources: list[Path]) -> None:
    """The networks that have most of them, each with every other way of a layer in place of the best."""
    found: list[list[Case]] = []

    def every_way(one: fuzz.Drawn) -> None:
        p = replace(BUILD.parameters, batch=one.batch)
        best = map_network(one.network, p, accumulators=18)
        ways = [best]
        for layer, (source,) in one.network.sources():
            for other in best.lost[layer.name]:
                pitches = best.pitches | {source: other.pitch}
                ways.append(NetworkMapping(best.chosen | {layer.name: other}, {}, pitches))
        size = BUILD.size(one.batch)
        programs = [compile_network(one.network, BUILD.kinds, size, way) for way in ways]
        found.append([Case(one.network, program, one.images) for program in programs])

    fuzz.each_drawn(3, BUILD, 20, every_way)
    most = sorted(found, key=len)[-4:]
    assert min(len(ways) for ways in most) >= 6
    cases = [case for ways in most for case in ways]
    faults = check_programs(sources, BUILD.parameters, cases, latency=BUILD.latency, memory_bytes=ROOM)
    assert faults == [None] * len(cases)


def test_the_network_that_is_wrong_is_told(sources: list[Path]) -> None:
    """One computes another network's weights, one waits for weights for ever, one takes other cycles than it says."""
    cases = drawn(1, 12)
    other = replace(cases[3].program, weights=cases[3].program.weights ^ 64)
    cases[3] = replace(cases[3], program=other)
    code = cases[5].program.setup[0]
    assert code.target == Target.PROGRAM
    words = code.words.copy()
    fetches = words.reshape(-1, isa.WORDS)[:, 0] & 15 == Opcode.FETCH
    words.reshape(-1, isa.WORDS)[fetches] = isa.encode(Opcode.FETCH, {"address": 0, "words": 1})
    cases[5] = replace(cases[5], program=replace(cases[5].program, setup=[replace(code, words=words),
                                                                         *cases[5].program.setup[1:]]))  # fmt: skip
    plain = cases[8].program.plain
    cases[8] = replace(cases[8], program=replace(cases[8].program, plain=[plain[0], *plain]))
    faults = check_programs(sources, BUILD.parameters, cases, timeout_cycles=60_000, memory_bytes=ROOM)
    assert [index for index, fault in enumerate(faults) if fault] == [3, 5, 8]
    assert faults[3] and faults[3]["boundary"] == "conv1.mac"
    assert faults[5] and "no interrupt in 60000 cycles" in faults[5]["got"]
    assert faults[8] and faults[8]["boundary"] == "conv1: cycles"
