"""Step 6: figures on real operands, the exact optimum, backing off, and what happens when nothing helps."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import EXACT, SIGNED, UNSIGNED
from test_model_quantize import images, network

from model.capture import Capture, capture
from model.emulation import Emulator
from model.errors import RedcaneError
from model.multipliers.costs import OperationCosts
from model.multipliers.error_figures import error_figures
from model.multipliers.product_table import exact_table
from model.qnetwork import Format, Product, Requantizer
from model.quantize import OPERATIONS, image_codes, quantize
from model.selection import Measure, Selection, Step, cheapest_kinds, fits, noise_figures, select

Q = quantize(network(), images())
CAPTURES = capture(Emulator(Q), image_codes(Q, images()), sums=300)
A = np.arange(256)
TABLES = {"exact": EXACT} | {
    f"trunc{bits}": np.outer(A >> bits << bits, A >> bits << bits).astype(np.uint16) for bits in (1, 2, 3, 4, 5)
}
COSTS = {"exact": 100.0, "trunc1": 80.0, "trunc2": 60.0, "trunc3": 45.0, "trunc4": 30.0, "trunc5": 15.0}
MULTIPLICATIONS = dict(zip(OPERATIONS, (500, 4000, 900, 200, 100), strict=True))
IN_OPERATION = {key: {name: count * cost for name, cost in COSTS.items()} for key, count in MULTIPLICATIONS.items()}
SPENT = OperationCosts("points", "points in all", IN_OPERATION)
UNIFORM = {name: error_figures(table) for name, table in TABLES.items()}
BITS = {name: int(name[-1]) if name != "exact" else 0 for name in TABLES}


def run(measure, tolerated: float = 1.0, kinds: int = 3, budget: float = 0.5, network=Q, tables=TABLES) -> Selection:  # type: ignore[no-untyped-def]
    limits = dict.fromkeys(OPERATIONS, tolerated)
    return select(network, CAPTURES, tables, SPENT, limits, whole(measure), 0.98, budget, kinds)


def whole(measure: Callable[[dict[str, str]], float], margin: float = 0.0) -> Measure:
    """All images, always; what is not exact may lose a margin (points) more on others."""
    of_exact: list[float] = []

    def judged(exact: dict[str, str], assignment: dict[str, str], allowed: float) -> tuple[float, float, None]:
        accuracy = measure(assignment)
        of_exact.append(accuracy)  # the first is
        return accuracy, 100 * (of_exact[0] - accuracy) + (assignment != exact) * margin, None

    return judged


def test_noise_figures_are_means_and_deviations_over_the_range() -> None:
    product = Product("sign-magnitude", UNSIGNED, SIGNED, SIGNED, Requantizer(2**15, 1, 0, -127, 127), "exact")
    pairs = np.array([[3 << 8 | 5, 7 << 8 | 255], [255 << 8 | 127, 4 << 8 | 4]], np.uint16)  # 255 is -1
    captured = Capture(product, pairs, np.array([10.0, 1000.0]))
    found = noise_figures(captured, TABLES, UNIFORM)["trunc1"]
    errors = [((15 - 2 * 4) - (7 - 6 * 0)) / 10, ((255 * 127 - 254 * 126) + (16 - 16)) / 1000]
    assert found.na == pytest.approx(np.mean(errors)) and found.nm == pytest.approx(np.std(errors))
    assert found.rms == pytest.approx(np.sqrt(np.mean(np.square(errors))))
    uniform = (np.outer(A, A) - TABLES["trunc1"].astype(int)) / 65535
    assert found.na_uniform == pytest.approx(uniform.mean()) and found.nm_uniform == pytest.approx(uniform.std())
    assert noise_figures(captured, TABLES, UNIFORM)["exact"].size == (0, 0)


def test_a_bias_is_refused_though_nm_is_small() -> None:
    """The same error in every product: NM is next to nothing, NA counts."""
    affine = quantize(network(), images(), "affine")
    captures = capture(Emulator(affine), image_codes(affine, images()), sums=500)
    biased = {"exact": EXACT, "biased": np.maximum(EXACT, 300).astype(np.uint16) - 300}
    found = noise_figures(captures["primary.mac"], biased, {n: error_figures(t) for n, t in biased.items()})["biased"]
    assert abs(found.na) > 5 * found.nm


@given(
    st.integers(1, 5),
    st.dictionaries(
        st.sampled_from("abcdefg"),
        st.lists(st.one_of(st.none(), st.integers(0, 20)), min_size=4, max_size=4),
        min_size=1,
    ),
)
@settings(max_examples=200)
def test_cheapest_kinds_is_the_optimum(kinds: int, rows: dict[str, list[int | None]]) -> None:
    rows["exact"] = [30, 30, 30, 30]  # goes everywhere
    options = {op: {n: float(r[i]) for n, r in rows.items() if r[i] is not None} for i, op in enumerate("WXYZ")}  # type: ignore[arg-type]  # not None

    def total(names: tuple[str, ...]) -> float:
        return sum(min((c for n, c in option.items() if n in names), default=np.inf) for option in options.values())

    best = min(total(names) for size in range(1, kinds + 1) for names in combinations(sorted(rows), size))
    chosen = cheapest_kinds(options, kinds)
    assert len(chosen) <= kinds and total(tuple(chosen)) == best


def test_cheapest_kinds_is_quick_for_a_large_library() -> None:
    rng = np.random.default_rng(0)
    error = rng.random(100) ** 2
    cost = 1 - error**0.3 + rng.random(100) * 0.1
    options = {
        str(op): {str(n): (op + 1) * cost[n] for n in range(100) if error[n] <= limit or n == 0}
        for op, limit in enumerate(rng.random(20))
    }
    assert 1 <= len(cheapest_kinds(options, 4)) <= 4


def test_operations_take_components_of_their_format() -> None:
    formats: dict[str, Format] = dict.fromkeys(OPERATIONS, "sign-magnitude") | {"primary.mac": "twos-complement"}
    mixed = quantize(network(), images(), formats)
    captures = capture(Emulator(mixed), image_codes(mixed, images()), sums=300)
    signed = {"signed": exact_table(True), "signed trunc": exact_table(True) >> 9 << 9}
    tables = TABLES | signed
    components = dict.fromkeys(OPERATIONS, "exact") | {"primary.mac": "signed"}
    mixed = mixed.with_components(components, tables)
    costs = SPENT._replace(by_operation=IN_OPERATION | {"primary.mac": {"signed": 110.0, "signed trunc": 1.0}})

    def choose(tolerated: float, kinds: int) -> Selection:
        limits = dict.fromkeys(OPERATIONS, tolerated)
        return select(mixed, captures, tables, costs, limits, whole(lambda _: 0.98), 0.98, 0.5, kinds)

    for tolerated, component in ((1.0, "signed trunc"), (1e-9, "signed")):
        found = choose(tolerated, 2)
        assert found.assignment["primary.mac"] == component and len(set(found.assignment.values())) == 2
        assert [found.figures[key].keys() for key in ("primary.mac", "conv1.mac")] == [signed.keys(), TABLES.keys()]
        assert found.history[0].assignment == dict.fromkeys(OPERATIONS, "exact") | {"primary.mac": "signed"}
        mixed.with_components(found.assignment, tables)
    with pytest.raises(RedcaneError, match="two kinds of multipliers"):
        choose(1.0, 1)


def test_what_the_budget_allows_is_the_cheapest_admissible() -> None:
    found = run(lambda assignment: 0.98)
    assert found.assignment == dict.fromkeys(OPERATIONS, "trunc5")
    assert found.within_budget and found.warning is None
    actions = [step.action for step in found.history]
    assert actions == ["exact multipliers everywhere", "the cheapest admissible components"]
    assert sum(c.saved for c in found.choices) == pytest.approx(85 * sum(MULTIPLICATIONS.values()))
    for limit in (0.002, 0.01, 0.03):
        found = run(lambda assignment: 0.98, tolerated=limit, kinds=5)
        for c in found.choices:
            assert c.figures.rms <= limit
            cheaper = [n for n in TABLES if COSTS[n] < COSTS[c.component]]
            assert all(found.figures[c.operation][n].rms > limit for n in cheaper)


@given(
    st.lists(st.integers(0, 10), min_size=5, max_size=5), st.integers(1, 5), st.sampled_from([0.003, 0.02, 1.0]),
    st.integers(0, 30),
)  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_backing_off_ends_within_the_budget(weights: list[int], kinds: int, tolerated: float, allowed: int) -> None:
    """The accuracy falls with the bits cut off, more in some operations: the result has to hold the budget."""
    weight = dict(zip(OPERATIONS, weights, strict=True))
    measured: list[dict[str, str]] = []

    def measure(assignment: dict[str, str]) -> float:
        assert assignment not in measured or set(assignment.values()) == {"exact"}
        measured.append(assignment)
        return 0.98 - sum(weight[key] * BITS[name] for key, name in assignment.items()) / 10_000

    found = run(measure, tolerated, kinds, allowed / 100)
    assert found.within_budget and found.warning is None
    assert len(set(found.assignment.values())) <= kinds
    assert [step.assignment for step in found.history] == measured
    final = [step for step in found.history if step.assignment == found.assignment]
    assert final[0].within_budget and found.accuracy == final[0].accuracy
    kept = [step for step in found.history if step.within_budget]
    assert final[0].cost == min(step.cost for step in kept)
    assert all(c.figures.rms <= tolerated for c in found.choices)
    measured.clear()
    assert run(measure, tolerated, kinds, allowed / 100).history == found.history  # nothing random


def test_the_margin_for_other_images_counts() -> None:
    """Half a point may be lost, and with 0.3 of margin as measured only 0.2."""

    def measure(assignment: dict[str, str]) -> float:
        return 0.98 - 0.001 * BITS[assignment["primary.mac"]]

    for margin, bits in ((0.0, 5), (0.3, 2), (0.5, 0)):
        found = select(
            Q, CAPTURES, TABLES, SPENT, dict.fromkeys(OPERATIONS, 1.0), whole(measure, margin), 0.98, 0.5, 3
        )
        assert BITS[found.assignment["primary.mac"]] == bits
        assert all(s.within_budget == (s.bound_points <= 0.5 + 1e-9) for s in found.history)


def test_ends_exact_when_nothing_else_holds() -> None:
    found = run(lambda assignment: 0.98 if set(assignment.values()) == {"exact"} else 0.5)
    assert set(found.assignment.values()) == {"exact"} and found.within_budget and found.warning is None
    assert all(c.saved == 0 for c in found.choices)


def test_given_back_what_was_not_needed() -> None:
    """Only the votes hurt; the others are made more exact on the way, and get their multipliers back."""
    found = run(lambda assignment: 0.5 if BITS[assignment["classcaps.votes"]] > 1 else 0.98, kinds=3)
    assert BITS[found.assignment["classcaps.votes"]] == 1
    assert {found.assignment[key] for key in OPERATIONS if key != "classcaps.votes"} == {"trunc5"}
    assert any("gets back" in step.action for step in found.history)


def test_the_8_bit_network_misses_the_budget_by_itself() -> None:
    found = run(lambda assignment: 0.9)
    assert found.warning is not None and "8.00 points" in found.warning and not found.within_budget
    assert set(found.assignment.values()) == {"exact"} and len(found.history) == 1
    assert isinstance(found.history[0], Step) and found.exact_accuracy == 0.9


def test_what_could_overflow_is_never_chosen() -> None:
    wide = quantize(network(), images())
    layer = wide.layers[0]
    bias = np.full(5, 2**31 - 1 - 18 * 255 * 254, np.int32)  # exact products just fit
    conv = layer.conv.__class__(**{**layer.conv.__dict__, "bias": bias})  # type: ignore[union-attr]
    wide = wide.__class__(wide.image, wide.input, (layer.__class__("conv1", conv), *wide.layers[1:]), wide.tables)  # type: ignore[call-arg]
    wide.check()
    large = TABLES | {"trunc5": np.full((256, 256), 65535, np.uint16)}
    assert not fits(wide, "conv1.mac", "trunc5", large["trunc5"]) and fits(Q, "conv1.mac", "trunc5", large["trunc5"])
    found = run(lambda assignment: 0.98, tolerated=1e9, network=wide, tables=large, kinds=5)
    assert found.assignment["conv1.mac"] == "trunc4" and found.assignment["primary.mac"] == "trunc5"


def test_each_operation_has_costs_of_its_own() -> None:
    """What is cheap depends on the operation: its own costs decide, not the transistors."""
    dear = SPENT._replace(by_operation=IN_OPERATION | {"conv1.mac": {name: 600 - COSTS[name] for name in COSTS}})
    limits = dict.fromkeys(OPERATIONS, 1.0)
    found = select(Q, CAPTURES, TABLES, dear, limits, whole(lambda _: 0.98), 0.98)
    assert found.assignment == dict.fromkeys(OPERATIONS, "trunc5") | {"conv1.mac": "exact"}
    assert (found.cost, found.cost_total, found.costs) == dear


def test_bad_arguments() -> None:
    with pytest.raises(RedcaneError, match="kind"):
        run(lambda assignment: 1.0, kinds=0)
    with pytest.raises(RedcaneError, match="budget"):
        run(lambda assignment: 1.0, budget=float("nan"))
    with pytest.raises(RedcaneError, match="trunc1 is not exact"):
        run(lambda assignment: 1.0, network=Q.with_components(dict.fromkeys(OPERATIONS, "trunc1"), TABLES))
    with pytest.raises(RedcaneError, match="no costs"):
        run(lambda assignment: 1.0, tables=TABLES | {"unpriced": TABLES["trunc1"]})
    with pytest.raises(RedcaneError, match="tolerated noise"):
        run(lambda assignment: 1.0, tolerated=float("nan"))
