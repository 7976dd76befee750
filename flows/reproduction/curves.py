"""Fig. 9, 10 and 12: whole curves of accuracy over noise, of groups and of layers, and where noise seems to help."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]  # it has no stubs

from flows.executors import workers
from flows.run import Run
from model.operations import operations, total
from model.points import Subject, Unit, clean_unit
from model.resilience import Resilience, ResilienceSettings, analyze, subject
from model.store import Store
from model.sweep import Sweep

MOST_IMAGES, FEWEST_IMAGES = 2000, 200
WORK = 10**11
"""Multiplications of a clean pass over the images: a noise point of every operation takes one, and there are hundreds.
With it the curves of the original CapsNet take some ten minutes of a core."""


def settings(run: Run, images: int | None) -> ResilienceSettings:
    """The configured analysis, but every magnitude measured wholly, on so many images (None: what is affordable)."""
    if images is None:
        images = int(np.clip(WORK // total(operations(run.network())).multiplications, FEWEST_IMAGES, MOST_IMAGES))
    images = min(images, len(run.dataset.test))
    return replace(run.config.resilience(), search="exhaustive", images=images)


def measure(run: Run, store: Path, images: int | None) -> dict[str, Any]:
    """The curves on the first test images, as Resilience.to_json, with `gains` of the groups' points beside them.

    What is measured is kept in the file `store`, so that it is not measured again when this is interrupted.
    """
    network, test, wanted = run.network(), run.dataset.test, settings(run, images)
    of = subject(network, test, wanted)
    with Store(store) as kept, workers(of, run.workers, run.scheduler) as measuring:
        result = analyze(network, test, wanted, kept, measuring)
        return {**result.to_json(), "gains": gains(of, kept, result)}


def gains(of: Subject, store: Store, result: Resilience) -> list[dict[str, Any]]:
    """Of every noise point of a group: on how many images noise helps more often than it harms, over the seeds, on how
    many it is the other way round, and how likely so many of the first kind are by chance (one-sided sign test).
    """
    chosen = result.settings
    sweep = Sweep(of, chosen.seeds, chosen.noise_average, chosen.tolerance_points, chosen.confidence, {})
    clean = np.concatenate([_right(of, store, clean_unit(batch)) for batch in range(of.batches)])
    rows = []
    for group, curve in result.groups.items():
        for nm in (nm for nm in curve.points if nm > 0):
            net = -len(chosen.seeds) * clean
            for unit in sweep.units(curve.operations, nm):
                start = unit.batch * of.batch
                net[start : start + of.size(unit.batch)] += _right(of, store, unit)
            better, worse = int((net > 0).sum()), int((net < 0).sum())
            chance = stats.binomtest(better, better + worse, alternative="greater").pvalue if better + worse else 1.0
            rows.append({"group": group, "nm": nm, "better": better, "worse": worse, "p": float(chance)})
    return rows


def _right(of: Subject, store: Store, unit: Unit) -> NDArray[np.int64]:
    packed = store.find(of, [unit])[unit]
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=of.size(unit.batch)).astype(np.int64)
