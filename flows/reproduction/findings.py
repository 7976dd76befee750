"""The paper's findings, each held against what was measured: reproduced or not, undecided or not tested, and why.

Every verdict is computed here from results of a benchmark (flows/reproduction/stages.py); none is written down.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from flows.reproduction.curves import OTHER_GROUPS, ROUTING_GROUPS, ROUTING_LAYERS
from flows.reproduction.operations import saved_by_multiplier
from flows.reproduction.paper import GAUSSIAN_LIKE, MULTIPLIERS, SAVED, SHARES
from model.multipliers.profile import TABLE_IV
from model.operations import GROUPS
from model.resilience import Curve, Resilience

Verdict = Literal["reproduced", "not reproduced", "undecided", "not tested"]
Order = Literal["more", "less", "alike", "mixed"]
Json = Mapping[str, Any]

SIGMAS = 3.0
"""Standard errors from which on two accuracies count as different: there are nine noise magnitudes to compare at."""
ONSET = 20.0
"""Points of accuracy: noise that costs more than that, whichever of two has it, does not tell them apart."""
CAPS3D = "cell4.skip"
CHANCE = 0.05
"""Probability below which a gain counts as more than chance, over all the noise points together (Bonferroni)."""


@dataclass(frozen=True)
class Finding:
    """One claim of the paper."""

    claim: str
    where: str  # in the paper
    verdict: Verdict
    evidence: str  # a sentence or two with the figures that decide


def findings(results: Json) -> list[Finding]:
    """All of the paper's findings for one benchmark's results."""
    curves, compared = results["curves"], Comparisons(results["curves"])
    return [
        _accuracy(results),
        _energy_shares(results["operations"]),
        _saving(results["operations"]),
        _gaussian(results["multipliers"]),
        _table_iv(results["multipliers"]),
        _real_operands(results["multipliers"]),
        _groups(compared),
        _first_convolution(compared),
        _caps3d(compared),
        _routing_layers(compared),
        _gains(curves, compared.resilience.images),
        _method(results["designs"]),
    ]


def wilson(right: int, images: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson interval (95 %) of an accuracy, as fractions."""
    p, n = right / images, images
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


class Comparisons:
    """Which of two groups, or of two layers of a group, stands more noise, on the same images."""

    def __init__(self, curves: Json) -> None:
        self.resilience = Resilience.from_json(curves)
        self._points: dict[tuple[str, str, str], dict[float, tuple[float, float]]] = {}
        for row in curves["differences"]:
            place = self._points.setdefault((row["in"], row["one"], row["other"]), {})
            place[row["nm"]] = row["points"], row["error"]

    def order(self, where: str, one: str, other: str) -> Order:
        """Whether `one` is more resilient than `other`: more accurate at some noise magnitude, and less so at none.

        Magnitudes at which both have lost more than ONSET points do not count: the paper asks when the accuracy begins
        to fall, and which of two broken networks guesses better says nothing. `where` is "groups" or the layers' group.
        """
        curves = self.resilience.groups if where == "groups" else self.resilience.layers[where]
        signs = set()
        for nm, (points, error) in self._points[where, one, other].items():
            lost = 100 * (self.resilience.clean_accuracy - max(curves[one].mean(nm), curves[other].mean(nm)))
            if lost <= ONSET and abs(points) > max(SIGMAS * error, 1e-9):
                signs.add(points > 0)
        return "mixed" if len(signs) == 2 else "alike" if not signs else "more" if signs == {True} else "less"

    def orders(self, where: str, ones: Iterable[str], others: Iterable[str]) -> dict[tuple[str, str], Order]:
        """The order of every pair of different ones."""
        return {(a, b): self.order(where, a, b) for a, b in product(ones, others) if a != b}


def _judge(holds: bool) -> Verdict:
    return "reproduced" if holds else "not reproduced"


def _judge_orders(orders: Collection[Order], claimed: Order) -> Verdict:
    """Undecided where nothing speaks against the claim, but not all that it compares is told apart."""
    if set(orders) == {claimed}:
        return "reproduced"
    return "undecided" if set(orders) <= {claimed, "alike"} else "not reproduced"


def _accuracy(results: Json) -> Finding:
    table = results["accuracy"]
    claim = "The accuracy of Table II"
    low, high = wilson(table["right"], table["images"])
    ours = f"{100 * table['right'] / table['images']:.2f} % of {table['images']:,} test images, interval " \
           f"{100 * low:.2f} to {100 * high:.2f} %"  # fmt: skip
    if table["paper"] is None:
        return Finding(claim, "Table II", "not tested", f"{ours}; the paper has no such benchmark.")
    return Finding(claim, "Table II", _judge(table["paper"] <= 100 * high), f"{ours}; the paper {table['paper']} %.")


