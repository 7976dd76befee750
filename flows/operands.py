"""The operands that the multipliers of a run's network really see, for the commands of `redcane library`."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from model.errors import RedcaneError

if TYPE_CHECKING:
    from model.capture import Capture

Histograms = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Counts [256, 256] of the operand pairs [a, b] whose product is added, and of those whose product is subtracted."""


def captured(config_path: Path, runs: Path, signed: bool = False) -> dict[str, Capture]:
    """Operands of every operation that multiplies in a run's network, by "layer.operation" in the order of execution.

    They come from training images, by the 8-bit network with exact multipliers; the network is trained first where it
    is not. Operations whose format does not take multipliers of `signed` or unsigned operands, whichever is asked for,
    are quantised in one that does: what counts is what such a multiplier would see there.
    """
    from flows.config import Config
    from flows.run import Run
    from flows.stages import bring_up
    from model.capture import capture
    from model.emulation import Emulator
    from model.qnetwork import Format, takes_signed
    from model.quantize import image_codes, quantize

    config = Config.load(config_path)
    run = Run(config, runs / config.name)
    bring_up(run, "train")
    other: Format = "twos-complement" if signed else "sign-magnitude"
    formats = {key: f if takes_signed(f) == signed else other for key, f in config.formats().items()}
    network = quantize(run.network(), run.calibration, formats, config.quantize.align)
    images = run.dataset.train.images[: config.assign.images]
    return capture(Emulator(network), image_codes(network, images), seed=config.seed)


def histograms(config_path: Path, runs: Path, signed: bool = False) -> dict[str, Histograms]:
    """How often the multipliers of each operation see each operand pair; see `captured`."""
    return {key: operands.port_histogram() for key, operands in captured(config_path, runs, signed).items()}


def convolutions(real: dict[str, Histograms]) -> Histograms:
    """The operand pairs of all convolutions together, as the paper takes them."""
    added, subtracted = np.zeros((256, 256), np.int64), np.zeros((256, 256), np.int64)
    for key, (plus, minus) in real.items():
        if key.endswith(".mac"):
            added += plus
            subtracted += minus
    return added, subtracted


def captured_weights(config_path: Path, operation: str, runs: Path, separately: bool) -> NDArray[np.int32]:
    """The weights of the operand pairs of an operation ("layer.operation") for evolution, int32 [256, 256] as [a, b].

    `separately` takes the operands as independent. Raises RedcaneError for an operation that the network does not have.
    """
    from flows.config import Config
    from model.multipliers.evolve import pair_weights

    known = list(Config.load(config_path).formats())
    if operation not in known:
        near = difflib.get_close_matches(operation[:80], known, 2, 0.4) or known
        raise RedcaneError(f"no operation `{operation[:80]}` multiplies in this network: there is {' or '.join(near)}")
    found = histograms(config_path, runs)
    if operation not in found:
        raise RedcaneError(f"{operation} never runs in this network: choose one of {', '.join(found)}")
    counts = sum(found[operation], np.zeros((256, 256), np.int64))
    return pair_weights(counts.sum(axis=1), counts.sum(axis=0)) if separately else pair_weights(counts)
