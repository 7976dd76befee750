"""Random networks, drawn over time: emulation and Verilog against the reference (`make fuzz`).

    python -m tests.fuzz [--seed S] [--count N] [--images K]

Draws networks from seed S on, N of them or until it is stopped. All networks of an array's size run on one accelerator,
large enough for any of them and with every multiplier in its PEs, so Verilator builds a handful of times and not for
each. A network that differs is written to tests/corpus/, from where `tests/test_corpus.py` runs it again for ever.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings

from hw.accelerator import Accelerator
from hw.compiler import compile_network
from hw.generate import TOP, generate
from hw.parameters import MultiplierKind, Parameters, Size
from hw.pe import PE
from hw.system import System
from hw.verilog import to_verilog
from model import qfile, reference
from model.emulation import Emulator
from model.qnetwork import QNetwork
from sim.verify import verify
from tests.random_networks import image_codes, networks
from tests.test_sim_accelerator import COMPONENTS, TABLES, with_verilog_tables

CORPUS = Path(__file__).parent / "corpus"
SHAPES = ((4, 4), (8, 4), (4, 8), (8, 8))
KINDS = tuple(MultiplierKind(name, f"mul_{name}", signed=name.startswith("signed")) for name in sorted(TABLES))
ROOM = {
    "activation_bytes": 16384,
    "vote_words": 2048,
    "bias_words": 64,
    "pixels": 128,
    "program_words": 4096,
    "tables": 4,
}


def draw(number: int) -> QNetwork:
    """The network of a number: always the same."""
    drawn: list[QNetwork] = []

    @seed(number)
    @settings(
        max_examples=2, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(networks())
    def keep(network: QNetwork) -> None:
        drawn.append(network)

    keep()
    return with_verilog_tables(drawn[-1])  # the first one is always the simplest


@cache
def hardware(size: Size) -> tuple[Parameters, dict[str, str]]:
    """Parameters with room for any network, and the Verilog made of them."""
    least = compile_network(draw(0), KINDS, size).parameters
    parameters = replace(least, affine=True, split=True, **ROOM)
    system = System(Accelerator(parameters), parameters.word_bits // 8)
    return parameters, {TOP: to_verilog(system, TOP), "pe": to_verilog(PE(KINDS), "pe")}


def fits(network: QNetwork, size: Size) -> bool:
    """Whether a network needs no more than there is."""
    needed, room = compile_network(network, KINDS, size).parameters, hardware(size)[0]
    return all(getattr(needed, name) <= getattr(room, name) for name in ROOM)


def difference(network: QNetwork, images: np.ndarray, size: Size, number: int) -> Any:
    """What the first difference is between reference, emulation and Verilog; None where there is none."""
    for index, (image, found) in enumerate(zip(images, Emulator(network).classify(images), strict=True)):
        wanted = int(reference.run(network, image)["class"])
        if found != wanted:
            return {"emulation": int(found), "reference": wanted, "image": index}
    texts = hardware(size)[1]
    with (
        tempfile.TemporaryDirectory(prefix="redcane-fuzz-") as folder,
        patch("hw.generate.kinds_of", lambda network, components: KINDS),
        patch("hw.generate.Accelerator"),
        patch("hw.generate.System"),
        patch("hw.generate.PE"),
        patch("hw.generate.to_verilog", lambda component, name: texts[name]),
    ):
        generate(network, COMPONENTS, Path(folder), size)
        labels = np.zeros(len(images), np.int64)
        return verify(network, Path(folder), images, labels, seed=number, back_pressure=0.3)["first_mismatch"]


def keep_case(
    network: QNetwork, images: np.ndarray, size: Size, number: int, found: Any, folder: Path = CORPUS
) -> Path:
    """Write a case that `replay` reads."""
    case = folder / f"case_{number}"
    case.mkdir(parents=True, exist_ok=True)
    qfile.save(network, case / "qmodel")
    np.save(case / "images.npy", images)
    (case / "case.json").write_text(
        json.dumps({"number": number, "size": asdict(size), "found": found}, indent=1) + "\n"
    )
    return case


def replay(case: Path) -> Any:
    """The difference that a case in the corpus shows today."""
    told = json.loads((case / "case.json").read_text())
    images = np.load(case / "images.npy", allow_pickle=False)
    return difference(qfile.load(case / "qmodel"), images, Size(**told["size"]), told["number"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int)
    parser.add_argument("--images", type=int, default=2)
    chosen = parser.parse_args()
    numbers = range(chosen.seed, chosen.seed + chosen.count) if chosen.count else itertools.count(chosen.seed)
    ran = differing = skipped = 0
    began = time.monotonic()
    for number in numbers:
        network, size = draw(number), Size(*SHAPES[number // 50 % len(SHAPES)])
        if not fits(network, size):
            skipped += 1
            continue
        images = image_codes(np.random.default_rng(number), network, chosen.images)
        if found := difference(network, images, size, number):
            differing += 1
            print(
                f"network {number} differs: {found}; kept as {keep_case(network, images, size, number, found)}",
                flush=True,
            )
        ran += 1
        rate = 60 * ran / (time.monotonic() - began)
        print(f"\r{ran} networks, {differing} differ, {skipped} too large, {rate:.1f} a minute", end="", flush=True)
    print()
    raise SystemExit(1 if differing else 0)


if __name__ == "__main__":
    main()
