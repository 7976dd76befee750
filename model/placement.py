"""Where an operation's magnitudes sit in its multiplier, as a part of what is chosen for it.

In sign-magnitude seven bits sit at the top or at the bottom of a port of eight (docs/numerics.md, `align`). At the top
a multiplier's absolute error counts less, at the bottom fewer of its gates switch. The configuration says where all
sit; an *option* is a component's name, for it there, or the name with a mark, for it at the other place.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import NamedTuple

from model.capture import Capture
from model.multipliers.costs import OperationCosts
from model.qnetwork import QNetwork, convolution_of

_MARKS = {"@bottom": 0, "@top": 1}


class Elsewhere(NamedTuple):
    """A network whose operations all have their magnitudes at the other place, with what was found out there."""

    network: QNetwork
    captures: Mapping[str, Capture]
    costs: OperationCosts


def option(component: str, align: int) -> str:
    """The component at a place that is not the configured one."""
    return component + next(mark for mark, place in _MARKS.items() if place == align)


def component_of(chosen: str) -> str:
    """The component of an option."""
    return chosen.partition("@")[0]


def is_moved(chosen: str) -> bool:
    """Whether an option is at the other place."""
    return "@" in chosen


def moved(network: QNetwork, other: QNetwork, operations: Collection[str]) -> QNetwork:
    """The network with these operations ("layer.operation") as in `other`, the same network at the other place."""
    layers = []
    for here, there in zip(network.layers, other.layers, strict=True):
        name, _ = convolution_of(here)
        base = there if f"{here.name}.{name}" in operations else here  # a bias is in units of its product
        products = {
            key: there.products()[key] if f"{here.name}.{key}" in operations else product
            for key, product in here.products().items()
        }
        layers.append(base.with_products(products))
    return replace(network, layers=tuple(layers))
