"""Fig. 6, Fig. 11 and Table IV: the errors of a library's multipliers, for uniform operands and for a network's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm  # type: ignore[import-untyped]  # it has no stubs

from flows.operands import Histograms, convolutions
from flows.run import Run
from model.capture import capture
from model.emulation import Emulator
from model.multipliers.component import Multiplier
from model.multipliers.error_figures import error_figures
from model.multipliers.profile import SAMPLES, TABLE_IV, TERMS, ErrorProfile, error_profile, sample_errors
from model.quantize import image_codes, quantize

SHOWN = 3
"""Multipliers whose profiles are drawn."""
BINS = 80
_FIGURE_6 = ("mul8u_NGR", "mul8u_DM1")


def profile(run: Run) -> dict[str, Any]:
    """Profiles of the library's inexact unsigned multipliers, three of them as histograms; NA and NM of all for uniform
    operands and for those of the network's convolutions; how often these operands occur, by layer.

    The operands are the paper's: unsigned codes of Eq. 1, of weights as of activations, on training images.
    """
    unsigned = [c for c in run.library.components.values() if not c.signed]
    inexact = [c for c in unsigned if not c.is_exact]
    profiles = {
        c.name: [error_profile(sample_errors(c.table, terms), terms) for terms in TERMS]
        for c in tqdm(inexact, desc="reproduce: profiles", unit="multiplier")
    }
    operands = {key: both for key, both in _operands(run).items() if key.endswith(".mac")}
    pooled = convolutions(operands)
    return {
        "schema": 1,
        "library": run.library.name,
        "samples": SAMPLES,
        "inexact": len(inexact),
        "gaussian_like": {terms: sum(p[i].gaussian_like for p in profiles.values()) for i, terms in enumerate(TERMS)},
        "shown": {c.name: _drawn(c, profiles[c.name]) for c in _shown(inexact, profiles)},
        "noise": [
            {
                "name": c.name,
                "uniform": _noise(c, None),
                "real": _noise(c, pooled),
                "cost": run.library.cost(c),
            }
            for c in sorted(unsigned, key=lambda c: (-run.library.cost(c), c.name))
        ],
        "cost": run.library.cost_name,
        "missing_of_table_iv": [name for name in TABLE_IV if name not in run.library.components],
        "operands": {key: _ports(both) for key, both in {"all convolutions": pooled, **operands}.items()},
    }


def _operands(run: Run) -> dict[str, Histograms]:
    """Operand pairs of every operation in the network of the paper's codes, exact multipliers in it."""
    network = quantize(run.network(), run.calibration, "affine")
    sampled = image_codes(network, run.dataset.train.images[: run.config.assign.images])
    return {k: c.port_histogram() for k, c in capture(Emulator(network), sampled, seed=run.config.seed).items()}


def _shown(inexact: Sequence[Multiplier], profiles: dict[str, list[ErrorProfile]]) -> list[Multiplier]:
    """The paper's two, where they are there, and those whose sums of nine are least like a Gaussian."""
    least = sorted(inexact, key=lambda c: (c.name not in _FIGURE_6, -profiles[c.name][1].ks_distance, c.name))
    return least[:SHOWN]


def _drawn(component: Multiplier, profiles: Sequence[ErrorProfile]) -> list[dict[str, Any]]:
    rows = []
    for found in profiles:
        counts, edges = np.histogram(sample_errors(component.table, found.terms), bins=BINS)
        rows.append(
            {
                "terms": found.terms,
                "mean": found.mean,
                "deviation": found.deviation,
                "skew": found.skew,
                "excess_kurtosis": found.excess_kurtosis,
                "ks_distance": found.ks_distance,
                "gaussian_like": found.gaussian_like,
                "histogram": {"counts": counts.tolist(), "first": float(edges[0]), "last": float(edges[-1])},
            }
        )
    return rows


def _noise(component: Multiplier, operands: Histograms | None) -> dict[str, float]:
    figures = error_figures(component.table, *(operands or ()))
    return {"na": figures.na, "nm": figures.nm}


def _ports(both: Histograms) -> dict[str, list[int]]:
    pairs: NDArray[np.int64] = both[0] + both[1]
    return {"a": pairs.sum(axis=1).tolist(), "b": pairs.sum(axis=0).tolist()}
