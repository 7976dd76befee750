"""Step 6 of the method: the multiplier of every operation, the cheapest ones that the accuracy allows.

1. For every operation and component: NM and NA on the operation's real operands (the error of its whole sums, over the
   range of its outputs) and on uniform operands (one multiplication, over 65535: the paper's way).
2. A component is *admissible* where sqrt(NM^2 + NA^2) on real operands is within the operation's tolerated noise. NA
   counts, because NM alone does not predict the accuracy: over K terms the deviation grows with sqrt(K), a bias with K.
   An operation in the twos-complement format takes components of signed operands only, any other unsigned ones only.
3. The cheapest assignment of admissible components with at most so many kinds of multipliers, exactly.
4. Its accuracy is measured. While it may drop by more than the budget, the operation whose error takes up the most of
   what it tolerates gets a component of less error. In the end everything is exact.
5. Operations that were made more exact than the rest turned out to need are given back what they had, one at a time,
   last first, where the measured accuracy allows it.

What an assignment may lose is what it loses on the images that were measured and a margin, for others of their kind.

model/exploration.py goes on from there, below what the noise admits, by measuring.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.capture import Capture
from model.errors import RedcaneError
from model.multipliers.costs import OperationCosts
from model.multipliers.error_figures import ErrorFigures, error_figures
from model.multipliers.product_table import Table, exact_table, is_signed
from model.qnetwork import QNetwork, takes_signed

ROUNDING = 1e-9  # points: accuracies are sums of floats

_Costs = Mapping[str, Mapping[str, float]]
Measure = Callable[[dict[str, str], dict[str, str], float], tuple[float, float, int | None]]
"""The accuracy (fraction) of an assignment, the percentage points that it may lose against the exact one, and on how
many images both were found (None: all). Given are the exact assignment, the other one, and the points that may be lost:
what surely loses more needs no more images.
"""


@dataclass(frozen=True)
class NoiseFigures:
    """The noise of one component in one operation, as fractions of the range R."""

    nm: float  # on real operands: standard deviation of the sums' error
    na: float  # on real operands: its mean, exact minus approximate
    nm_uniform: float  # one multiplication of uniform operands, R = 65535
    na_uniform: float

    @property
    def rms(self) -> float:
        """Deviation and mean together: sqrt(NM^2 + NA^2)."""
        return math.hypot(self.nm, self.na)

    @property
    def size(self) -> tuple[float, float]:
        """What components are ordered by: the error on real operands, then on uniform ones."""
        return self.rms, math.hypot(self.nm_uniform, self.na_uniform)


@dataclass(frozen=True)
class Choice:
    """The multiplier of one operation, and why it may be there."""

    operation: str
    component: str
    figures: NoiseFigures
    tolerated: float  # NM that the resilience analysis found the operation to tolerate
    cost: float  # of one inference
    saved: float  # against the exact multiplier where the configuration has magnitudes
    align: int | None = None  # where magnitudes sit, if not there


@dataclass(frozen=True)
class Step:
    """One measured assignment."""

    action: str  # what was tried, as a sentence
    assignment: dict[str, str]  # options (model/placement.py) by operation
    accuracy: float  # fraction
    drop_points: float  # from the float accuracy, percentage points
    cost: float
    within_budget: bool
    bound_points: float  # of the drop, at the confidence of the measurement
    images: int | None = None  # on which; None: all


@dataclass(frozen=True)
class Selection:
    """The outcome: a component for every operation, with everything that was measured on the way."""

    choices: tuple[Choice, ...]
    history: tuple[Step, ...]  # the first is exact everywhere
    float_accuracy: float
    exact_accuracy: float  # of the 8-bit network with exact multipliers
    accuracy: float  # of the assigned network
    budget_points: float
    figures: dict[str, dict[str, NoiseFigures]]  # of every component (by name) in every operation
    cost: str  # what all costs are
    cost_total: str  # and a sum of them
    costs: Mapping[str, Mapping[str, float]]  # of every component (by name) in every operation, for one inference
    warning: str | None
    guided: dict[str, str]  # the assignment that the noise alone led to, steps 1 to 5
    measurements: int = 0  # assignments that were measured to go below it (model/exploration.py)
    confidence: float | None = None  # that the drop is at most bound_points, where that led to the assignment
    bound_points: float | None = None

    @property
    def assignment(self) -> dict[str, str]:
        """The component of every operation, by "layer.operation"."""
        return {choice.operation: choice.component for choice in self.choices}

    @property
    def within_budget(self) -> bool:
        """Whether the assigned network's accuracy is within the budget of the float network's."""
        return _drop(self.float_accuracy, self.accuracy) <= self.budget_points + ROUNDING


def select(
    network: QNetwork,
    captures: Mapping[str, Capture],
    components: Mapping[str, Table],
    costs: OperationCosts,
    tolerated: Mapping[str, float],
    measure: Measure,
    float_accuracy: float,
    budget_points: float = 0.5,
    max_kinds: int = 3,
    progress: Callable[[str], None] = lambda sentence: None,
) -> Selection:
    """Choose a component for every operation of the quantised `network` that multiplies, whose own ones are exact.

    `components` are product tables by name, those of the network among them. `measure` measures the integer network
    with an assignment, on images that neither training nor the final test sees (Measurements.judged). `max_kinds`
    bounds the different multipliers, exact included.

    If even exact multipliers miss the budget, the result is exact everywhere and carries a warning. Raises RedcaneError
    for a network whose multipliers are not exact, fewer kinds than the formats need, an operation without a figure, and
    a budget or bound that make no sense.
    """
    if max_kinds < 1 or not budget_points >= 0:
        raise RedcaneError("selection: at least one kind of multiplier and a budget of 0 or more points are needed")
    signed = {key: takes_signed(product.format) for key, product, _ in network.products()}
    keys, in_operation = list(signed), costs.by_operation
    suited = {
        kind: {name: table for name, table in components.items() if is_signed(table) == kind}
        for kind in sorted(set(signed.values()))
    }
    exact = {key: product.component for key, product, _ in network.products()}
    if approximate := [n for key, n in exact.items() if not np.array_equal(components[n], exact_table(signed[key]))]:
        raise RedcaneError(f"selection: the network's own multipliers are what others are compared with, but "
                           f"{approximate[0]} is not exact")  # fmt: skip
    if max_kinds < len(set(exact.values())):
        raise RedcaneError(
            "selection: formats of signed and of unsigned operands together need two kinds of multipliers: allow two"
        )
    for key in keys:
        priced = suited[signed[key]].keys() <= in_operation.get(key, {}).keys()
        if key in captures and not (priced and math.isfinite(tolerated.get(key, math.nan))):
            raise RedcaneError(f"selection: {key}: no tolerated noise or no costs: analyse again")
    uniform = {name: error_figures(table) for tables in suited.values() for name, table in tables.items()}
    progress(f"measuring {len(uniform)} components in {len(keys)} operations")
    figures = {key: noise_figures(captures.get(key), suited[signed[key]], uniform) for key in keys}
    search = _Search(network, components, in_operation, figures, tolerated, exact, max_kinds)

    history: list[Step] = []

    def try_out(action: str, assignment: dict[str, str]) -> Step:
        allowed = budget_points - history[0].drop_points if history else math.inf
        accuracy, lost, images = measure(exact, assignment, allowed)
        drop = _drop(float_accuracy, accuracy)
        bound = lost + (history[0].drop_points if history else drop)
        within = bound <= budget_points + ROUNDING
        history.append(Step(action, assignment, accuracy, drop, search.cost(assignment), within, bound, images))
        on = f" on {images} images" if images else ""
        progress(f"{action}: {100 * accuracy:.2f} %{on} ({drop:+.2f} points lost, at most {bound:.2f})")
        return history[-1]

    first = best = try_out("exact multipliers everywhere", exact)
    warning = None
    if not first.within_budget:
        warning = (
            f"the 8-bit network with exact multipliers already loses {first.drop_points:.2f} points, more than the "
            f"budget of {budget_points:g}: nothing is approximated; allow a larger one, or train or quantise otherwise"
        )
    else:
        best = _search_within_budget(search, try_out, first)
    return Selection(
        choices(best.assignment, exact, figures, tolerated, in_operation),
        tuple(history),
        float_accuracy,
        first.accuracy,
        best.accuracy,
        budget_points,
        figures,
        costs.name,
        costs.total,
        in_operation,
        warning,
        best.assignment,
    )


def choices(
    assignment: Mapping[str, str],
    exact: Mapping[str, str],
    figures: Mapping[str, Mapping[str, NoiseFigures]],
    tolerated: Mapping[str, float],
    costs: _Costs,
) -> tuple[Choice, ...]:
    """The rows of a selection; `exact` names the exact multipliers."""
    return tuple(
        Choice(key, name, figures[key][name], tolerated.get(key, 0.0), costs[key][name],
               costs[key][exact[key]] - costs[key][name])
        for key, name in assignment.items()
    )  # fmt: skip


def _search_within_budget(
    search: _Search, try_out: Callable[[str, dict[str, str]], Step], exact: Step
) -> Step:
    """Back off from the cheapest admissible assignment until the budget holds, then give back what was not needed."""
    step = try_out("the cheapest admissible components", search.cheapest())
    backed_off: list[str] = []
    missed = []
    while not step.within_budget:
        key = search.most_strained(step.assignment)
        if key is None:  # nothing left but exact multipliers
            return exact
        name = step.assignment[key]
        missed.append(step.assignment)
        search.allow_less_than(key, name)
        backed_off = [*(k for k in backed_off if k != key), key]
        step = try_out(f"{key} gets less error than {name}'s", search.cheapest())
    for key in reversed(backed_off):
        narrowed = search.give_back(key)
        assignment = search.cheapest()
        if search.cost(assignment) < step.cost and assignment not in missed:
            again = try_out(f"{key} gets back what it tolerates", assignment)
            if again.within_budget:
                step = again
                continue
        search.allowed[key] = narrowed
    return step


def noise_figures(
    captured: Capture | None, components: Mapping[str, Table], uniform: Mapping[str, ErrorFigures]
) -> dict[str, NoiseFigures]:
    """The noise of every component in one operation; on real operands none where the operation is never executed."""
    figures = {}
    for name, table in components.items():
        error = np.zeros(1) if captured is None else captured.error(exact_table(is_signed(table)), table)
        figures[name] = NoiseFigures(float(error.std()), float(error.mean()), uniform[name].nm, uniform[name].na)
    return figures


class _Search:
    """What each operation may use at the moment, and the cheapest assignment of it."""

    def __init__(
        self,
        network: QNetwork,
        components: Mapping[str, Table],
        costs: _Costs,
        figures: dict[str, dict[str, NoiseFigures]],
        tolerated: Mapping[str, float],
        exact: Mapping[str, str],
        max_kinds: int,
    ) -> None:
        self.costs, self.figures = costs, figures
        self.tolerated, self.max_kinds = tolerated, max_kinds
        self.admissible: dict[str, list[str]] = {}  # by growing error, the cheapest exact multiplier first
        for key, noise in figures.items():
            quiet = [n for n in noise if noise[n].rms <= tolerated.get(key, 0.0)]
            names = {exact[key], *(n for n in quiet if fits(network, key, n, components[n]))}
            self.admissible[key] = sorted(names, key=lambda n: (*noise[n].size, costs[key][n], n))
        self.allowed = dict(self.admissible)

    def cost(self, assignment: Mapping[str, str]) -> float:
        """Of one inference, over all operations."""
        return sum(self.costs[key][name] for key, name in assignment.items())

    def cheapest(self) -> dict[str, str]:
        """The cheapest assignment of what is allowed; of equals, the one of less error."""
        options = {key: {n: self.costs[key][n] for n in names} for key, names in self.allowed.items()}
        chosen = cheapest_kinds(options, self.max_kinds)
        return {key: min(chosen & option.keys(), key=lambda n: (option[n], self.allowed[key].index(n)))
                for key, option in options.items()}

    def most_strained(self, assignment: Mapping[str, str]) -> str | None:
        """The operation whose error is the largest part of what it tolerates; None when no other has less error."""
        able = [key for key, name in assignment.items() if self.allowed[key].index(name) > 0]

        def strain(key: str) -> tuple[float, float]:
            rms, uniform = self.figures[key][assignment[key]].size
            return (rms / self.tolerated[key] if self.tolerated.get(key, 0.0) > 0 else 0.0, uniform)

        return max(able, key=strain, default=None)

    def allow_less_than(self, key: str, name: str) -> None:
        """From now on, only components of less error than this one for this operation."""
        self.allowed[key] = self.allowed[key][: self.allowed[key].index(name)]

    def give_back(self, key: str) -> list[str]:
        """Allow the operation all that it tolerates again; returns what was allowed until now."""
        narrowed, self.allowed[key] = self.allowed[key], self.admissible[key]
        return narrowed


def fits(network: QNetwork, key: str, name: str, table: Table) -> bool:
    """Whether no sum of the operation could overflow with this component."""
    others = {k: p.component for k, p, _ in network.products()}
    try:
        network.with_components({**others, key: name}, {**network.tables, name: table})
    except RedcaneError:
        return False
    return True


def cheapest_kinds(options: Mapping[str, Mapping[str, float]], max_kinds: int) -> frozenset[str]:
    """The at most `max_kinds` components that make the sum over the operations of the cheapest option least.

    `options` are the allowed components of every operation with their costs there. Exact: every subset is considered,
    by branch and bound. Of equally cheap sets the smallest is taken, then the one whose names come first.
    """
    names = sorted({name for option in options.values() for name in option})
    costs = np.array([[option.get(name, np.inf) for option in options.values()] for name in names])  # [name, operation]
    order = np.argsort(np.where(np.isfinite(costs), costs, 0).sum(axis=1), kind="stable")
    costs, names = costs[order], [names[i] for i in order]
    rest = np.minimum.accumulate(costs[::-1])[::-1]  # the cheapest of this and all later names, by operation
    best: tuple[float, int, tuple[str, ...]] = (math.inf, 0, ())

    def extend(chosen: tuple[str, ...], reached: NDArray[np.float64], start: int) -> None:
        nonlocal best
        total = float(reached.sum())
        best = min(best, (total, len(chosen), tuple(sorted(chosen))))
        if len(chosen) == max_kinds:
            return
        for i in range(start, len(names)):
            if np.minimum(reached, rest[i]).sum() > best[0]:
                return  # neither this name nor the later ones can help
            if (costs[i] < reached).any():
                extend((*chosen, names[i]), np.minimum(reached, costs[i]), i + 1)

    extend((), np.full(len(options), np.inf), 0)
    return frozenset(best[2])


def _drop(before: float, after: float) -> float:
    """Fractions to lost percentage points."""
    return 100 * (before - after)
