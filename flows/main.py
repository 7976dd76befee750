"""The command line: `redcane`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import (
    characterize_command,
    evolve_command,
    fetch_command,
    map_command,
    profile_command,
    publish_command,
    reproduce_command,
    simulate_command,
    spread_command,
)
from flows.interruptions import interruptions
from model.errors import RedcaneError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flows.run import Run

STAGES = {
    "train": "train the network -> network.safetensors",
    "analyze": "inject noise, group by group and layer by layer -> resilience.json",
    "assign": "choose a multiplier for every operation -> assignment.yaml",
    "finetune": "train the weights for the assigned multipliers -> finetuned.safetensors, qmodel/",
    "quantize": "8-bit codes and integer constants -> qmodel/",
    "generate": "the accelerator as Verilog -> rtl/",
    "simulate": "the Verilog against the integer reference on test images -> verify.json",
    "synthesize": "cells, transistors and areas -> synthesis.json",
    "report": "everything on one page -> report.html",
    "run": "all of these (finetune where it is configured), and a summary",
}

FINETUNE_EPOCHS = 3  # of the command `finetune` where nothing else is said
BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 (the design failed), 2 (bad input), 130 (stopped with Ctrl-C)."""
    chosen = _parser().parse_args(arguments)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "10")  # seconds: a log wants fewer lines than a terminal
    with interruptions() as interrupted:
        try:
            chosen.command(chosen)
            return 0
        except (KeyboardInterrupt, Exception) as error:
            if interrupted or isinstance(error, KeyboardInterrupt):
                return _say("stopped; the same command goes on from here", INTERRUPTED)
            return _answer(error)


def _answer(error: Exception) -> int:
    """Say what went wrong and return the exit code; an error that nobody foresaw is raised again."""
    from flows.stage import Failed

    if isinstance(error, RedcaneError):
        return _say(error, BAD_INPUT)
    if isinstance(error, Failed):
        return _say(error, FAILED)
    if isinstance(error, BrokenPipeError):  # the reader of our output, such as `head`, has seen enough
        sys.stdout = None  # so that Python does not try to flush it
        return 0
    if isinstance(error, OSError):  # a full disk, a folder that may not be written
        return _say(f"{error.filename or 'the system'}: {error.strerror or error}", BAD_INPUT)
    raise error


def _say(what: object, code: int) -> int:
    print(f"redcane: {what}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="redcane", description="From a capsule network to a verified approximate accelerator."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, text in STAGES.items():
        command = commands.add_parser(
            name, help=text, description=f"{name}: {text}. Brings up to date whatever comes before."
        )
        _add_run_arguments(command)
        if name == "simulate":
            simulate_command.add_arguments(command)
        command.set_defaults(command=_stage, stage=name)
    command = commands.add_parser(
        "operations", help="the operations of a network, by layer and group, with their counts"
    )
    _add_run_arguments(command)
    command.set_defaults(command=_operations)
    map_command.add_parser(commands)
    publish_command.add_parser(commands)
    reproduce_command.add_parser(commands, _add_run_options)
    spread_command.add_parser(commands, _add_run_options)
    library = commands.add_parser("library", help="the multipliers to choose from")
    actions = library.add_subparsers(title="actions", metavar="ACTION", required=True)
    action = actions.add_parser("import", help="import a folder of EvoApproxLib (its v1.0 layout)")
    action.add_argument("path", type=Path, metavar="PATH", help="the folder")
    action.add_argument("--name", default="evoapprox", help="what to call the library (default: %(default)s)")
    operands = action.add_mutually_exclusive_group()
    operands.add_argument("--signed", action="store_true", default=None,
                          help="circuits that do not say it have two's complement operands")  # fmt: skip
    operands.add_argument("--unsigned", action="store_false", dest="signed", default=None,
                          help="circuits that do not say it have unsigned operands")  # fmt: skip
    action.set_defaults(command=_import)
    action = actions.add_parser("list", help="show all multipliers")
    action.add_argument("--library", metavar="NAME", help="of this library only")
    action.set_defaults(command=_list)
    fetch_command.add_parser(actions)
    evolve_command.add_parser(actions)
    profile_command.add_parser(actions)
    characterize_command.add_parser(actions)
    return parser


def _add_run_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "config", type=Path, metavar="CONFIG", help="configuration of the run, such as configs/digits.yaml"
    )
    _add_run_options(command)


