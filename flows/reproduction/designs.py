"""The final design, which the paper does not report: accuracy by exact emulation over the energy of the multipliers.

Compared are: exact multipliers, in both formats; the paper's method, which gives every operation of the affine network
(Eq. 1's codes) the cheapest component whose NM for uniform operands it tolerates; one multiplier everywhere, in both
formats; and what `redcane assign` chose. Multipliers everywhere are first tried on some validation images; those that
none beats there in both accuracy and energy are measured on the whole test set like the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm  # type: ignore[import-untyped]  # it has no stubs

from flows.run import Run
from model.datasets import Split
from model.emulation import Emulator
from model.errors import RedcaneError
from model.files import digest, read_bounded, write_atomic
from model.operations import operations
from model.qnetwork import Format, QNetwork, takes_signed
from model.quantize import image_codes, quantize
from model.resilience import Resilience
from model.selection import fits

FORMATS: tuple[Format, ...] = ("affine", "sign-magnitude")
HOPELESS = 0.05
"""Multipliers everywhere that lose more of the accuracy than this are not measured on the test set."""
_LIMIT = 2**24


def compare(run: Run, kept: Path, trial_images: int) -> dict[str, Any]:
    """Measure the designs of a run that is assigned and quantised. What is measured is kept in the file `kept`."""
    ours, accuracy = run.qnetwork(), run.read("accuracy.json", "float", "assigned")
    counts = {o.key: o.counts.multiplications for o in operations(run.network())}
    costs = {name: run.library.cost(name) for name in run.library.components}
    exact = {key: run.library.exact.name for key in counts if key in run.config.formats()}
    full = _cost(exact, counts, costs)
    tests = len(run.dataset.test)

    def row(kind: str, network: QNetwork, **more: Any) -> dict[str, Any]:
        products = {key: product for key, product, _ in network.products()}
        components = {key: product.component for key, product in products.items()}
        return {
            "kind": kind,
            "components": components,
            "formats": {key: product.format for key, product in products.items()},
            "align": {key: product.align for key, product in products.items()},
            "energy": _cost(components, counts, costs) / full,
            **more,
        }

    def tested(right: int) -> dict[str, Any]:
        return {"test": {"right": right, "images": tests}}

    measured = _Measured(kept)
    trial = Split(run.dataset.validation.images[:trial_images], run.dataset.validation.labels[:trial_images])
    everywhere: list[dict[str, Any]] = []
    unsigned = {name: c.table for name, c in run.library.components.items() if not c.signed}
    networks = {f: _quantized(run, f) for f in FORMATS}
    affine = networks["affine"]
    rows = [row("ours", ours, **tested(round(accuracy.get("finetuned", accuracy["assigned"])["test"] * tests)))]
    magnitudes = {name: run.library.get(name).figures.nm for name in unsigned}
    tolerated = _tolerated(run, affine)
    by_nm = by_noise_magnitude(tolerated, magnitudes, costs, lambda key, name: fits(affine, key, name, unsigned[name]))
    papers = affine.with_components(by_nm, unsigned)
    rows.append(row("paper", papers, tolerated=tolerated, **tested(measured.right(papers, run.dataset.test))))
    rows += [row("exact", n, **tested(measured.right(n, run.dataset.test))) for n in networks.values()]
    trials = [(f, name) for f in FORMATS for name in unsigned]
    for number_format, name in tqdm(trials, desc="reproduce: one multiplier everywhere", unit="design"):
        everything = dict.fromkeys(exact, name)
        try:
            network = networks[number_format].with_components(everything, {name: unsigned[name]})
        except RedcaneError:
            continue  # its sums could overflow: no accelerator would be made
        tried = {"right": measured.right(network, trial), "images": len(trial)}
        everywhere.append(row("everywhere", network, trial=tried))
    best = max(r["trial"]["right"] for r in everywhere) / len(trial)
    front = [r for f in FORMATS for r in pareto([r for r in everywhere if f in r["formats"].values()])
             if r["trial"]["right"] / len(trial) >= best - HOPELESS]  # fmt: skip
    for found in tqdm(front, desc="reproduce: the best of them on the test set", unit="design"):
        (name,), (number_format,) = set(found["components"].values()), set(found["formats"].values())
        network = networks[number_format].with_components(found["components"], {name: unsigned[name]})
        found |= tested(measured.right(network, run.dataset.test))
    return {
        "schema": 1,
        "library": run.library.name,
        "cost": run.library.cost_name,
        "images": tests,
        "trial_images": len(trial),
        "float": {"right": round(accuracy["float"]["test"] * tests), "images": tests},
        "budget_points": run.config.assign.budget_points,
        "multiplications": {key: counts[key] for key in exact},
        "designs": rows + everywhere,
    }


def by_noise_magnitude(
    tolerated: Mapping[str, float],
    magnitudes: Mapping[str, float],
    costs: Mapping[str, float],
    possible: Callable[[str, str], bool],
) -> dict[str, str]:
    """The paper's step 6: for every operation the cheapest component whose NM is at most what the operation tolerates.

    `magnitudes` are the components' NM for uniform operands; NA is not looked at, and nothing is measured afterwards.
    `possible(operation, component)` excludes what would overflow.
    """
    ordered = sorted(magnitudes, key=lambda name: (costs[name], magnitudes[name], name))
    return {
        key: next(name for name in ordered if magnitudes[name] <= nm and possible(key, name))
        for key, nm in tolerated.items()
    }


def pareto(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that no other one beats in the accuracy of the trial and in energy, the cheapest first."""
    front: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda r: (r["energy"], -r["trial"]["right"])):
        if not front or row["trial"]["right"] > front[-1]["trial"]["right"]:
            front.append(row)
    return front


