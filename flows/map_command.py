"""`redcane map`: how a network lies on an array, and the cycles that it takes there, from its configuration alone.

Cycles depend on the network's shape and on the array, and on no value: so the network has fresh weights and exact
multipliers here, and neither data nor a training is needed.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from model.errors import RedcaneError

if TYPE_CHECKING:
    from flows.config import Config
    from hw.parameters import MultiplierKind, Size
    from hw.program import Program
    from model.qnetwork import QNetwork

    Compile = Callable[[Size], Program]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "map", help="how the layers lie on the array, and the cycles that they take", description="map: how the "
        "network's layers lie on the array: cycles, use of the PEs and traffic, by the cycle model, from the "
        "configuration alone. With --arrays or --batches, designs side by side.",
    )  # fmt: skip
    command.add_argument("config", type=Path, metavar="CONFIG", help="configuration, such as configs/digits.yaml")
    command.add_argument(
        "--arrays", nargs="+", default=[], metavar="RxC", help="compare arrays of these sizes, such as 8x8 16x16"
    )
    command.add_argument("--batches", nargs="+", type=int, default=[], metavar="N", help="compare these batches")
    command.add_argument("--why", action="store_true", help="show the ways in which the layers could lie, too")
    command.set_defaults(command=_map)


def _map(chosen: argparse.Namespace) -> None:
    from flows.config import Config
    from flows.tables import candidates_table, mapping_table
    from hw.compiler import best_mapping, compile_network

    config = Config.load(chosen.config, {})
    size = config.accelerator.size()
    sizes = [
        replace(size, rows=rows, columns=columns, batch=batch)
        for rows, columns in [_array(text) for text in chosen.arrays] or [(size.rows, size.columns)]
        for batch in chosen.batches or [size.batch]
    ]
    network, kinds = network_of(config)
    if chosen.arrays or chosen.batches:
        if chosen.why:
            raise RedcaneError("--why is about one design; leave out --arrays and --batches")
        print(compare(lambda size: compile_network(network, kinds, size), sizes))
        return
    mapping = best_mapping(network, kinds, size)
    print(mapping_table(compile_network(network, kinds, size, mapping)))
    if chosen.why:
        print("\n" + candidates_table(mapping, size.batch))


def _array(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,3})x(\d{1,3})", text)
    if not found:
        raise RedcaneError(f"--arrays: {text} is no size; give rows and columns, such as 16x16")
    return int(found[1]), int(found[2])


def compiler_of(config: Config) -> Compile:
    """Compiles the network of `network_of` for any size of accelerator."""
    from hw.compiler import compile_network

    network, kinds = network_of(config)
    return lambda size: compile_network(network, kinds, size)


def network_of(config: Config) -> tuple[QNetwork, tuple[MultiplierKind, ...]]:
    """A network of the configured shape and formats, with fresh weights (seed 0) and exact multipliers, which are what
    the PEs hold.
    """
    import torch

    from hw.generate import kinds_of
    from model.calibration import Calibration
    from model.multipliers.library import load_library
    from model.network import build
    from model.quantize import quantize

    library = load_library("embedded")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        height, width, channels = config.network.image
        shapes_only = Calibration(built := build(config.shape()), torch.rand(8, channels, height, width), fit=False)
        fresh = quantize(built, shapes_only, config.formats())
    network = library.exactly(fresh)
    return network, kinds_of(network, library.components)


def compare(compiled: Compile, sizes: Iterable[Size]) -> str:
    """A line for every size of accelerator: cycles, use of the PEs, traffic and memories, for one image."""
    from tqdm import tqdm  # type: ignore[import-untyped]  # it has no types

    from flows.tables import table
    from hw.cycles import predict

    rows = []
    for size in tqdm(list(sizes), desc="map", unit="design", leave=False):
        program = compiled(size)
        p, costs = program.parameters, predict(program).values()
        names = "cycles", "stalls", "products", "weight_bytes", "spill_bytes"
        cycles, stalls, products, *traffic = (sum(getattr(cost, name) for cost in costs) for name in names)
        pes = p.rows * p.columns
        rows.append([
            f"{p.rows} x {p.columns}", p.batch, f"{cycles / p.batch:,.0f}", f"{products / (pes * p.batch):,.0f}",
            f"{products / (cycles * pes):.1%}", f"{stalls / p.batch:,.0f}",
            *(f"{count / p.batch:,.0f}" for count in traffic), *(f"{count:,}" for count in p.memories),
        ])  # fmt: skip
    over_the_bus = "weight bytes", "activation bytes"
    head = ["array", "batch", "cycles", "limit", "use", "stalls", *over_the_bus, "activations", "votes", "ring"]
    told = "cycles, their limit, stalls and bytes over the bus for one image; memories in bytes"
    return f"{told}\n\n{table(head, rows)}"