def _energy_shares(operations: Json) -> Finding:
    ours = operations["shares"]["deepcaps"]
    holds = all(abs(ours[name] - percent) <= 1 for name, percent in SHARES.items())
    shown = ", ".join(f"{name} {ours[name]:.1f} % (the paper: {percent:g})" for name, percent in SHARES.items())
    return Finding(
        "Multiplications take 96 % of DeepCaps' energy, additions 3 %", "Fig. 4", _judge(holds),
        f"By our exact counts and the paper's energies: {shown}; within a point counts as the same.",
    )  # fmt: skip


def _saving(operations: Json) -> Finding:
    saved = saved_by_multiplier(operations["shares"]["deepcaps"]["multiplications"])
    return Finding(
        "The multiplier NGR everywhere saves 28.3 % of the energy", "Fig. 5",
        _judge(abs(saved - SAVED["multipliers"]) < 0.5),
        f"The multiplications' share by our counts times 1 - 276/391 (the powers of Table IV) is {saved:.1f} %. It is "
        "arithmetic: the paper gives no accuracy with it.",
    )  # fmt: skip


def _gaussian(multipliers: Json) -> Finding:
    claim = f"{GAUSSIAN_LIKE} of {MULTIPLIERS} multipliers have a Gaussian-like error"
    count = {int(terms): number for terms, number in multipliers["gaussian_like"].items()}
    shown = ", ".join(f"{number} at {terms} MACs" for terms, number in count.items())
    if multipliers["missing_of_table_iv"]:
        other = (
            f"The library {multipliers['library']} is not EvoApproxLib v1.0; of its {multipliers['inexact']}: {shown}."
        )
        return Finding(claim, "Sec. III-B", "not tested", other)
    return Finding(
        claim, "Sec. III-B", _judge(multipliers["inexact"] == MULTIPLIERS and GAUSSIAN_LIKE in count.values()),
        f"Of {multipliers['inexact']}: {shown} (|skew| < 1, |excess kurtosis| < 2; the paper does not say its rule).",
    )  # fmt: skip


def _table_iv(multipliers: Json) -> Finding:
    claim = "NA and NM of Table IV for uniform operands"
    missing = multipliers["missing_of_table_iv"]
    if missing:
        return Finding(claim, "Table IV", "not tested", _missing(multipliers))
    noise = {row["name"]: row["uniform"] for row in multipliers["noise"]}
    equal = sum(
        round(noise[name][figure], 4) == value
        for name, (na, nm, _, _) in TABLE_IV.items()
        for figure, value in (("na", na), ("nm", nm))
    )
    return Finding(claim, "Table IV", _judge(equal == 2 * len(TABLE_IV)),
                   f"{equal} of {2 * len(TABLE_IV)} figures equal to four decimals.")  # fmt: skip


def _real_operands(multipliers: Json) -> Finding:
    claim = "Where real operands change NM much, uniform ones overestimate it"
    large = [
        (row["name"], row["uniform"]["nm"], row["real"]["nm"])
        for row in multipliers["noise"]
        if abs(row["uniform"]["nm"] - row["real"]["nm"]) > 0.25 * max(row["uniform"]["nm"], 1e-4)
    ]
    over = [row for row in large if row[1] > row[2]]
    if not large:
        return Finding(claim, "Sec. VI-B", "not reproduced", "No multiplier's NM changes by more than a quarter.")
    worst = max(large, key=lambda row: abs(row[1] - row[2]))
    return Finding(
        claim, "Sec. VI-B", _judge(2 * len(over) > len(large)),
        f"Of {len(multipliers['noise'])} multipliers {len(large)} change by more than a quarter, {len(over)} of them "
        f"are overestimated; the largest change is {worst[0]}'s, {worst[1]:.4f} uniform and {worst[2]:.4f} real.",
    )  # fmt: skip


def _missing(multipliers: Json) -> str:
    missing = multipliers["missing_of_table_iv"]
    return (
        f"The library {multipliers['library']} lacks {len(missing)} of its {len(TABLE_IV)} multipliers: "
        "`redcane library fetch`, then `--library evoapprox`."
    )


