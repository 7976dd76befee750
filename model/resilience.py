"""Steps 2-5 of the method: which groups, and which layers of the others, tolerate how much noise.

A sweep injects noise of growing magnitude NM into one group of operations (group-wise) or into one layer's operations
of that group (layer-wise), with several seeds a point, and watches the accuracy.

The rule: the *critical NM* is the largest NM of the sweep such that, at it and at every smaller one, the mean accuracy
over the seeds stays within `tolerance_points` of the clean accuracy. A group or layer is *resilient* when its critical
NM reaches `resilient_nm`.

`search: exhaustive` measures every point wholly and gives the paper's curves. `search: adaptive` finds the same
critical NM by bisection, and measures a point until its answer is settled (docs/resilience.md).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped]  # it has no stubs

from model.datasets import Split
from model.errors import RedcaneError
from model.network import Network
from model.operations import GROUPS, layer_of, operations
from model.points import InProcess, Subject, Workers, clean_unit
from model.seeds import derive_seed
from model.store import Store
from model.sweep import Measured, Results, Search, Sweep, run

SCHEMA = 2
PAPER_MAGNITUDES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0)


@dataclass(frozen=True)
class ResilienceSettings:
    """What to sweep and how to judge; raises RedcaneError when that makes no sense."""

    noise_magnitudes: tuple[float, ...] = PAPER_MAGNITUDES
    noise_average: float = 0.0
    seeds: tuple[int, ...] = (0, 1, 2)
    tolerance_points: float = 0.5  # percentage points of accuracy
    resilient_nm: float = (
        0.02  # measured: softmax and logits reach it on the digits, MAC outputs and activations do not
    )
    images: int = 0  # how many of the split's first images; 0 for all
    batch: int = 256  # the range R(X) of a tensor is taken over a batch
    search: Literal["adaptive", "exhaustive"] = "adaptive"
    confidence: float = 0.999  # that a settled point of the adaptive search says what its whole measurement would

    def __post_init__(self) -> None:
        magnitudes = (*self.noise_magnitudes, abs(self.noise_average), self.tolerance_points, self.resilient_nm)
        if not all(0 <= value < math.inf for value in magnitudes) or not self.noise_magnitudes:
            raise RedcaneError("analysis: noise magnitudes, tolerance_points and resilient_nm should be numbers from 0")
        if not self.seeds or any(type(seed) is not int or seed < 0 for seed in self.seeds):
            raise RedcaneError("analysis.seeds: should be one or more whole numbers from 0")
        if len(set(self.seeds)) < len(self.seeds) or len(set(self.noise_magnitudes)) < len(self.noise_magnitudes):
            raise RedcaneError("analysis: seeds and noise_magnitudes should hold every value once")
        if type(self.images) is not int or self.images < 0 or type(self.batch) is not int or self.batch < 1:
            raise RedcaneError("analysis: images should be a whole number from 0, batch one from 1")
        if self.search not in ("adaptive", "exhaustive") or not 0.5 <= self.confidence <= 1:
            raise RedcaneError("analysis: search should be adaptive or exhaustive, confidence a number from 0.5 to 1")


@dataclass(frozen=True)
class Curve:
    """Noise in these operations: what was measured at which NM, and the marks."""

    operations: tuple[str, ...]
    points: dict[float, Measured]  # by NM
    critical_nm: float
    resilient: bool

    @property
    def accuracies(self) -> dict[float, tuple[float, ...]]:
        """Of every measured NM, one accuracy (fraction) per seed; estimates where a point was measured in part."""
        return {nm: point.accuracies for nm, point in self.points.items()}

    def mean(self, nm: float) -> float:
        """Mean accuracy over the seeds."""
        return statistics.fmean(self.points[nm].accuracies)

    def deviation(self, nm: float) -> float:
        """Sample standard deviation over the seeds; 0 with one seed."""
        values = self.points[nm].accuracies
        return statistics.stdev(values) if len(values) > 1 else 0.0


def critical_nm(within: Mapping[float, bool]) -> float:
    """The largest NM that is within the tolerance together with all smaller ones; 0 when none is."""
    critical = 0.0
    for nm in sorted(within):
        if not within[nm]:
            break
        critical = nm
    return critical


@dataclass(frozen=True)
class Resilience:
    """The outcome of steps 2-5."""

    settings: ResilienceSettings
    images: int  # evaluated for every point
    clean_accuracy: float
    groups: dict[str, Curve]  # by group
    layers: dict[str, dict[str, Curve]]  # by non-resilient group, then by layer

    def tolerated_nm(self, operation: str) -> float:
        """The critical NM of "layer.operation": its layer's in a non-resilient group, else its group's."""
        layer = layer_of(operation)
        for group, curve in self.groups.items():
            if operation in curve.operations:
                return self.layers[group][layer].critical_nm if group in self.layers else curve.critical_nm
        raise RedcaneError(f"resilience: operation {operation} was not analysed; analyse this network again")

    def to_json(self) -> dict[str, Any]:
        """As plain data, accuracies as fractions:

        {"schema": 2, "settings": {the fields of ResilienceSettings}, "images": 288, "clean_accuracy": 0.99,
         "groups": {"mac": CURVE, ...}, "layers": {"mac": {"conv1": CURVE, ...}, ...}}
        CURVE = {"operations": ["conv1.mac", ...], "critical_nm": 0.02, "resilient": false, "points": [POINT, ...]}
        POINT = {"nm": 0.5, "within": false, "pairs": 864, "lost": 770, "mean": 0.1, "std": 0.01, "min": 0.09,
                 "max": 0.11, "accuracies": [...]}; model.sweep.Measured explains them.
        """
        return {
            "schema": SCHEMA,
            "settings": asdict(self.settings),
            "images": self.images,
            "clean_accuracy": self.clean_accuracy,
            "groups": {group: _curve_to_json(curve) for group, curve in self.groups.items()},
            "layers": {
                group: {layer: _curve_to_json(curve) for layer, curve in layers.items()}
                for group, layers in self.layers.items()
            },
        }

    @classmethod
    def from_json(cls, data: Any) -> Resilience:
        """The reverse of to_json; marks are derived anew from the points. Raises RedcaneError for anything else."""
        try:
            if data["schema"] != SCHEMA:
                raise RedcaneError(f"resilience: schema {data['schema']!r} is not {SCHEMA}; analyse again")
            given = {field.name: data["settings"][field.name] for field in fields(ResilienceSettings)}
            settings = ResilienceSettings(
                **given | {name: tuple(given[name]) for name in ("noise_magnitudes", "seeds")}
            )

            def curve(raw: Any) -> Curve:
                points = [
                    Measured(
                        float(p["nm"]), tuple(float(a) for a in p["accuracies"]), int(p["pairs"]), int(p["lost"]),
                        p["within"] is True,
                    )
                    for p in raw["points"]
                ]  # fmt: skip
                return _curve(tuple(str(name) for name in raw["operations"]), points, settings)

            groups = {str(group): curve(raw) for group, raw in data["groups"].items()}
            layers = {
                str(group): {str(layer): curve(raw) for layer, raw in by_layer.items()}
                for group, by_layer in data["layers"].items()
            }
            for group, one in groups.items():
                missing = {layer_of(name) for name in one.operations} - set(layers.get(group, {}))
                if not one.resilient and missing:
                    raise RedcaneError(f"resilience: layer {missing.pop()} of group {group} is missing; analyse again")
            return cls(settings, int(data["images"]), float(data["clean_accuracy"]), groups, layers)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RedcaneError(f"resilience: not a result of the analysis ({error}); analyse again") from None


def _curve(keys: tuple[str, ...], points: list[Measured], settings: ResilienceSettings) -> Curve:
    critical = critical_nm({point.nm: point.within for point in points})
    return Curve(keys, {point.nm: point for point in points}, critical, critical >= settings.resilient_nm)


def _curve_to_json(curve: Curve) -> dict[str, Any]:
    points = [
        {
            "nm": nm,
            "within": point.within,
            "pairs": point.pairs,
            "lost": point.lost,
            "mean": curve.mean(nm),
            "std": curve.deviation(nm),
            "min": min(point.accuracies),
            "max": max(point.accuracies),
            "accuracies": list(point.accuracies),
        }
        for nm, point in curve.points.items()
    ]
    marks = {"critical_nm": curve.critical_nm, "resilient": curve.resilient}
    return {"operations": list(curve.operations), **marks, "points": points}


def subject(network: Network, split: Split, settings: ResilienceSettings) -> Subject:
    """What `analyze` measures on: the split's first images in a random order, which is always the same."""
    count = min(settings.images or len(split), len(split))
    order = np.random.default_rng(derive_seed("order of the images")).permutation(count)
    return Subject(network.eval(), Split(split.images[order], split.labels[order]), settings.batch)