def _cost(components: Mapping[str, str], counts: Mapping[str, int], costs: Mapping[str, float]) -> float:
    return sum(counts[key] * costs[name] for key, name in components.items())


def _tolerated(run: Run, network: QNetwork) -> dict[str, float]:
    resilience = Resilience.from_json(run.read("resilience.json"))
    return {key: resilience.tolerated_nm(key) for key, _, _ in network.products()}


def _quantized(run: Run, number_format: Format) -> QNetwork:
    images = torch.from_numpy(run.dataset.train.images[: run.config.quantize.images])
    exact = run.library.exact_of(takes_signed(number_format))
    network = quantize(run.network(), images, number_format, run.config.quantize.align)
    return network.with_components({key: exact.name for key, _, _ in network.products()}, {exact.name: exact.table})


class _Measured:
    """Right classifications by the content of network and images, in a file that survives an interruption."""

    def __init__(self, path: Path) -> None:
        self.path, self.found = path, dict[str, int]()
        if path.exists():
            try:
                content = json.loads(read_bounded(path, _LIMIT))
            except (ValueError, RecursionError):
                content = None
            if isinstance(content, dict):
                self.found = {k: v for k, v in content.items() if isinstance(v, int)}

    def right(self, network: QNetwork, split: Split) -> int:
        """How many of the split's images the integer network classifies right."""
        key = digest(json.dumps([_identity(network), digest(split.images.tobytes())]).encode())
        if not 0 <= self.found.get(key, -1) <= len(split):
            classes = Emulator(network).classify(image_codes(network, split.images))
            self.found[key] = int((classes == split.labels).sum())
            write_atomic(self.path, json.dumps(self.found))
        return self.found[key]


def _identity(value: Any) -> Any:
    """All that a quantised network consists of, with digests for arrays."""
    if isinstance(value, np.ndarray):
        array: NDArray[Any] = np.ascontiguousarray(value)
        return [str(array.dtype), list(array.shape), digest(array.tobytes())]
    if isinstance(value, QNetwork):
        return {"layers": [[type(layer).__name__, _identity(asdict(layer))] for layer in value.layers],
                "tables": _identity(value.tables), "input": _identity(asdict(value.input))}  # fmt: skip
    if isinstance(value, Mapping):
        return {str(k): _identity(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_identity(v) for v in value]
    return value if isinstance(value, int | float | str | None) else repr(value)
