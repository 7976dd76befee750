"""Step 6 for a run: its network, images and library brought together with the search for multipliers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from flows.run import Run
from model.capture import Capture
from model.exploration import explore
from model.measurements import Measurements
from model.multipliers.costs import SWITCHING, OperationCosts
from model.multipliers.library import Library
from model.multipliers.switching import switched_transistors
from model.placement import Elsewhere
from model.qnetwork import QNetwork, takes_signed
from model.quantize import image_codes
from model.resilience import Resilience
from model.selection import Selection, select
from model.training import accuracy


def selected(run: Run, exact: QNetwork, kept: Path, tell: Callable[[str], None]) -> Selection:
    """The multipliers of a run that is analysed, whose 8-bit network with exact multipliers is `exact`.

    What is measured is kept in the file `kept`, so that a killed search goes on; `tell` shows progress.
    """
    settings, library, images = run.config.assign, run.library, run.selection_images
    tables = {name: component.table for name, component in library.components.items()}
    captures = run.captures(exact)
    movable = settings.choose_align and settings.compare_by == "switching" and settings.measurements > 0
    elsewhere = _elsewhere(run) if movable else None
    resilience = Resilience.from_json(run.read("resilience.json"))
    measurements = Measurements(
        exact,
        tables,
        image_codes(exact, images.images),
        images.labels,
        np.arange(len(images)) % len(run.dataset.validation),
        run.config.seed,
        kept,
        elsewhere and elsewhere.network,
        run.fitted,
    )
    by_noise = select(
        exact,
        captures,
        tables,
        costs_of(run, exact, captures),
        {key: resilience.tolerated_nm(key) for key, _, _ in exact.products()},
        functools.partial(measurements.judged, confidence=settings.confidence),
        accuracy(run.network(), images.images, images.labels),
        run.config.lost_before_finetuning(),
        settings.max_kinds,
        tell,
    )
    return explore(
        by_noise,
        exact,
        captures,
        tables,
        measurements,
        settings.max_kinds,
        settings.confidence,
        settings.measurements,
        tell,
        elsewhere,
        run.noise_left,
    )


def _elsewhere(run: Run) -> Elsewhere:
    """The same network with all magnitudes at the other place."""
    formats = run.config.formats()
    network = run.quantized(formats, dict.fromkeys(formats, 1 - run.config.quantize.align))
    captures = run.captures(network)
    return Elsewhere(network, captures, costs_of(run, network, captures))


def costs_of(run: Run, network: QNetwork, captures: Mapping[str, Capture]) -> OperationCosts:
    """What the multipliers of the run's library cost in a quantised network's operations, by the run's measure."""
    multiplications = run.multiplications()
    if run.config.assign.compare_by == "library":
        return of_library(run.library, network, multiplications)
    return of_switching(run.library, network, captures, multiplications)


def of_switching(
    library: Library, network: QNetwork, captures: Mapping[str, Capture], multiplications: Mapping[str, int]
) -> OperationCosts:
    """What a library's components switch in the operations of a network, whose operands are captured."""
    found: dict[str, dict[str, float]] = {}
    signed = {key: takes_signed(product.format) for key, product, _ in network.products()}
    for kind in sorted(set(signed.values())):
        suited = [c for c in library.components.values() if c.signed == kind]
        keys = [key for key, of in signed.items() if of == kind]
        operands = {key: captures[key].operands() for key in keys if key in captures}  # others never run
        switched = switched_transistors(suited, operands)
        found |= {
            key: {c.name: multiplications[key] * switched[key][c.name] if key in switched else 0.0 for c in suited}
            for key in keys
        }
    return OperationCosts(*SWITCHING, found)


def of_library(library: Library, network: QNetwork, multiplications: Mapping[str, int]) -> OperationCosts:
    """What a library's components cost in the operations of a network, the same for every operand."""
    found = {
        key: {
            c.name: multiplications.get(key, 0) * library.cost(c)
            for c in library.components.values()
            if c.signed == takes_signed(product.format)
        }
        for key, product, _ in network.products()
    }
    return OperationCosts(library.cost_name, library.costs.total, found)