def _add_run_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="where the runs' folders lie (default: runs)"
    )
    command.add_argument("--library", metavar="NAME", help="library of multipliers, in place of the configured one")
    command.add_argument(
        "--data", type=Path, metavar="DIR", help="folder that holds the data sets, in place of the configured one"
    )
    command.add_argument(
        "--train-anew", action="store_true", help="train, though the configuration names published weights"
    )
    command.add_argument("--liberty", type=Path, metavar="FILE", help="Liberty file to give areas")
    command.add_argument("--fpga", choices=("ecp5", "xilinx"), help="FPGA family to map to as well")
    command.add_argument(
        "--finetune", type=int, metavar="EPOCHS", help="epochs of fine-tuning, in place of the configured number"
    )
    command.add_argument(
        "--images", type=int, metavar="N", help="test images to verify, in place of the configured number"
    )
    command.add_argument(
        "--workers", type=int, metavar="N", help="processes that analyse resilience (default: one a core, if it pays)"
    )
    command.add_argument("--scheduler", metavar="ADDRESS", help="analyse on the Dask cluster of this scheduler")


def run_of(chosen: argparse.Namespace, others: Mapping[str, Any] | None = None) -> Run:
    """The run that a command's arguments name (`_add_run_arguments`), with `others` in place of configured values."""
    from flows.config import Config
    from flows.run import Run

    overrides = {
        "assign.library": chosen.library,
        "data_dir": str(chosen.data) if chosen.data else None,
        "synthesize.liberty": str(chosen.liberty) if chosen.liberty else None,
        "synthesize.fpga": chosen.fpga,
        "simulate.images": chosen.images,
        "finetune.epochs": chosen.finetune,
        **(others or {}),
    }
    config = Config.load(chosen.config, overrides)
    if getattr(chosen, "stage", None) == "finetune" and config.finetune.epochs == 0:
        config = Config.load(chosen.config, {**overrides, "finetune.epochs": FINETUNE_EPOCHS})
    if chosen.train_anew:
        config = config.training_anew()
    if chosen.workers is not None and not 1 <= chosen.workers <= 1024:
        raise RedcaneError(f"--workers: {chosen.workers} should be a number from 1 to 1024")
    return Run(config, chosen.runs / config.name, chosen.workers, chosen.scheduler)


def _stage(chosen: argparse.Namespace) -> None:
    run = run_of(chosen)
    from flows.stages import bring_up
    from flows.summary import finetuning, summary

    if chosen.stage == "simulate" and (chosen.layer or chosen.waves):
        print(simulate_command.look_closer(run, chosen.layer, chosen.waves))
        return

    # What fine-tuning came to is told by the quantised network's accuracy.
    bring_up(run, {"run": "report", "finetune": "quantize"}.get(chosen.stage, chosen.stage))
    if chosen.stage == "run":
        print(summary(run))
    elif chosen.stage == "finetune":
        print(finetuning(run))


def _operations(chosen: argparse.Namespace) -> None:
    from flows.tables import operations_table

    print(operations_table(run_of(chosen).config.shape()))


def _import(chosen: argparse.Namespace) -> None:
    from model.multipliers.library import describe, import_folder

    print(describe(import_folder(chosen.path, chosen.name, chosen.signed)))


def _list(chosen: argparse.Namespace) -> None:
    from model.multipliers.library import describe, library_names, load_library

    print(
        "\n\n".join(describe(load_library(name)) for name in ([chosen.library] if chosen.library else library_names()))
    )


if __name__ == "__main__":
    sys.exit(main())
