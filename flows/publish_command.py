"""`redcane publish`: the trained network of a run as a small file of weights, for others to begin with."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.errors import RedcaneError


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command to those of `redcane`."""
    command = commands.add_parser(
        "publish",
        help="the weights of a trained network as a small file -> weights/",
        description="Brings the training up to date, stores the encoder's weights as 8-bit codes with a scale for each "
        "output channel, and measures the network before and after. Configurations take such files with `weights:`.",
    )
    command.add_argument("config", type=Path, metavar="CONFIG", help="configuration of the run")
    command.add_argument("--to", type=Path, metavar="FILE", help="default: the `weights` of the configuration")
    command.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="default: %(default)s")
    command.add_argument("--data", type=Path, metavar="DIR", help="folder that holds the data sets")
    command.set_defaults(command=publish)


def publish(chosen: argparse.Namespace) -> None:
    """Publish a run's network, trained where it is not, and say what that costs."""
    from flows.config import Config
    from flows.run import Run
    from flows.stages import accuracies, bring_up
    from model.published import About, Accuracies, stored
    from model.published import publish as write

    config = Config.load(chosen.config, {"data_dir": str(chosen.data) if chosen.data else None})
    path = chosen.to or (Path(config.weights) if config.weights else None)
    if path is None:
        raise RedcaneError(
            f"{chosen.config}: has no key `weights`, so name the file to write: --to weights/x.safetensors"
        )
    run = Run(config.training_anew(), chosen.runs / config.name)
    bring_up(run, "train")
    network, sections = run.network(), run.config.model_dump()
    after = accuracies(stored(network, replace(run.config.shape(), decoder=())), run.dataset)
    about = About(
        name=config.name,
        dataset=config.dataset,
        seed=config.seed,
        trained=Accuracies(**run.read("training.json", "accuracy")["accuracy"]),
        stored=Accuracies(**after),
        recipe={key: sections[key] for key in ("network", "train")},
        tools=run.provenance()["tools"],
    )
    write(network, path, about)
    print(
        f"{path}: {path.stat().st_size / 2**20:.1f} MB, {network.encoder_parameters():,} weights; test accuracy "
        f"{100 * about.trained.test:.2f} % as trained, {100 * about.stored.test:.2f} % as stored"
    )