def _groups(compared: Comparisons) -> Finding:
    claim = "Softmax and logits update are more resilient than MAC outputs and activations"
    groups = compared.resilience.groups
    if not all(name in groups for name in (*ROUTING_GROUPS, *OTHER_GROUPS)):
        return Finding(claim, "Fig. 9, 12", "not tested", "The network lacks one of the four groups.")
    orders = compared.orders("groups", ROUTING_GROUPS, OTHER_GROUPS)
    return Finding(claim, "Fig. 9, 12", _judge_orders(orders.values(), "more"),
                   f"Critical NM: {_criticals(groups)}. {_orders(orders)}")  # fmt: skip


def _first_convolution(compared: Comparisons) -> Finding:
    claim = "The first convolution is the least resilient layer"
    found = {g: compared.orders(g, [next(iter(layers))], layers) for g, layers in compared.resilience.layers.items()}
    return _of_layers(compared, claim, "Fig. 10", found, "less")


def _caps3d(compared: Comparisons) -> Finding:
    claim = "Caps3D, which routes dynamically, is the most resilient layer"
    layers = {g: names for g, names in compared.resilience.layers.items() if CAPS3D in names}
    if not layers and compared.resilience.layers:
        return Finding(claim, "Fig. 10", "not tested", "This network has no Caps3D; DeepCaps has.")
    found = {g: compared.orders(g, [CAPS3D], names) for g, names in layers.items()}
    return _of_layers(compared, claim, "Fig. 10", found, "more")


def _routing_layers(compared: Comparisons) -> Finding:
    claim = "Layers with dynamic routing are more resilient than the others"
    found = {}
    for group, layers in compared.resilience.layers.items():
        routed = [name for name in layers if name in ROUTING_LAYERS]
        found[group] = compared.orders(group, routed, [name for name in layers if name not in routed])
    return _of_layers(compared, claim, "Sec. VI-D", found, "more")


def _of_layers(
    compared: Comparisons,
    claim: str,
    where: str,
    found: Mapping[str, dict[tuple[str, str], Order]],
    claimed: Order,
) -> Finding:
    """A finding on the layers of every group that is not resilient: it has to hold in each."""
    found = {group: orders for group, orders in found.items() if orders}
    if not found:
        return Finding(claim, where, "not tested", "No group has layers to compare: all are resilient.")
    shown = " ".join(
        f"{GROUPS[group]}: critical NM {_criticals(compared.resilience.layers[group])}. {_orders(orders)}"
        for group, orders in found.items()
    )
    every = [order for orders in found.values() for order in orders.values()]
    return Finding(claim, where, _judge_orders(every, claimed), shown)


def _gains(curves: Json, images: int) -> Finding:
    claim = "Slight noise can raise the accuracy"
    gains = curves["gains"]
    if not gains:
        return Finding(claim, "Fig. 9", "not tested", "No point has noise.")
    best = min(gains, key=lambda row: (row["p"], row["worse"] - row["better"]))
    holds = best["p"] * len(gains) < CHANCE
    raised = sum(row["better"] > row["worse"] for row in gains)
    return Finding(
        claim, "Fig. 9", _judge(holds),
        f"{raised} of {len(gains)} points gain more images than they lose. The clearest is {GROUPS[best['group']]} at "
        f"NM {best['nm']:g}: {best['better']} of {images} images right more often than without noise, {best['worse']} "
        f"less often (sign test: p = {best['p']:.2g}; {CHANCE:g} divided by the number of points would be needed).",
    )  # fmt: skip


def _method(designs: Json) -> Finding:
    claim = "Components chosen by NM alone hardly cost accuracy"
    paper = next(d for d in designs["designs"] if d["kind"] == "paper" and "affine" in d["formats"].values())
    base = designs["float"]["right"] / designs["float"]["images"]
    lost = 100 * (base - paper["test"]["right"] / paper["test"]["images"])
    return Finding(
        claim, "Sec. VI-B, VII", _judge(lost <= designs["budget_points"]),
        f"That design loses {lost:.2f} points of accuracy (exact emulation, {paper['test']['images']:,} test images); "
        f"{designs['budget_points']:g} were to be tolerated. The paper did not measure its own.",
    )  # fmt: skip


def _criticals(curves: Mapping[str, Curve]) -> str:
    return ", ".join(f"{name} {curve.critical_nm:g}" for name, curve in curves.items())


def _orders(orders: Mapping[tuple[str, str], Order]) -> str:
    words = {
        "more": "{} stands more noise than {}",
        "less": "{} stands less than {}",
        "alike": "{} is not told apart from {}",
        "mixed": "{} against {}: it depends on the magnitude",
    }
    others: dict[tuple[str, Order], list[str]] = {}
    for (one, other), order in orders.items():
        others.setdefault((one, order), []).append(other)
    return "; ".join(words[order].format(one, ", ".join(names)) for (one, order), names in others.items()) + "."
