"""Below what the noise admits: cheaper multipliers that a measurement shows to keep the accuracy.

The tolerated noise of an operation is that of Gaussian noise, and stands for every multiplier of that noise. A real
multiplier's error is smaller where operands are, keeps its sign with theirs, and much of it is a gain, which changes
nothing that counts. Exact emulation of thousands of images takes seconds, so what is promising is measured:

1. *Everywhere*: the cheapest component with which the budget holds if every operation has it, by bisection.
2. *Alone*: for every operation, the largest first, the cheapest component with which the budget holds if everything
   else is exact: by bisection over the components that no cheaper one beats in noise. Noise here is what is left of a
   sum's error when its constants are fitted (model/fitting.py), or where nothing is fitted, when a common gain is taken
   out. What the others would lose is taken to grow with the square of it.
3. *Together*: the cheapest assignments, with at most so many kinds, for prices that grow on the points they would lose;
   by bisection the first with which the budget holds.
4. *Step by step*: from there, assignments that differ in one operation or two and cost less, the most promising first,
   until none is left that has a chance, or so many assignments were measured.
5. *Moved*: the same once more, where components may also have magnitudes at the other place (model/placement.py).
   Noise tells less of what that would lose, so what is found without it comes first.

The budget holds where the loss on all images is within it at the stated confidence (model/comparison.py): of many
candidates, some get in otherwise because the images happen to suit them. Measurements that lead nowhere end early.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from statistics import NormalDist

from model.capture import Capture
from model.comparison import Loss
from model.errors import RedcaneError
from model.measurements import Measurements
from model.multipliers.error_figures import error_figures
from model.multipliers.product_table import Table
from model.placement import Elsewhere, component_of, is_moved, option
from model.qnetwork import QNetwork
from model.selection import NoiseFigures, Selection, Step, cheapest_kinds, choices, fits, noise_figures

SMALLEST_CHANCE = 0.02
"""Of holding the budget: what has less is not measured."""
ALONE = 0.6
"""Share of the measurements that the first two may take."""
PRICES = tuple(step * 10.0**exponent for exponent in range(-4, 5) for step in (1, 2, 5))
"""Of a lost point, as shares of the cost of exact multipliers everywhere."""

Figures = Mapping[str, Mapping[str, float]]
"""Of every option (model/placement.py) in every operation (by "layer.operation")."""
Assignment = dict[str, str]
Left = Callable[[QNetwork, str, Table], float | None]
"""The noise that a multiplier leaves of an operation's sums when they are fitted to it, in any unit of the operation;
None where nothing is fitted.
"""
Judge = Callable[[str, Assignment], Loss]
"""Measures an assignment, for a reason in words."""


def explore(
    selection: Selection,
    network: QNetwork,
    captures: Mapping[str, Capture],
    components: Mapping[str, Table],
    measurements: Measurements,
    max_kinds: int = 3,
    confidence: float = 0.9,
    most: int = 80,
    progress: Callable[[str], None] = lambda sentence: None,
    elsewhere: Elsewhere | None = None,
    left: Left = lambda network, key, table: None,
) -> Selection:
    """What `most` measurements find below a selection that the noise admits; the arguments are those of `select`.

    With `elsewhere`, each operation may have its magnitudes at either place; `measurements` has to know that network.
    `left` is of the way in which `measurements` fits what it measures.

    `confidence` is that of keeping the budget, less what the 8-bit network with exact multipliers loses already. Of a
    selection with a warning nothing is explored. Raises RedcaneError for a confidence that is not from 0.5 to below 1.
    """
    if not 0.5 <= confidence < 1:
        raise RedcaneError(f"selection: a confidence of {confidence:g}: give a number from 0.5 to below 1")
    exact = selection.history[0].assignment
    already = selection.history[0].drop_points
    allowed = selection.budget_points - already
    if selection.warning or most < 1:
        return selection
    spent, noise = _options(selection, exact, network, captures, components, selection.costs, left)
    if elsewhere:
        others = _options(selection, exact, elsewhere.network, elsewhere.captures, components,
                          elsewhere.costs.by_operation, left)  # fmt: skip
        for key, product, _ in elsewhere.network.products():
            if product.format == "sign-magnitude":  # others have one place
                for known, found in zip((spent, noise), others, strict=True):
                    known[key] |= {option(name, product.align): value for name, value in found[key].items()}
    history = list(selection.history)

    def judge(action: str, assignment: Assignment) -> Loss:
        loss = measurements.loss(exact, assignment, allowed, confidence)
        accuracy = selection.exact_accuracy - loss.points / 100
        drop, within = already + loss.points, loss.bound <= allowed
        bound = already + loss.bound
        history.append(Step(action, assignment, accuracy, drop, search.cost(assignment), within, bound, loss.images))
        progress(f"{len(history)}: {action}: {drop:+.2f} points lost on {loss.images} images, at most {bound:.2f}: "
                 + ("within" if within else "too much"))  # fmt: skip
        return loss

    search = Exploration(spent, noise, exact, allowed, max_kinds, judge, most)
    best = search.run(selection.assignment)
    bounds = [step.bound_points for step in history[len(selection.history) :] if step.assignment == best]
    figures = _figures(best, selection, components, elsewhere)
    tolerated = {choice.operation: choice.tolerated for choice in selection.choices}
    places = {key: product.align for key, product, _ in elsewhere.network.products()} if elsewhere else {}
    return replace(
        selection,
        choices=tuple(
            replace(row, component=component_of(row.component), align=places[row.operation])
            if is_moved(row.component)
            else row
            for row in choices(best, exact, figures, tolerated, spent)
        ),
        figures=figures,
        history=tuple(history),
        accuracy=measurements.accuracy(best),
        bound_points=bounds[0] if bounds else None,
        confidence=confidence,
        measurements=search.measured,
    )


def _options(
    selection: Selection,
    exact: Assignment,
    network: QNetwork,
    captures: Mapping[str, Capture],
    components: Mapping[str, Table],
    costs: Figures,
    left: Left,
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """What the components that fit the operations of a network cost there, and their noise."""
    rounding = {key: left(network, key, components[name]) for key, name in exact.items()}

    def noise(key: str, name: str) -> float:
        captured, least = captures.get(key), rounding[key]
        if least is not None and name != exact[key]:
            found = left(network, key, components[name])
            assert found is not None, f"{key} is fitted to some multipliers only"
            return math.sqrt(max(found**2 - least**2, 0.0))
        return captured.noise(components[exact[key]], components[name]) if captured and name != exact[key] else 0.0

    able = {key: [name for name in found if name == exact[key] or fits(network, key, name, components[name])]
            for key, found in selection.figures.items()}  # fmt: skip
    return ({key: {name: costs[key][name] for name in names} for key, names in able.items()},
            {key: {name: noise(key, name) for name in names} for key, names in able.items()})  # fmt: skip


def _figures(
    best: Assignment, selection: Selection, components: Mapping[str, Table], elsewhere: Elsewhere | None
) -> dict[str, dict[str, NoiseFigures]]:
    """The noise of every component in every operation, and of those that were chosen for the other place, there."""
    figures = {key: dict(found) for key, found in selection.figures.items()}
    for key, chosen in best.items():
        if is_moved(chosen) and elsewhere:
            table = components[component_of(chosen)]
            uniform = {chosen: error_figures(table)}
            figures[key] |= noise_figures(elsewhere.captures.get(key), {chosen: table}, uniform)
    return figures


class Exploration:
    """The search for the cheapest assignment within a budget."""

    def __init__(
        self, costs: Figures, noise: Figures, exact: Assignment, allowed: float, max_kinds: int, judge: Judge, most: int
    ) -> None:
        """`costs` are those of one inference, `noise` is that of a sum without a common gain, in any unit of the
        operation. `exact` assigns exact multipliers, of no more than `max_kinds` kinds. `allowed` are the percentage
        points that may be lost against it, by the bound that `judge` gives; it is asked `most` times at most.
        """
        self.costs, self.noise, self.exact = costs, noise, exact
        self.allowed, self.max_kinds, self.judge, self.most = allowed, max_kinds, judge, most
        self.harm: dict[str, dict[str, float]] = {key: {exact[key]: 0.0} for key in costs}  # points lost, alone
        self.known: dict[tuple[str, ...], bool] = {}  # by the components, in the order of `costs`: whether it holds
        self.best, self.lost = exact, 0.0
        self.margin = 0.0  # of a bound above what is measured
        self.moving = False  # whether options at the other place are considered

    @property
    def measured(self) -> int:
        """How many assignments were."""
        return len(self.known)

    def run(self, start: Assignment) -> Assignment:
        """The cheapest assignment found, or what the noise admits, to `start` with, which is measured first."""
        if start != self.exact:
            loss = self._measure("what the noise admits", start)
            self.best, self.lost, self.margin = start, loss.points, loss.bound - loss.points
            self._share_out(start, loss)
        self._everywhere()
        for key in sorted(self.costs, key=lambda key: -self.costs[key][self.exact[key]]):
            self._alone(key)
        self._together()
        self._step_by_step()
        if any(is_moved(name) for costs in self.costs.values() for name in costs):
            self.moving = True
            self._step_by_step()
        return self.best

    def cost(self, assignment: Assignment) -> float:
        """Of one inference."""
        return sum(self.costs[key][name] for key, name in assignment.items())

    def _measure(self, action: str, assignment: Assignment) -> Loss:
        loss = self.judge(action, assignment)
        self.known[self._names(assignment)] = loss.bound <= self.allowed
        return loss

    def _holds(self, action: str, assignment: Assignment) -> bool:
        """Whether the budget holds, measured once; what holds it and costs least so far is the best."""
        if self._names(assignment) in self.known:
            return self.known[self._names(assignment)]
        loss = self._measure(action, assignment)
        holds = loss.bound <= self.allowed
        few = len(_kinds(assignment)) <= self.max_kinds  # which one alone beside exact ones may not be
        if holds and few and self.cost(assignment) < self.cost(self.best):
            self.best, self.lost, self.margin = assignment, loss.points, loss.bound - loss.points
        if holds:
            self._share_out(assignment, loss)
        changed = [key for key, name in assignment.items() if name != self.exact[key]]
        if len(changed) == 1 and (holds or assignment[changed[0]] not in self.harm[changed[0]]):
            self.harm[changed[0]][assignment[changed[0]]] = max(loss.points, 0.0) if holds else math.inf
        return holds

    def _share_out(self, assignment: Assignment, loss: Loss) -> None:
        """What is lost counts in equal parts as lost in each operation, where nothing better is known."""
        for key, name in assignment.items():
            self.harm[key].setdefault(name, max(loss.points, 0.0) / len(assignment))

    def _everywhere(self) -> None:
        """The cheapest component that holds the budget in all operations, by bisection over those that no cheaper one
        beats in noise, as parts of the largest in each operation.
        """
        common = set[str].intersection(*(set(self._able(key)) for key in self.costs))
        largest = {key: max(noise.values()) or 1.0 for key, noise in self.noise.items()}
        total = {name: sum((self.noise[key][name] / most) ** 2 for key, most in largest.items()) for name in common}
        found: list[tuple[float, float, str]] = []  # cost, noise and name, of less noise each
        for cost, name in sorted((self.cost(dict.fromkeys(self.costs, name)), name) for name in common):
            if not found or total[name] < found[-1][1]:
                found.append((cost, total[name], name))
        path: list[Assignment] = [dict.fromkeys(self.costs, name) for _, _, name in found]
        self._first_to_hold("everywhere", path)

    def _alone(self, key: str) -> None:
        """The cheapest component that holds the budget in one operation, by bisection."""
        front = self.front(key)
        low, high = 0, len(front) - 1  # the last has no noise
        while low < high and self.measured < ALONE * self.most:
            middle = (low + high) // 2
            holds = self._holds(f"{front[middle]} in {key} alone", self.exact | {key: front[middle]})
            low, high = (low, middle) if holds else (middle + 1, high)

    def front(self, key: str) -> list[str]:
        """The components of an operation that no cheaper one beats in noise, by growing cost up to the exact one."""
        costs, noise = self.costs[key], self.noise[key]
        chosen: list[str] = []
        for name in sorted(self._able(key), key=lambda n: (costs[n], noise[n], n)):
            if costs[name] <= costs[self.exact[key]] and (not chosen or noise[name] < noise[chosen[-1]]):
                chosen.append(name)
        return chosen

    def expected(self, key: str, name: str) -> float:
        """Points that a component is expected to cost in an operation: as measured, or by the square of its noise from
        the next noisier one that was measured; infinite where that is more than allowed, or unknown.
        """
        harm, noise = self.harm[key], self.noise[key]
        if name in harm:
            return harm[name]
        if noise[name] == 0:
            return 0.0
        noisier = (n for n in harm if noise[n] >= noise[name] and harm[n] < math.inf)
        known = min(noisier, key=noise.__getitem__, default=None)
        if known is None:
            return math.inf
        return max(harm[known], 0.1 * self.allowed) * (noise[name] / noise[known]) ** 2

    def _options(self) -> dict[str, dict[str, float]]:
        """What may stand in every operation, with the points that it is expected to cost."""
        return {
            key: {name: points for name in self._able(key) if (points := self.expected(key, name)) < math.inf}
            for key in self.costs
        }

    def _able(self, key: str) -> list[str]:
        """What may be considered in an operation at the moment."""
        return [name for name in self.costs[key] if self.moving or not is_moved(name)]

    def _together(self) -> None:
        """By bisection, the first of the assignments for growing prices that holds the budget."""
        options, path = self._options(), list[Assignment]()
        for price in PRICES:
            found = self._cheapest(options, price * self.cost(self.exact))
            if found not in path:
                path.append(found)
        self._first_to_hold("together, at a price on lost points", path)

    def _first_to_hold(self, action: str, path: list[Assignment]) -> None:
        """By bisection, the first of assignments that lose less and less that holds the budget."""
        low, high = 0, len(path)
        while low < high and self.measured < self.most:
            middle = (low + high) // 2
            holds = self._holds(action, path[middle])
            low, high = (low, middle) if holds else (middle + 1, high)

    def _cheapest(self, options: Figures, price: float) -> Assignment:
        """The assignment of the least cost where a lost point has a price."""
        prices = {
            key: {name: self.costs[key][name] + price * points for name, points in option.items()}
            for key, option in options.items()
        }
        chosen = cheapest_kinds(prices, self.max_kinds)
        return {key: min((cost, name) for name, cost in of.items() if name in chosen)[1] for key, of in prices.items()}

    def _step_by_step(self) -> None:
        """The neighbours of the best that cost less, the most promising first."""
        options = self._options()
        while self.measured < self.most:
            promise, found = 0.0, self.best
            for saved, other in self._neighbours(options):
                chance = self._chance(other, options)
                promising = chance >= SMALLEST_CHANCE and chance * saved > promise
                if promising and self._names(other) not in self.known and not self._hopeless(other):
                    promise, found = chance * saved, other
            if not promise:
                return
            changed = [f"{name} in {key}" for key, name in found.items() if name != self.best[key]]
            self._holds("instead, " + " and ".join(changed), found)

    def _neighbours(self, options: Figures) -> Iterator[tuple[float, Assignment]]:
        """Assignments that cost less than the best and differ from it in one operation, two, or one kind, with what
        they save.
        """
        more = {key: {n: self.costs[key][n] - self.costs[key][self.best[key]] for n in option if n != self.best[key]}
                for key, option in options.items()}  # fmt: skip
        fronts = {key: [n for n in self.front(key) if n in more[key]] for key in more}
        every = sorted({n for found in more.values() for n in found})
        changes: Iterator[dict[str, str]] = itertools.chain(
            ({key: n} for key in more for n in more[key]),
            ({key: n, other: m} for key, other in itertools.combinations(more, 2)
             for n in fronts[key] for m in fronts[other]),
            ({key: n for key, old in self.best.items() if component_of(old) == kind and n in more[key]}
             for kind in sorted(_kinds(self.best)) for n in every),
        )  # fmt: skip
        for change in changes:
            saved = -sum(more[key][n] for key, n in change.items())
            if saved > 1e-9 * self.cost(self.best):
                found = self.best | change
                if len(_kinds(found)) <= self.max_kinds:
                    yield saved, found

    def _chance(self, found: Assignment, options: Figures) -> float:
        """That an assignment holds the budget, by the points that it is expected to lose more than the best."""
        more = sum(options[key][name] - options[key][self.best[key]] for key, name in found.items())
        return NormalDist(self.lost + self.margin + more, self.allowed / 2 + 1e-9).cdf(self.allowed)

    def _hopeless(self, found: Assignment) -> bool:
        """Whether something failed that was nowhere noisier."""
        failed = (zip(self.costs, names, strict=True) for names, holds in self.known.items() if not holds)
        return any(all(self.noise[key][n] <= self.noise[key][found[key]] for key, n in one) for one in failed)

    def _names(self, assignment: Assignment) -> tuple[str, ...]:
        return tuple(assignment[key] for key in self.costs)


def _kinds(assignment: Assignment) -> set[str]:
    """The multipliers that an element has to have."""
    return {component_of(chosen) for chosen in assignment.values()}
