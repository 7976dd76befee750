"""The final design, which the paper does not report: accuracy by exact emulation over the energy of the multipliers.

Compared are, in the paper's affine codes (Eq. 1) and in sign-magnitude: exact multipliers; the paper's method, which
gives every operation the cheapest component whose NM for uniform operands it tolerates; one multiplier everywhere; and
what `redcane assign` chose, by what switches and by the library's own costs. Multipliers everywhere are first tried on
some validation images; those that none beats there in both accuracy and energy are measured on the whole test set like
the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm  # type: ignore[import-untyped]  # it has no stubs

from flows.run import Run
from flows.selected import of_switching
from model.datasets import Split
from model.emulation import Emulator
from model.errors import RedcaneError
from model.files import digest, read_bounded, write_atomic
from model.multipliers.costs import OperationCosts
from model.multipliers.product_table import Table
from model.qnetwork import Format, QNetwork
from model.quantize import image_codes
from model.resilience import Resilience
from model.selection import fits

FORMATS: tuple[Format, ...] = ("affine", "sign-magnitude")
HOPELESS = 0.05
"""Multipliers everywhere that lose more of the accuracy than this are not measured on the test set."""
_LIMIT = 2**24


def rivals(run: Run, kept: Path, trial_images: int) -> dict[str, Any]:
    """Measure all designs but ours, of a run that is analysed. What is measured is kept in the file `kept`."""
    rows, test, library = _Rows(run), run.dataset.test, run.library
    measured = _Measured(kept)
    trial = Split(run.dataset.validation.images[:trial_images], run.dataset.validation.labels[:trial_images])
    unsigned = {name: c.table for name, c in library.components.items() if not c.signed}
    networks = {f: run.quantized(dict.fromkeys(run.config.formats(), f)) for f in FORMATS}
    magnitudes = {name: library.get(name).figures.nm for name in unsigned}
    resilience = Resilience.from_json(run.read("resilience.json"))
    tolerated = {key: resilience.tolerated_nm(key) for key in rows.exact}
    found = [rows.row("exact", network, measured.right(network, test)) for network in networks.values()]
    for network in networks.values():
        able = partial(_fits, network, unsigned)
        by_nm = by_noise_magnitude(tolerated, magnitudes, library.costs.by_name, able)
        chosen = network.with_components(by_nm, unsigned)
        found.append(rows.row("paper", chosen, measured.right(chosen, test), tolerated=tolerated))
    everywhere: dict[Format, list[dict[str, Any]]] = {f: [] for f in FORMATS}
    trials = [(f, name) for f in FORMATS for name in unsigned]
    for number_format, name in tqdm(trials, desc="reproduce: one multiplier everywhere", unit="design"):
        try:
            network = networks[number_format].with_components(dict.fromkeys(rows.exact, name), unsigned)
        except RedcaneError:
            continue  # its sums could overflow: no accelerator would be made
        tried = {"right": measured.right(network, trial), "images": len(trial)}
        everywhere[number_format].append(rows.row("everywhere", network, trial=tried))
    tried_rows = [row for of_format in everywhere.values() for row in of_format]
    hopeless = max(row["trial"]["right"] for row in tried_rows) - HOPELESS * len(trial)
    best = [(f, row) for f in FORMATS for row in pareto(everywhere[f]) if row["trial"]["right"] >= hopeless]
    for number_format, row in tqdm(best, desc="reproduce: the best of them on the test set", unit="design"):
        network = networks[number_format].with_components(row["components"], unsigned)
        row["test"] = {"right": measured.right(network, test), "images": len(test)}
    accuracy = run.read("training.json", "accuracy")["accuracy"]["test"]
    return {
        "schema": 1,
        "library": library.name,
        "cost": library.cost_name,
        "images": len(test),
        "trial_images": len(trial),
        "float": {"right": round(accuracy * len(test)), "images": len(test)},
        "multiplications": {key: rows.counts[key] for key in rows.exact},
        "designs": found + tried_rows,
    }


def ours(run: Run) -> dict[str, Any]:
    """The design of a run that is assigned and quantised, fine-tuned where that is configured."""
    accuracy, chosen_by = run.read("accuracy.json", "assigned"), run.read("selection.json", "cost")["cost"]
    test = accuracy.get("finetuned", accuracy["assigned"])["test"]
    network = run.qnetwork()
    costs = of_switching(run.library, network, run.captures(network), run.multiplications()).by_operation
    spent = sum(costs[key][product.component] for key, product, _ in network.products())
    return _Rows(run).row("ours", network, round(test * len(run.dataset.test)), chosen_by=chosen_by, spent=spent)


def add_switching(run: Run, rows: list[dict[str, Any]]) -> None:
    """Add `switched` to rows: the transistors that their multipliers switch with each operation's real operands,
    relative to exact multipliers in sign-magnitude. Operands, and so what is switched, depend on the format; those of
    ours, with weights that are fitted, are known (`spent`).
    """
    counts, known = run.multiplications(), dict[str, OperationCosts]()

    def switched(components: Mapping[str, str], formats: Mapping[str, Format], aligns: Mapping[str, int]) -> float:
        key = json.dumps([formats, aligns], sort_keys=True)
        if key not in known:
            network = run.quantized(formats, aligns)
            known[key] = of_switching(run.library, network, run.captures(network), counts)
        return sum(known[key].by_operation[operation][name] for operation, name in components.items())

    keys = run.config.formats()
    exact = switched(dict.fromkeys(keys, run.library.exact.name), dict.fromkeys(keys, "sign-magnitude"), {})
    for row in tqdm(rows, desc="reproduce: what switches", unit="design"):
        spent = row.pop("spent", None) or switched(row["components"], row["formats"], row["align"])
        row["switched"] = spent / exact


class _Rows:
    """Designs as rows of results, with their energy relative to exact multipliers."""

    def __init__(self, run: Run) -> None:
        self.counts = run.multiplications()
        self.costs = run.library.costs.by_name
        self.exact = dict.fromkeys(run.config.formats(), run.library.exact.name)
        self.images = len(run.dataset.test)

    def row(self, kind: str, network: QNetwork, right: int | None = None, **more: Any) -> dict[str, Any]:
        """A network's row; `right` is how many test images it classifies right."""
        products = {key: product for key, product, _ in network.products()}
        components = {key: product.component for key, product in products.items()}
        return {
            "kind": kind,
            "components": components,
            "formats": {key: product.format for key, product in products.items()},
            "align": {key: product.align for key, product in products.items()},
            "energy": self._cost(components) / self._cost(self.exact),
            **({} if right is None else {"test": {"right": right, "images": self.images}}),
            **more,
        }

    def _cost(self, components: Mapping[str, str]) -> float:
        return sum(self.counts[key] * self.costs[name] for key, name in components.items())


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


def _fits(network: QNetwork, tables: Mapping[str, Table], key: str, name: str) -> bool:
    return fits(network, key, name, tables[name])


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
