"""Fig. 9, 10 and 12: whole curves of accuracy over noise, of groups and of layers, and where noise seems to help."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]  # it has no stubs

from flows.executors import workers
from flows.run import Run
from model.operations import operations, total
from model.points import Subject, Unit, clean_unit
from model.resilience import Curve, Resilience, ResilienceSettings, analyze, subject
from model.store import Store
from model.sweep import Sweep

ROUTING_GROUPS, OTHER_GROUPS = ("softmax", "logits"), ("mac", "activation")
ROUTING_LAYERS = ("classcaps", "cell4.skip")
"""Layers with dynamic routing; the second is DeepCaps' Caps3D."""
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
    """The curves on the first test images, as Resilience.to_json, with `gains` and `differences` of `_Points`.

    What is measured is kept in the file `store`, so that it is not measured again when this is interrupted.
    """
    network, test, wanted = run.network(), run.dataset.test, settings(run, images)
    of = subject(network, test, wanted)
    with Store(store) as kept, workers(of, run.workers, run.scheduler) as measuring:
        result = analyze(network, test, wanted, kept, measuring)
        points = _Points(of, kept, result)
        return {**result.to_json(), "gains": points.gains(), "differences": points.differences()}


class _Points:
    """The measured points of curves, image by image."""

    def __init__(self, of: Subject, store: Store, result: Resilience) -> None:
        self.of, self.store, self.result = of, store, result
        chosen = result.settings
        self.seeds = len(chosen.seeds)
        self._sweep = Sweep(of, chosen.seeds, chosen.noise_average, chosen.tolerance_points, chosen.confidence, {})

    def gains(self) -> list[dict[str, Any]]:
        """Of every noise point of a group: on how many images noise helps more often than it harms, over the seeds, on
        how many it is the other way round, and how likely that is by chance (one-sided sign test).
        """
        clean = np.concatenate([self._right(clean_unit(batch)) for batch in range(self.of.batches)])
        rows = []
        for group, curve in self.result.groups.items():
            for nm in (nm for nm in curve.points if nm > 0):
                net = self._times_right(curve, nm) - self.seeds * clean
                better, worse = int((net > 0).sum()), int((net < 0).sum())
                test = stats.binomtest(better, better + worse, alternative="greater") if better + worse else None
                chance = float(test.pvalue) if test else 1.0
                rows.append({"group": group, "nm": nm, "better": better, "worse": worse, "p": chance})
        return rows

    def differences(self) -> list[dict[str, Any]]:
        """How much more accurate one group, or one layer of a group, is than another with the same noise, in points,
        with the standard error over the images, each compared with itself.

        Compared are the routing's groups with the others; of layers the first one, and those that route, with all.
        """
        pairs = [("groups", self.result.groups, a, b) for a, b in product(ROUTING_GROUPS, OTHER_GROUPS)]
        for group, layers in self.result.layers.items():
            leading = [name for i, name in enumerate(layers) if i == 0 or name in ROUTING_LAYERS]
            pairs += [(group, layers, a, b) for a in leading for b in layers if a != b]
        rows = []
        for where, curves, one, other in pairs:
            if one not in curves or other not in curves:
                continue
            for nm in (nm for nm in curves[one].points if nm > 0):
                each = (self._times_right(curves[one], nm) - self._times_right(curves[other], nm)) / self.seeds
                error = 100 * float(each.std()) / math.sqrt(len(each))
                points = 100 * float(each.mean())
                rows.append({"in": where, "one": one, "other": other, "nm": nm, "points": points, "error": error})
        return rows

    def _times_right(self, curve: Curve, nm: float) -> NDArray[np.int64]:
        """Of every image, with how many of the seeds it is classified right."""
        times = np.zeros(len(self.of.split), np.int64)
        for unit in self._sweep.units(curve.operations, nm):
            start = unit.batch * self.of.batch
            times[start : start + self.of.size(unit.batch)] += self._right(unit)
        return times

    def _right(self, unit: Unit) -> NDArray[np.int64]:
        packed = self.store.find(self.of, [unit])[unit]
        return np.unpackbits(np.frombuffer(packed, np.uint8), count=self.of.size(unit.batch)).astype(np.int64)
