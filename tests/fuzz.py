"""Random networks, drawn over time: Verilog and emulation against the reference (`make fuzz`).

    python -m tests.fuzz [--minutes M | --networks N] [--round R]

One round draws one accelerator (size, bus, buffers, multipliers) and NETWORKS networks with their assignment and a
batch of images, and runs them all in one simulation or few. There are BUILDS accelerators, whose simulations are kept
in the cache; networks are new in each round. A network that differs is shrunk and written to tests/corpus/, from where
`tests/test_corpus.py` runs it again for ever. Each round leaves a line in fuzz.jsonl in the user's cache; the tally of
this version of the hardware is told at the end. `--round` does a round again.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from platformdirs import user_cache_dir

from hw.accelerator import Accelerator
from hw.compiler import compile_network
from hw.generate import TOP
from hw.mapping import Candidate, NetworkMapping, Rank, best, map_network
from hw.parameters import MultiplierKind, Parameters, Size
from hw.pe import PE
from hw.program import Program
from hw.system import System
from hw.verilog import to_verilog
from model import qfile, reference
from model.emulation import Emulator
from model.errors import RedcaneError
from model.files import digest
from model.qnetwork import QNetwork
from sim.programs import Case, Fault, check_programs
from tests.random_deepcaps import deepcaps
from tests.random_networks import image_codes, networks
from tests.test_sim_accelerator import COMPONENTS, TABLES

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
BUILDS = 24
NETWORKS = 1000  # a round
EMULATED = 25  # one network in so many is emulated, too: to take its tables apart costs more than the rest
SHRINKING = 300  # seconds
ROOM = {
    "activation_bytes": 16384,
    "vote_words": 2048,
    "bias_words": 64,
    "pixels": 256,
    "program_words": 16384,
    "squash_tables": 16,
    "exp_tables": 4,
}
FEATURES = "affine", "split", "padding", "shared_kernels", "adder", "row_ends", "spill"


@dataclass(frozen=True)
class Build:
    """An accelerator with room for small networks, some for DeepCaps too, and how the memory behind it behaves."""

    rows: int
    columns: int
    bus_bits: int
    weight_words: int
    affine: bool
    split: bool
    multipliers: tuple[str, ...]  # in the order of the PEs' selector
    latency: int
    hold: float
    deepcaps: bool
    row_ends: int
    spill: bool

    @property
    def kinds(self) -> tuple[MultiplierKind, ...]:
        return tuple(
            MultiplierKind(name, f"mul_{name}", signed=name.startswith("signed")) for name in self.multipliers
        )

    @property
    def parameters(self) -> Parameters:
        return Parameters(
            self.kinds, self.rows, self.columns, self.affine, self.split, padding=True, shared_kernels=self.deepcaps,
            adder=self.deepcaps, row_ends=self.row_ends, spill=self.spill, bus_bits=self.bus_bits,
            weight_words=self.weight_words, **ROOM,
        )  # fmt: skip

    def size(self, batch: int, activation_bytes: int | None = None) -> Size:
        return Size(self.rows, self.columns, batch, self.bus_bits, self.weight_words, activation_bytes)

    def write(self, folder: Path) -> list[Path]:
        """The Verilog, and where it is."""
        system = System(Accelerator(self.parameters), self.rows * self.columns)
        texts = {TOP: to_verilog(system, TOP), "pe": to_verilog(PE(self.kinds), "pe")}
        texts |= {COMPONENTS[name].module: COMPONENTS[name].verilog for name in self.multipliers}
        for name, text in texts.items():
            (folder / f"{name}.v").write_text(text)
        return sorted(folder.glob("*.v"))


def build(number: int) -> Build:
    """Accelerator `number` of BUILDS: always the same."""
    rng = np.random.default_rng(number)
    rows, columns = (int(n) for n in rng.choice([4, 8, 16], 2, p=[0.5, 0.4, 0.1]))
    buses = [bits for bits in (32, 64, 128, 256, 512) if bits <= 8 * rows * columns]
    names = sorted(TABLES)
    held = [str(rng.choice([n for n in names if n.startswith("signed") == signed])) for signed in (False, True)]
    held += [n for n in names if n not in held and rng.random() < 0.5]
    return Build(
        rows, columns, int(rng.choice(buses)), int(rng.choice([2, 4, 16, 256])), rng.random() < 0.8,
        rng.random() < 0.8, tuple(str(n) for n in rng.permutation(held)), int(rng.integers(1, 100)),
        float(rng.choice([0.0, 0.3, 0.6], p=[0.5, 0.4, 0.1])), rng.random() < 0.5, int(rng.choice([0, 2, 4, 4])),
        rng.random() < 0.5,
    )  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """A network, how many images a batch has, where their codes come from, where the way comes from in which the
    network lies on the array, and whether its activations have as little room on the chip as they can.
    """

    network: QNetwork
    batch: int
    images_seed: int
    mapping_seed: int
    narrow: bool

    @property
    def key(self) -> str:
        """The same for the same network and images."""
        return digest(pickle.dumps(self))

    @property
    def images(self) -> np.ndarray:
        return image_codes(np.random.default_rng(self.images_seed), self.network, self.batch)

    def mapping(self, chosen: Build) -> NetworkMapping:
        """Of the seeds, every other one stands for the best mapping that the accelerator can have, with all of its
        accumulators, the others for any mapping with some of them.
        """
        rng = np.random.default_rng(self.mapping_seed)

        def choose(options: Sequence[Any], rank: Rank) -> Any:
            can = [o for o in options if not (isinstance(o, Candidate) and o.row_ends > chosen.row_ends)]
            return best(can, rank) if self.mapping_seed % 2 else can[rng.integers(len(can))]

        p = replace(chosen.parameters, batch=self.batch)
        return map_network(self.network, p, choose, p.pixels if self.mapping_seed % 2 else int(rng.integers(10, 64)))

    def compiled(self, chosen: Build) -> Program:
        """For the least activation memory that will do, if that is wanted. Raises RedcaneError."""
        mapping = self.mapping(chosen)
        for limit in (128, 256, 512, 1024, 2048) if self.narrow else ():
            with suppress(RedcaneError):
                return compile_network(self.network, chosen.kinds, chosen.size(self.batch, limit), mapping)
        return compile_network(self.network, chosen.kinds, chosen.size(self.batch), mapping)

    def case(self, chosen: Build) -> Case | None:
        """Compiled for an accelerator; None where it has no room for it."""
        try:
            program = self.compiled(chosen)
        except RedcaneError:
            return None
        needed, room = program.parameters, chosen.parameters
        fits = all(getattr(needed, name) <= getattr(room, name) for name in (*ROOM, *FEATURES))
        return Case(self.network, program, self.images) if fits else None


@st.composite
def drawn(draw: st.DrawFn, chosen: Build) -> Drawn:
    """A network with an assignment of the multipliers that the accelerator holds."""
    narrow = chosen.spill and draw(st.booleans())
    network = draw(deepcaps() if chosen.deepcaps and draw(st.booleans()) else networks(wide=narrow))
    by_sign = {sign: [n for n in chosen.multipliers if n.startswith("signed") == sign] for sign in (False, True)}
    assignment = {
        key: draw(st.sampled_from(by_sign[product.format == "twos-complement"]))
        for key, product, _ in network.products()
    }
    network = network.with_components(assignment, TABLES)
    seeds = st.integers(0, 2**16)
    return Drawn(network, draw(st.integers(1, 3)), draw(seeds), draw(seeds), narrow)


def each_drawn(number: int, chosen: Build, most: int, look: Callable[[Drawn], None], shrink: bool = False) -> None:
    """Show the networks of a round to `look`; with `shrink`, what it raises for comes again, smaller and smaller."""

    @seed(number)
    @settings(
        max_examples=most, database=None, deadline=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate], report_multiple_bugs=False,
    )  # fmt: skip
    @given(drawn(chosen))
    def show(one: Drawn) -> None:
        look(one)

    show()


Check = Callable[[list[Case]], list[Fault | None]]


@contextmanager
def on(chosen: Build) -> Iterator[Check]:
    """Gives a function that checks cases on an accelerator."""
    with tempfile.TemporaryDirectory(prefix="redcane-fuzz-") as name:
        sources = chosen.write(Path(name))

        def check(cases: list[Case]) -> list[Fault | None]:
            return check_programs(sources, chosen.parameters, cases, latency=chosen.latency, hold=chosen.hold)

        yield check


def emulated(case: Case) -> Fault | None:
    """Where the emulation's class is not the reference's."""
    for index, (image, found) in enumerate(zip(case.images, Emulator(case.network).classify(case.images), strict=True)):
        wanted = int(reference.run(case.network, image)["class"])
        if found != wanted:
            return {"image": index, "boundary": "emulation", "index": [], "expected": wanted, "got": int(found)}
    return None


def one_round(number: int, most: int, corpus: Path = CORPUS) -> dict[str, Any]:
    """Draw and check a round; what it came to, with the differences found, of which the first is kept."""
    chosen, begin = build(number % BUILDS), sum(os.times()[:4])
    every: list[Drawn] = []
    each_drawn(number, chosen, most, every.append)
    cases = [(one, case) for one in every if (case := one.case(chosen))]
    with on(chosen) as check:
        faults = check([case for _, case in cases])
        faults = [
            fault or (emulated(case) if index % EMULATED == 0 else None)
            for index, (fault, (_, case)) in enumerate(zip(faults, cases, strict=True))
        ]
        differences = [{"network": index, "fault": fault} for index, fault in enumerate(faults) if fault]
        if differences:
            known = {one.key: fault for (one, _), fault in zip(cases, faults, strict=True)}
            kept = shrunk(number, chosen, most, known, check)
            if kept:
                differences[0]["kept"] = str(write_case(corpus / f"round_{number}", chosen, *kept))
    seconds = sum(os.times()[:4]) - begin
    return {
        "round": number, "build": number % BUILDS, "networks": len(cases), "images": sum(one.batch for one, _ in cases),
        "skipped": len(every) - len(cases), "differences": differences, "seconds": round(seconds, 2),
    }  # fmt: skip


def shrunk(number: int, chosen: Build, most: int, known: dict[str, Fault | None], check: Check) -> Any:
    """The smallest network that hypothesis finds from the first of a round that is known to differ, and its fault; None
    where none differs alone.
    """
    best: tuple[Drawn, Fault] | None = None
    alone: dict[str, Fault | None] = {}
    end = time.monotonic() + SHRINKING

    def look(one: Drawn) -> None:
        nonlocal best
        if one.key not in alone:
            case = one.case(chosen) if known.get(one.key, True) else None
            alone[one.key] = (check([case])[0] or emulated(case)) if case and time.monotonic() < end else None
        if fault := alone[one.key]:
            best = one, fault
            raise AssertionError

    with suppress(AssertionError):
        each_drawn(number, chosen, most, look, shrink=True)
    return best


def write_case(case: Path, chosen: Build, one: Drawn, found: Any) -> Path:
    """Write a case that `replay` reads."""
    case.mkdir(parents=True, exist_ok=True)
    qfile.save(one.network, case / "qmodel")
    np.save(case / "images.npy", one.images)
    told = {"build": asdict(chosen), "mapping_seed": one.mapping_seed, "narrow": one.narrow, "found": found}
    (case / "case.json").write_text(json.dumps(told, indent=1) + "\n")
    return case


def replay(case: Path) -> Fault | None:
    """The difference that a case in the corpus shows today."""
    told = json.loads((case / "case.json").read_text())
    chosen = Build(**{**told["build"], "multipliers": tuple(told["build"]["multipliers"])})
    network, images = qfile.load(case / "qmodel"), np.load(case / "images.npy", allow_pickle=False)
    program = Drawn(network, len(images), 0, told["mapping_seed"], told["narrow"]).compiled(chosen)
    one = Case(network, program, images)
    with on(chosen) as check:
        return check([one])[0] or emulated(one)


def version() -> str:
    """What is under test: a digest of the hardware's and the reference's sources."""
    sources = [HERE.parent / "hw", HERE.parent / "model" / "reference.py"]
    files = sorted(file for source in sources for file in ([source] if source.is_file() else source.glob("*.py")))
    return digest("".join(digest(file) for file in files).encode())[:12]


def tally_file() -> Path:
    return Path(os.environ.get("REDCANE_CACHE") or user_cache_dir("redcane")) / "fuzz.jsonl"


def tally(path: Path, tested: str) -> str:
    """What the rounds in a file came to, for this version and for all."""
    rounds = [json.loads(line) for line in path.read_text().splitlines()]
    lines = []
    for name, chosen in ((f"version {tested}", [r for r in rounds if r["version"] == tested]), ("all", rounds)):
        networks, images = (sum(r[key] for r in chosen) for key in ("networks", "images"))
        differing = sum(len(r["differences"]) for r in chosen)
        lines.append(f"{name}: {networks:,} networks, {images:,} images, {len({r['build'] for r in chosen})} builds, "
                     f"{differing} differ")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--networks", type=int, help="how many to check, in place of a time")
    parser.add_argument("--round", type=int, help="the round to begin with, in place of a random one")
    chosen = parser.parse_args()
    number = secrets.randbelow(2**31) if chosen.round is None else chosen.round
    tested, path, begin = version(), tally_file(), time.monotonic()
    path.parent.mkdir(parents=True, exist_ok=True)
    done = differing = 0
    seconds = 0.0
    while done < chosen.networks if chosen.networks else time.monotonic() < begin + 60 * chosen.minutes:
        told = one_round(number, min(NETWORKS, chosen.networks - done) if chosen.networks else NETWORKS)
        with path.open("a") as file:
            file.write(json.dumps({"version": tested, **told}) + "\n")
        for difference in told["differences"]:
            print(f"round {number}, network {difference['network']}: {difference['fault']}; "
                  f"{difference.get('kept', 'shown by --round')}", flush=True)  # fmt: skip
        done, differing, number = done + told["networks"], differing + len(told["differences"]), number + 1
        seconds += told["seconds"]
        print(f"round {told['round']}: build {told['build']}, {done:,} networks, {differing} differ, "
              f"{60 * done / seconds:,.0f} a minute of processor time", flush=True)  # fmt: skip
    print(tally(path, tested))
    raise SystemExit(1 if differing else 0)


if __name__ == "__main__":
    main()
