"""Step 6 for a run: its network, images and library brought together with the search for multipliers."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flows.run import Run
from model.capture import Capture
from model.exploration import explore
from model.measurements import Measurements
from model.multipliers.component import Multiplier
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
        costs_of(run, exact, captures, fitting=True),
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
        lambda network, key, table: (prospect := run.prospect(network, key, table)) and prospect.noise,
    )


def _elsewhere(run: Run) -> Elsewhere:
    """The same network with all magnitudes at the other place."""
    formats = run.config.formats()
    network = run.quantized(formats, dict.fromkeys(formats, 1 - run.config.quantize.align))
    captures = run.captures(network)
    return Elsewhere(network, captures, costs_of(run, network, captures, fitting=True))


def costs_of(
    run: Run, network: QNetwork, captures: Mapping[str, Capture], fitting: bool = False
) -> OperationCosts:
    """What the multipliers of the run's library cost in a quantised network's operations, by the run's measure: with
    the operands that are captured or, with `fitting`, those that it will have once it is fitted to them.
    """
    multiplications = run.multiplications()
    if run.config.assign.compare_by == "library":
        return of_library(run.library, network, multiplications)

    def growth(key: str, component: Multiplier) -> float:
        prospect = run.prospect(network, key, component.table) if fitting else None
        return prospect.growth if prospect else 1.0

    return of_switching(run.library, network, captures, multiplications, growth)


def of_switching(
    library: Library,
    network: QNetwork,
    captures: Mapping[str, Capture],
    multiplications: Mapping[str, int],
    growth: Callable[[str, Multiplier], float] = lambda key, component: 1.0,
) -> OperationCosts:
    """What a library's components switch in the operations of a network, whose operands are captured; `growth` tells
    what an operation's weights are multiplied by for a component.
    """
    found: dict[str, dict[str, float]] = {key: {} for key, _, _ in network.products()}
    alike: dict[tuple[tuple[str, float], ...], list[Multiplier]] = defaultdict(list)  # by the growth in operations
    for component in library.components.values():
        keys = [key for key, p, _ in network.products() if takes_signed(p.format) == component.signed]
        for key in keys:
            found[key][component.name] = 0.0  # where an operation never runs
        alike[tuple((key, growth(key, component)) for key in keys if key in captures)].append(component)
    operands: dict[tuple[str, float], NDArray[np.int64]] = {}
    for grown, components in alike.items():
        operands |= {place: captures[place[0]].grown(place[1]).operands() for place in grown if place not in operands}
        switched = switched_transistors(components, {key: operands[key, by] for key, by in grown})
        for key, of in switched.items():
            found[key] |= {name: multiplications[key] * each for name, each in of.items()}
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
