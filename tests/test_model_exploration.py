"""The search below what noise admits: against the best there is, within its bounds, and on a real network."""

from __future__ import annotations

import itertools
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model_quantize import images, network
from test_model_selection import CAPTURES, COSTS, MULTIPLICATIONS, OPERATIONS, SPENT, TABLES, Q

from model.capture import capture
from model.comparison import Loss, compare
from model.emulation import Emulator
from model.errors import RedcaneError
from model.exploration import Exploration, explore
from model.measurements import BATCH, Measurements
from model.placement import Elsewhere, component_of, is_moved, moved, option
from model.qnetwork import QNetwork
from model.quantize import image_codes, quantize
from model.selection import Selection, select

KEYS = ("a.mac", "b.mac", "c.mac")
NAMES = ("exact", "p", "q", "r", "s", "t")


class World:
    """Components of known cost, noise and harm; what an assignment loses is the sum of its harms."""

    def __init__(self, seed: int, surprises: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        share = dict(zip(KEYS, rng.dirichlet((1, 1, 1)), strict=True))
        quality = np.concatenate([[0], np.sort(rng.random(5))])
        price = np.concatenate([[1], np.sort(rng.random(5))[::-1]])
        self.costs = {key: dict(zip(NAMES, share[key] * price, strict=True)) for key in KEYS}
        self.noise = {key: dict(zip(NAMES, rng.uniform(0.5, 2) * quality, strict=True)) for key in KEYS}
        self.harm = {
            key: {n: noise[n] ** 2 * (1 + surprises * rng.standard_normal()) for n in NAMES}
            for key, noise in self.noise.items()
        }
        self.exact = dict.fromkeys(KEYS, "exact")
        self.asked: list[dict[str, str]] = []

    def lost(self, assignment: dict[str, str]) -> float:
        return sum(self.harm[key][name] for key, name in assignment.items())

    def judge(self, action: str, assignment: dict[str, str]) -> Loss:
        assert assignment not in self.asked
        self.asked.append(assignment)
        points = self.lost(assignment)
        return Loss(10_000, round(100 * points), 0, points)

    def search(self, allowed: float, kinds: int, most: int = 1000) -> Exploration:
        return Exploration(self.costs, self.noise, self.exact, allowed, kinds, self.judge, most)


def test_it_comes_near_the_best_there_is() -> None:
    """With harm as the square of the noise, which is what the search expects. It is a local one: in two of 1,500 worlds
    it ended more than a quarter above the best, so what is asked of it is asked of many worlds, always the same.
    """
    ratios = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        world, allowed, kinds = World(seed), rng.uniform(0.05, 2), int(rng.integers(1, 4))
        search = world.search(allowed, kinds)
        found = search.run(world.exact)
        assert len(set(found.values())) <= kinds and world.lost(found) <= allowed
        able = (dict(zip(KEYS, names, strict=True)) for names in itertools.product(NAMES, repeat=3))
        least = min(search.cost(a) for a in able if len(set(a.values())) <= kinds and world.lost(a) <= allowed)
        ratios.append(search.cost(found) / least)
    assert np.mean(ratios) < 1.003 and max(ratios) < 1.25


@given(st.integers(0, 2**32), st.floats(0.05, 2))
@settings(max_examples=60, deadline=None)
def test_three_measurements_find_the_best_multiplier_for_everything(seed: int, allowed: float) -> None:
    world = World(seed)
    search = world.search(allowed, 3, most=3)
    found = search.run(world.exact)
    everywhere = [a for name in NAMES if world.lost(a := dict.fromkeys(KEYS, name)) <= allowed]
    assert search.cost(found) <= min(search.cost(a) for a in everywhere) * (1 + 1e-12)


class TwoPlaces(World):
    """The same, and every component once more at the other place, where it costs less and is noisier."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        rng = np.random.default_rng(seed)
        for key in KEYS:
            for name in NAMES:
                there, worse = option(name, 0), 1 + rng.random()
                self.costs[key][there] = self.costs[key][name] * rng.uniform(0.5, 1)
                self.noise[key][there] = self.noise[key][name] * worse
                self.harm[key][there] = self.harm[key][name] * worse**2


@given(st.integers(0, 2**32), st.floats(0.05, 2), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_the_other_place_costs_less_or_nothing_is_there(seed: int, allowed: float, kinds: int) -> None:
    at_one, at_two = World(seed), TwoPlaces(seed)
    one, two = at_one.search(allowed, kinds), at_two.search(allowed, kinds)
    least, found = one.cost(one.run(at_one.exact)), two.run(at_two.exact)
    assert two.cost(found) <= least and at_two.lost(found) <= allowed
    assert len({component_of(name) for name in found.values()}) <= kinds


@given(st.integers(0, 2**32), st.floats(0.0, 2), st.integers(1, 3), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_whatever_harm_does_the_budget_holds(seed: int, allowed: float, kinds: int, most: int) -> None:
    world = World(seed, surprises=1.0)
    search = world.search(allowed, kinds, most)
    start = dict.fromkeys(KEYS, NAMES[seed % 6])
    found = search.run(start)
    assert found == start or (found in world.asked and world.lost(found) <= allowed)
    able = [a for a in world.asked if world.lost(a) <= allowed and len(set(a.values())) <= kinds]
    assert search.cost(found) == min(search.cost(a) for a in [*able, start])
    assert search.measured == len(world.asked) <= max(most, 1)


LABELS = Emulator(Q).classify(image_codes(Q, images()))


def measurements(path: Path | None = None, other: QNetwork | None = None, copies: int = 40) -> Measurements:
    codes = np.concatenate([image_codes(Q, images())] * copies)
    labels = np.tile(LABELS, copies)
    labels[::3] += 1  # a third is wrong for the exact network
    return Measurements(Q, TABLES, codes, labels, np.arange(len(labels)), 1, path, other)


def test_measured_is_what_the_emulator_says(tmp_path: Path) -> None:
    kept = tmp_path / "measured.jsonl"
    of = measurements(kept)
    assert len(of.labels) > 2 * BATCH
    exact = dict.fromkeys(OPERATIONS, "exact")
    for assignment in (exact | {"classcaps.votes": "trunc5"}, exact | {"conv1.mac": "trunc4"}, exact):
        classes = Emulator(Q.with_components(assignment, TABLES)).classify(of.codes)
        assert of.accuracy(assignment) == (classes == of.labels).mean()
        before = Emulator(Q.with_components(exact, TABLES)).classify(of.codes) == of.labels
        assert of.loss(exact, assignment, 100, 0.9) == compare(before, classes == of.labels, of.groups, 0.9)
    with kept.open("a") as file:
        file.write('["damaged", 1, "zz"]\n[]\n{\n["cut off", 0, "ff')
    again = measurements(kept)
    assert again._right.keys() == of._right.keys(), "all is known"
    again.network = None  # type: ignore[assignment]  # so nothing can be measured
    assert again.accuracy(exact) == of.accuracy(exact)


def test_what_fails_is_not_measured_to_the_end() -> None:
    of = measurements()
    exact, bad = dict.fromkeys(OPERATIONS, "exact"), dict.fromkeys(OPERATIONS, "trunc5")
    whole = of.loss(exact, bad, 100, 0.9)
    assert whole.images == len(of.labels) and whole.points > 5
    seen: list[int] = []
    hopeless = of.loss(exact, bad, 0.5, 0.9, seen.append)
    assert hopeless.images == seen[-1] < whole.images and hopeless.bound > 0.5
    accuracy, lost, images = of.judged(exact, bad, 0.5, 0.9)
    assert images == hopeless.images and accuracy == of.accuracy(exact) - hopeless.points / 100
    assert lost == hopeless.bound
    assert of.judged(exact, bad, math.inf, 0.9) == (of.accuracy(bad), whole.bound, None)
    assert of.judged(exact, exact, 0.5, 0.9) == (of.accuracy(exact), 0.0, None)


def found(budget: float, kinds: int, most: int, path: Path | None = None) -> tuple[Selection, Selection, Measurements]:
    of = measurements(path)
    exact = dict.fromkeys(OPERATIONS, "exact")
    limits = dict.fromkeys(OPERATIONS, 1e-6)  # the noise admits nothing
    start = select(
        Q, CAPTURES, TABLES, SPENT, limits, partial(of.judged, confidence=0.8), of.accuracy(exact), budget, kinds
    )
    return start, explore(start, Q, CAPTURES, TABLES, of, kinds, 0.8, most), of


def test_exploring_goes_below_what_the_noise_admits(tmp_path: Path) -> None:
    start, end, of = found(3.0, 2, 30, tmp_path / "kept")
    assert set(start.assignment.values()) <= {"exact", "trunc1"} and end.guided == start.assignment  # even operands
    assert end.within_budget and end.accuracy == of.accuracy(end.assignment)
    assert end.bound_points is not None and 100 * (end.float_accuracy - end.accuracy) <= end.bound_points <= 3.0
    assert sum(c.cost for c in end.choices) < 0.7 * sum(c.cost for c in start.choices)
    assert all(c.cost + c.saved == MULTIPLICATIONS[c.operation] * COSTS["exact"] for c in end.choices)
    assert len(set(end.assignment.values())) <= 2 and 0 < end.measurements <= 30
    assert len(end.history) == len(start.history) + end.measurements
    assert found(3.0, 2, 30, tmp_path / "kept")[1] == end, "a resumed one comes to the same"
    assert found(3.0, 2, 0)[1].assignment == start.assignment


def test_magnitudes_at_the_other_place_are_measured_there(tmp_path: Path) -> None:
    bottom = quantize(network(), images(), align=0)
    captures = capture(Emulator(bottom), image_codes(bottom, images()), sums=300)
    cheaper = {key: {name: cost / 2 for name, cost in of.items()} for key, of in SPENT.by_operation.items()}
    elsewhere = Elsewhere(bottom, captures, SPENT._replace(by_operation=cheaper))
    start, plain, _ = found(3.0, 2, 60)
    of = measurements(tmp_path / "kept", bottom)
    end = explore(start, Q, CAPTURES, TABLES, of, 2, 0.8, 60, elsewhere=elsewhere)
    assert sum(c.cost for c in end.choices) < sum(c.cost for c in plain.choices)
    places = {c.operation: c.align for c in end.choices if c.align is not None}
    assert places and set(places.values()) == {0} and set(end.assignment.values()) <= TABLES.keys()
    for choice in end.choices:
        costs = cheaper if choice.operation in places else SPENT.by_operation
        assert choice.cost == costs[choice.operation][choice.component]
        assert choice.cost + choice.saved == SPENT.by_operation[choice.operation]["exact"]
    aligns = {key: places.get(key, 1) for key in OPERATIONS}
    anew = quantize(network(), images(), align=aligns).with_components(end.assignment, TABLES)
    assert end.accuracy == (Emulator(anew).classify(of.codes) == of.labels).mean()
    kept = [{key for key, name in step.assignment.items() if is_moved(name)} for step in end.history]
    assert places.keys() in kept


def test_a_network_with_some_operations_moved_is_that_quantised_so() -> None:
    bottom, places = quantize(network(), images(), align=0), {"conv1.mac": 0, "classcaps.agreement": 0}
    both = moved(Q, bottom, places)
    anew = quantize(network(), images(), align={key: places.get(key, 1) for key in OPERATIONS})
    assert {key: p.align for key, p, _ in both.products()} == {key: places.get(key, 1) for key in OPERATIONS}
    assert [p for _, p, _ in both.products()] == [p for _, p, _ in anew.products()]
    assert np.array_equal(both.layers[0].conv.bias, anew.layers[0].conv.bias)  # type: ignore[union-attr]  # a convolution
    assert not np.array_equal(both.layers[0].conv.bias, Q.layers[0].conv.bias)  # type: ignore[union-attr]
    assert np.array_equal(both.layers[1].conv.bias, Q.layers[1].conv.bias)  # type: ignore[union-attr]


def test_nothing_is_explored_where_the_8_bit_network_misses_the_budget() -> None:
    of = measurements()
    limits = dict.fromkeys(OPERATIONS, 1.0)
    start = select(Q, CAPTURES, TABLES, SPENT, limits, partial(of.judged, confidence=0.8), 1.0, 0.5, 3)
    assert start.warning and explore(start, Q, CAPTURES, TABLES, of) is start
    with pytest.raises(RedcaneError, match="confidence"):
        explore(start, Q, CAPTURES, TABLES, of, confidence=1.0)


def test_a_gain_is_no_noise() -> None:
    capture = CAPTURES["primary.mac"]
    doubled, half = (TABLES["exact"].astype(int) // 2 * 2, TABLES["exact"].astype(int) // 2)
    exact = TABLES["exact"]
    assert capture.noise(exact, exact) == pytest.approx(0, abs=1e-9)
    assert capture.noise(exact, half.astype(np.uint16)) == pytest.approx(
        capture.noise(exact, doubled.astype(np.uint16)), rel=1e-6
    )
    assert capture.noise(exact, np.zeros_like(exact)) > capture.noise(exact, TABLES["trunc5"]) > 0
