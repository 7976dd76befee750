"""`redcane simulate --layer`, `--waves`: layers alone, and waveforms of what is wrong."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flows.run import Run


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options that make `simulate` look closer, and leave verify.json alone."""
    command.add_argument(
        "--layer", action="append", metavar="NAME",
        help="check this layer alone, fed with the reference's codes (again for more layers; `all` for every one)",
    )  # fmt: skip
    command.add_argument(
        "--waves", action="store_true", help="record waveforms around the first value that differs -> waves.vcd"
    )


def look_closer(run: Run, layers: list[str] | None, waves: bool) -> str:
    """Simulate the test images, or layers alone, and say what came of it.

    Raises flows.stage.Failed with the first value that differs, and where its waveforms are.
    """
    from tqdm import tqdm  # type: ignore[import-untyped]  # it has no types

    from flows.stage import Failed
    from flows.stages import bring_up, tell
    from flows.tables import layers_table
    from flows.tools import need_simulator
    from model.quantize import image_codes
    from sim.runner import BenchFailed
    from sim.verify import first_mismatch, layer_results, single_layers, whole_images
    from sim.waves import record

    need_simulator()
    bring_up(run, "generate")
    network, rtl, settings = run.qnetwork(), run.folder / "rtl", run.config.simulate
    images = image_codes(network, run.dataset.test.images[: settings.images])
    if layers:
        names = [layer.name for layer in network.layers] if "all" in layers else layers
        experiment = single_layers(network, rtl, images, names, run.config.seed, settings.back_pressure)
    else:
        experiment = whole_images(network, rtl, images, run.config.seed, settings.back_pressure)
    try:
        with tqdm(total=len(experiment.runs), desc="simulate", unit="run") as bar:
            outcomes = experiment.simulate(lambda done: bar.update(done - bar.n))
            bar.update(len(outcomes) - bar.n)
        mismatch = first_mismatch(experiment, outcomes)
        if mismatch is None:
            size = experiment.program.parameters
            results = layer_results(experiment, outcomes) if layers else {}
            return layers_table(results, size.rows * size.columns) if layers else "no value differs"
        what = mismatch.what
        text = (
            f"image {what['image']}, boundary {what['boundary']}, index {what['index']}: expected {what['expected']}, "
            f"got {what['got']}"
        )
        if waves:
            tell("waves ...")
            path = run.folder / "waves.vcd"
            window = record(experiment, mismatch, path)
            text += f"; {path} shows it, cycles {window.first} to {window.last}"
    except BenchFailed as error:
        raise Failed(f"simulate: the accelerator does not work: {error}") from None
    raise Failed(f"simulate: {text}")
