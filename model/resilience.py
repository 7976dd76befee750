"""Steps 2-5 of the method: which groups, and which layers of the others, tolerate how much noise.

A sweep injects noise of growing magnitude NM into one group of operations (group-wise) or into one layer's operations
of that group (layer-wise), with several seeds a point, and watches the accuracy.

The rule: the *critical NM* is the largest NM of the sweep such that, at it and at every smaller one, the mean accuracy
over the seeds stays within `tolerance_points` of the clean accuracy. A group or layer is *resilient* when its critical
NM reaches `resilient_nm`.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped]  # it has no stubs

from model.datasets import Split
from model.errors import RedcaneError
from model.files import digest
from model.network import Network
from model.noise import Injection, noise_tap
from model.operations import GROUPS, layer_of, operations
from model.training import accuracy

SCHEMA = 1
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


@dataclass(frozen=True)
class Curve:
    """Accuracy against NM with noise in these operations: for every NM, one accuracy (fraction) per seed."""

    operations: tuple[str, ...]
    accuracies: dict[float, tuple[float, ...]]
    critical_nm: float
    resilient: bool

    def mean(self, nm: float) -> float:
        """Mean accuracy over the seeds."""
        return statistics.fmean(self.accuracies[nm])

    def deviation(self, nm: float) -> float:
        """Sample standard deviation over the seeds; 0 with one seed."""
        values = self.accuracies[nm]
        return statistics.stdev(values) if len(values) > 1 else 0.0


def critical_nm(clean: float, means: dict[float, float], tolerance_points: float) -> float:
    """The largest NM at which, and below which, the mean accuracy stays within the tolerance; 0 when none does."""
    critical = 0.0
    for nm in sorted(means):
        if 100 * (clean - means[nm]) > tolerance_points + 1e-9:
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

        {"schema": 1, "settings": {the fields of ResilienceSettings}, "images": 288, "clean_accuracy": 0.99,
         "groups": {"mac": CURVE, ...}, "layers": {"mac": {"conv1": CURVE, ...}, ...}}
        CURVE = {"operations": ["conv1.mac", ...], "critical_nm": 0.02, "resilient": false,
                 "points": [{"nm": 0.5, "mean": 0.1, "std": 0.01, "min": 0.09, "max": 0.11, "accuracies": [...]}, ...]}
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
        """The reverse of to_json; marks are derived anew from the accuracies. Raises RedcaneError for anything else."""
        try:
            if data["schema"] != SCHEMA:
                raise RedcaneError(f"resilience: schema {data['schema']!r} is not {SCHEMA}; analyse again")
            given = {field.name: data["settings"][field.name] for field in fields(ResilienceSettings)}
            settings = ResilienceSettings(
                **given | {name: tuple(given[name]) for name in ("noise_magnitudes", "seeds")}
            )
            clean = float(data["clean_accuracy"])

            def curve(raw: Any) -> Curve:
                found = {float(p["nm"]): tuple(float(a) for a in p["accuracies"]) for p in raw["points"]}
                return _curve(tuple(str(name) for name in raw["operations"]), found, clean, settings)

            groups = {str(group): curve(raw) for group, raw in data["groups"].items()}
            layers = {
                str(group): {str(layer): curve(raw) for layer, raw in by_layer.items()}
                for group, by_layer in data["layers"].items()
            }
            for group, one in groups.items():
                missing = {layer_of(name) for name in one.operations} - set(layers.get(group, {}))
                if not one.resilient and missing:
                    raise RedcaneError(f"resilience: layer {missing.pop()} of group {group} is missing; analyse again")
            return cls(settings, int(data["images"]), clean, groups, layers)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RedcaneError(f"resilience: not a result of the analysis ({error}); analyse again") from None


def _curve(
    keys: tuple[str, ...], accuracies: dict[float, tuple[float, ...]], clean: float, settings: ResilienceSettings
) -> Curve:
    means = {nm: statistics.fmean(values) for nm, values in accuracies.items()}
    critical = critical_nm(clean, means, settings.tolerance_points)
    return Curve(keys, accuracies, critical, critical >= settings.resilient_nm)


def _curve_to_json(curve: Curve) -> dict[str, Any]:
    points = [
        {
            "nm": nm,
            "mean": curve.mean(nm),
            "std": curve.deviation(nm),
            "min": min(values),
            "max": max(values),
            "accuracies": list(values),
        }
        for nm, values in curve.accuracies.items()
    ]
    marks = {"critical_nm": curve.critical_nm, "resilient": curve.resilient}
    return {"operations": list(curve.operations), **marks, "points": points}


def analyze(network: Network, split: Split, settings: ResilienceSettings, partial: Path | None = None) -> Resilience:
    """Run steps 2-5 on a split (the validation split, so that the test split stays unseen by every choice).

    Points are appended to `partial` (JSON lines) as they are found; when it is there at the start, the points that it
    has for the same weights, images and batch are not computed again.
    """
    count = min(settings.images or len(split), len(split))
    points = _Points(network, Split(split.images[:count], split.labels[:count]), settings, partial)
    found = operations(network)
    by_group = {group: tuple(o.key for o in found if o.group == group) for group in GROUPS}
    groups = {group: points.curve(keys, GROUPS[group]) for group, keys in by_group.items() if keys}
    layers: dict[str, dict[str, Curve]] = {}
    for group, curve in groups.items():
        if not curve.resilient:
            by_layer: dict[str, list[str]] = {}
            for key in curve.operations:
                by_layer.setdefault(layer_of(key), []).append(key)
            layers[group] = {
                layer: points.curve(tuple(keys), f"{GROUPS[group]}, {layer}") for layer, keys in by_layer.items()
            }
    return Resilience(settings, count, points.clean, groups, layers)


class _Points:
    """The points of the sweeps, each evaluated once, remembered in a file of JSON lines."""

    def __init__(self, network: Network, split: Split, settings: ResilienceSettings, partial: Path | None) -> None:
        self.network, self.split, self.settings, self.partial = network, split, settings, partial
        weights = b"".join(tensor.numpy().tobytes() for tensor in network.state_dict().values())
        content = weights + np.ascontiguousarray(split.images).tobytes() + split.labels.tobytes()
        self.subject = digest(digest(content).encode() + f"{settings.batch} {settings.noise_average}".encode())
        self.known = self._remembered()
        self.clean = accuracy(network, split.images, split.labels, settings.batch)

    def curve(self, keys: tuple[str, ...], title: str) -> Curve:
        """Sweep NM with noise in these operations."""
        settings = self.settings
        wanted = [(nm, seed) for nm in settings.noise_magnitudes for seed in settings.seeds]
        values = {point: self._point(keys, *point) for point in tqdm(wanted, desc=f"analyze: {title}", unit="point")}
        sweep = {nm: tuple(values[nm, seed] for seed in settings.seeds) for nm in settings.noise_magnitudes}
        return _curve(keys, sweep, self.clean, settings)

    def _point(self, keys: tuple[str, ...], nm: float, seed: int) -> float:
        name = json.dumps([self.subject, keys, nm, seed])
        if name not in self.known:
            injection = Injection(frozenset(keys), nm, self.settings.noise_average)
            if injection.nm == injection.na == 0:
                return self.clean
            self.known[name] = accuracy(
                self.network,
                self.split.images,
                self.split.labels,
                self.settings.batch,
                lambda index: noise_tap(injection, seed, index),
            )
            if self.partial:
                with self.partial.open("a") as stream:
                    stream.write(f"\n{json.dumps({'point': name, 'accuracy': self.known[name]})}")
        return self.known[name]

    def _remembered(self) -> dict[str, float]:
        """Points of an earlier, killed run; a last line that was cut off is computed again."""
        known: dict[str, float] = {}
        if self.partial is None:
            return known
        self.partial.parent.mkdir(parents=True, exist_ok=True)
        for line in self.partial.read_text(errors="replace").splitlines() if self.partial.exists() else ():
            try:
                entry = json.loads(line)
                if 0 <= entry["accuracy"] <= 1:
                    known[entry["point"]] = float(entry["accuracy"])
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
        return known
