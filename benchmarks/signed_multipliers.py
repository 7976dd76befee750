"""Accuracy of a run's network with each signed multiplier of a library: in all its operations, and in one at a time.

`python benchmarks/signed_multipliers.py configs/digits.yaml [--library evoapprox] [--runs runs]` trains the network
where it is not trained, quantises it in the twos-complement format and computes the test images by exact emulation.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm  # type: ignore[import-untyped]  # it has no stubs

sys.path.insert(0, str(Path(__file__).parent.parent))

from flows.config import Config
from flows.run import Run
from flows.stages import bring_up
from flows.tables import table
from model.emulation import Emulator
from model.multipliers.library import load_library
from model.qnetwork import FORMATS, QNetwork
from model.quantize import OPERATIONS, image_codes, quantize
from model.training import accuracy


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--library", default="evoapprox")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    chosen = parser.parse_args()
    config = Config.load(chosen.config)
    run = Run(config, chosen.runs / config.name)
    bring_up(run, "train")
    test, calibration = run.dataset.test, torch.from_numpy(run.dataset.train.images[: config.quantize.images])

    def percent(network: QNetwork) -> str:
        classes = Emulator(network).classify(image_codes(network, test.images))
        return f"{100 * np.mean(classes == test.labels):.2f}"

    quantized = {name: quantize(run.network(), calibration, name, config.quantize.align) for name in FORMATS}
    print(f"float: {100 * accuracy(run.network(), test.images, test.labels):.2f} %; exact multipliers: "
          + ", ".join(f"{name} {percent(network)} %" for name, network in quantized.items()))  # fmt: skip
    library = load_library(chosen.library)
    exact, network = library.exact_of(signed=True), quantized["twos-complement"]
    tables = {name: component.table for name, component in library.components.items()}

    def assigned(components: Mapping[str, str]) -> str:
        return percent(network.with_components(dict.fromkeys(OPERATIONS, exact.name) | components, tables))

    rows = []
    for component in tqdm([c for c in library.components.values() if c.signed], desc="components", disable=None):
        alone = [assigned({key: component.name}) for key in OPERATIONS]
        figures = component.figures
        rows.append([component.name, f"{figures.mae_percent:.4f}", f"{figures.na:.5f}",
                     assigned(dict.fromkeys(OPERATIONS, component.name)), *alone])  # fmt: skip
    print(table(["component", "MAE %", "NA", "all", *OPERATIONS], rows))


if __name__ == "__main__":
    main()
