"""Step 6 for a run: its network, images and library brought together with the search for multipliers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from flows.run import Run
from model.capture import capture
from model.emulation import Emulator
from model.exploration import explore
from model.measurements import Measurements
from model.operations import operations
from model.qnetwork import QNetwork
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
    sampled = image_codes(exact, run.dataset.train.images[: settings.images])
    captures = capture(Emulator(exact), sampled, seed=run.config.seed)
    resilience = Resilience.from_json(run.read("resilience.json"))
    costs = {name: library.cost(name) for name in tables}
    multiplications = {o.key: o.counts.multiplications for o in operations(run.network())}
    measurements = Measurements(
        exact,
        tables,
        image_codes(exact, images.images),
        images.labels,
        np.arange(len(images)) % len(run.dataset.validation),
        run.config.seed,
        kept,
    )
    by_noise = select(
        exact,
        captures,
        tables,
        costs,
        multiplications,
        {key: resilience.tolerated_nm(key) for key, _, _ in exact.products()},
        measurements.accuracy,
        accuracy(run.network(), images.images, images.labels),
        settings.budget_points,
        settings.max_kinds,
        tell,
    )
    return explore(
        by_noise,
        exact,
        captures,
        tables,
        costs,
        multiplications,
        measurements,
        settings.max_kinds,
        settings.confidence,
        settings.measurements,
        tell,
    )
