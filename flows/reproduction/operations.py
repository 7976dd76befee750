"""Table I, Fig. 4 and Fig. 5: how many operations an inference takes, and where its energy goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from flows.reproduction.paper import POWER_UW, UNIT_ENERGY_PJ
from model.deepcaps import CELLS, DeepCapsShape
from model.network import Shape, build
from model.operations import operations, total

PAPERS_DEEPCAPS = DeepCapsShape(image=(64, 64, 3), classes=10)
"""The network of Table I."""


def count(shape: Shape) -> dict[str, Any]:
    """The operations of Table I's network and of the benchmark's, and what they come to in the paper's energies."""
    network, deepcaps = (asdict(total(operations(build(of)))) for of in (shape, PAPERS_DEEPCAPS))
    return {
        "schema": 1,
        "network": network,
        "deepcaps": deepcaps,
        "deepcaps_as_the_paper_counts": as_the_paper_counts(),
        "shares": {"network": shares(network), "deepcaps": shares(deepcaps)},
    }


def as_the_paper_counts() -> dict[str, int]:
    """Table I's multiplications and additions: those of the convolutions alone, the first and strided one of each cell
    counted at the size of its input, four times its output's, and 8 additions for the 9 products of a kernel.
    """
    strided = {f"{cell}.conv1.mac" for cell in CELLS}
    convolutions = [o for o in operations(build(PAPERS_DEEPCAPS)) if o.name == "mac"]
    multiplications = sum(o.counts.multiplications * (4 if o.key in strided else 1) for o in convolutions)
    return {"multiplications": multiplications, "additions": multiplications * 8 // 9}


def shares(counts: Mapping[str, float]) -> dict[str, float]:
    """Percent of the energy that each operation takes, by the paper's energies (Fig. 4)."""
    energies = {name: counts[name] * unit for name, unit in UNIT_ENERGY_PJ.items()}
    return {name: 100 * energy / sum(energies.values()) for name, energy in energies.items()}


def saved_by_multiplier(multiplications: float, name: str = "mul8u_NGR") -> float:
    """Percent of the energy that a multiplier saves where multiplications have that share in percent (Fig. 5)."""
    return multiplications * (1 - POWER_UW[name] / POWER_UW["mul8u_1JFF"])