def analyze(
    network: Network,
    split: Split,
    settings: ResilienceSettings,
    store: Store | None = None,
    workers: Workers | None = None,
) -> Resilience:
    """Run steps 2-5 on a split (the validation split, so that the test split stays unseen by every choice).

    What is measured goes to the `store`, and what is there for the same weights and images is not measured again.
    `workers` must measure subject(network, split, settings); None for this process. Raises RedcaneError when they
    cannot.
    """
    of = subject(network, split, settings)
    store, workers = store or Store(), workers or InProcess(of)
    results: Results = {}
    sweep = Sweep(of, settings.seeds, settings.noise_average, settings.tolerance_points, settings.confidence, results)

    def clean() -> Search:
        yield [clean_unit(batch) for batch in range(of.batches)]
        return []

    def sweeps(title: str, wanted: Mapping[str, tuple[str, ...]]) -> dict[str, Curve]:
        search = sweep.adaptively if settings.search == "adaptive" else sweep.exhaustively
        searches = {name: search(keys, settings.noise_magnitudes) for name, keys in wanted.items()}
        found = _measure(title, searches, of, workers, store, results)
        return {name: _curve(wanted[name], points, settings) for name, points in found.items()}

    found = operations(network)
    _measure("clean", {"": clean()}, of, workers, store, results)
    by_group = {group: tuple(o.key for o in found if o.group == group) for group in GROUPS}
    groups = sweeps("groups", {group: keys for group, keys in by_group.items() if keys})
    by_layer: dict[str, tuple[str, ...]] = {}  # by "group/layer"
    for group, curve in groups.items():
        for key in curve.operations if not curve.resilient else ():
            name = f"{group}/{layer_of(key)}"
            by_layer[name] = (*by_layer.get(name, ()), key)
    layers: dict[str, dict[str, Curve]] = {}
    for name, curve in sweeps("layers", by_layer).items():
        group, layer = name.split("/", 1)
        layers.setdefault(group, {})[layer] = curve
    right = sum(int(results[clean_unit(batch)].sum(dtype=np.int64)) for batch in range(of.batches))
    return Resilience(settings, len(of.split), right / len(of.split), groups, layers)


def _measure(
    title: str, searches: dict[str, Search], of: Subject, workers: Workers, store: Store, results: Results
) -> dict[str, list[Measured]]:
    """Run searches under a progress bar, which counts batches."""
    with tqdm(desc=f"analyze: {title}", unit="batch") as bar:

        def progress(measured: int, wanted: int) -> None:
            bar.total = wanted
            bar.update(measured - bar.n)

        return run(searches, of, workers, store, results, progress)
