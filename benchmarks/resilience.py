"""Steps 1 to 6 on the CapsNet of MNIST in its original sizes: our analysis against the plain sweep, in one process.

    python benchmarks/resilience.py WEIGHTS [--images 600] [--batch 50] [--share 0.05] [--store FILE]
    python benchmarks/resilience.py WEIGHTS --costs ...    # costs only, for more images: not the plain sweep's marks
    python benchmarks/resilience.py --noise [WEIGHTS]      # what noise costs beyond an inference, by group, and peers

The plain sweep takes one whole inference for every magnitude, noise seed and batch, in every group and then in every
layer of the groups that are not resilient. Its multiply-accumulates are counted exactly. Of its units the `share`,
evenly spread, is run as it would run them (torch's inference with a tap that adds noise), timed, and compared bit for
bit with ours; its marks are those of all its units, measured behind shared clean prefixes (`--store` keeps them, so
that a stopped benchmark goes on; 1.0 runs every unit the plain way too). Times are CPU times of one thread. Without
WEIGHTS (published ones, weights/capsnet-mnist.safetensors) they are random, which tells costs only. Results are kept
beside this file as resilience.json, resilience-costs.json and resilience-noise.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from flows.selected import of_switching
from model import datasets
from model.capsnet import CapsNet, CapsNetShape
from model.capsules import lengths
from model.capture import capture
from model.datasets import Split
from model.emulation.emulator import Emulator
from model.multipliers.library import load_library
from model.noise import Injection, add_noise, noise_key, noise_tap
from model.operations import GROUPS, operations, total
from model.points import InProcess, Subject, Unit, keep_memory
from model.published import load_published
from model.quantize import image_codes, quantize
from model.resilience import Resilience, ResilienceSettings, analyze, subject
from model.selection import Selection, select
from model.store import Store
from model.tape import Tape
from model.training import accuracy, initial

ORIGINAL = CapsNetShape((28, 28, 1), 256, 9, 32, 8, 9, 2, 10, 16)  # Sabour et al., 2017
SELECTION = 100  # images on which step 6 measures an assignment


class Timed(InProcess):
    """Measures here, and counts the CPU time of it."""

    seconds = 0.0

    def submit(self, units: tuple[Unit, ...]) -> Any:
        start = time.thread_time()
        result = super().submit(units)
        self.seconds += time.thread_time() - start
        return result


def plain(of: Subject, unit: Unit) -> bytes:
    """A unit as the plain sweep runs it."""
    start = unit.batch * of.batch
    images, labels = (torch.from_numpy(a[start : start + of.batch]) for a in (of.split.images, of.split.labels))
    tap = noise_tap(Injection(frozenset(unit.operations), unit.nm, unit.na), unit.seed, unit.batch)
    with torch.inference_mode():
        right = lengths(of.network(images, tap)).argmax(dim=1) == labels
    return np.packbits(right.numpy()).tobytes()


def measured_by(ours: InProcess, units: list[Unit]) -> list[bytes]:
    """What our way makes of units, one by one."""
    return [ours.prober.measure([unit])[0] for unit in units]


def units_of(result: Resilience, of: Subject) -> list[Unit]:
    """All noisy units of an exhaustive sweep, equal ones (a group of one layer) once."""
    return [
        Unit(curve.operations, nm, 0.0, seed, batch)
        for curve in curves(result)
        for nm in result.settings.noise_magnitudes
        if nm
        for seed in result.settings.seeds
        for batch in range(of.batches)
    ]


def marks(result: Resilience) -> dict[str, tuple[float, bool]]:
    """Critical NM and resilience of every group and layer."""
    curves = result.groups | {f"{g}/{n}": c for g, layers in result.layers.items() for n, c in layers.items()}
    return {name: (curve.critical_nm, curve.resilient) for name, curve in curves.items()}


def assign(network: CapsNet, data: datasets.Dataset, result: Resilience, known: dict[str, float]) -> Selection:
    """Step 6 with the embedded library, by the tolerated noise; accuracies of assignments are measured once."""
    library = load_library()
    exact = library.exactly(quantize(network, torch.from_numpy(data.train.images[:64])))
    tables = {name: component.table for name, component in library.components.items()}
    split = Split(data.validation.images[:SELECTION], data.validation.labels[:SELECTION])

    def measure(exactly: dict[str, str], chosen: dict[str, str], allowed: float) -> tuple[float, float, None]:
        key = json.dumps(chosen)
        if key not in known:
            classes = Emulator(exact.with_components(chosen, tables)).classify(image_codes(exact, split.images))
            known[key] = float((classes == split.labels).mean())
        return known[key], 100 * (known[json.dumps(exactly)] - known[key]), None

    captures = capture(Emulator(exact), image_codes(exact, data.train.images[:16]), sums=2**10, pairs=2**18)
    return select(
        exact,
        captures,
        tables,
        of_switching(library, exact, captures, {o.key: o.counts.multiplications for o in operations(network)}),
        {key: result.tolerated_nm(key) for key, _, _ in exact.products()},
        measure,
        accuracy(network, split.images, split.labels),
        budget_points=2.0,
    )


def analysis(chosen: argparse.Namespace) -> dict[str, Any]:
    """Ours against the plain sweep."""
    network, data = weights(chosen.weights), datasets.load("mnist")
    settings = ResilienceSettings(images=chosen.images, batch=chosen.batch)
    of = subject(network, data.validation, settings)
    one = total(operations(network)).multiplications * len(of.split)  # of an inference of all images
    ours = Timed(of)
    result = analyze(network, data.validation, settings, workers=ours)
    our_macs, our_seconds = ours.prober.macs, ours.seconds

    whole = replace(settings, search="exhaustive")
    with Store(chosen.store) as store:
        exhaustive = result if chosen.costs else analyze(network, data.validation, whole, store)
        needed = units_of(exhaustive, of)
        sample = needed[:: max(1, round(1 / chosen.share))]
        found, seconds = dict(zip(sample, measured_by(ours, sample), strict=True)), 0.0
        for unit in tqdm(sample, desc="plain sweep, a share of it", unit="batch"):
            start = time.thread_time()
            alone = plain(of, unit)
            seconds += time.thread_time() - start
            assert alone == found[unit], f"the plain sweep differs at {unit}"
    # as the sweep that shares nothing but equal points; the clean accuracy comes on top
    plain_macs = one * (len(needed) // of.batches + 1)
    plain_seconds = seconds / len(sample) * (len(needed) + of.batches)
    measured = [p for c in curves(result) for p in c.points.values() if p.nm]
    facts: dict[str, Any] = {
        "weights": "trained" if chosen.weights else "random",
        "settings": asdict(settings),
        "clean_accuracy": result.clean_accuracy,
        "plain": {
            "points": len(needed) // of.batches,
            "units": len(needed),
            "units_run_plainly_and_compared": len(sample),
            "macs": plain_macs,
            "cpu_seconds": plain_seconds,
        },
        "ours": {
            "magnitudes_measured": len(measured),
            "inferences_begun": sum(point.pairs for point in measured),
            "macs": our_macs,
            "cpu_seconds": our_seconds,
        },
        "fewer_macs": plain_macs / our_macs,
        "less_time": plain_seconds / our_seconds,
        "curves": {
            " ".join(curve.operations): [[p.nm, p.pairs, p.lost] for p in curve.points.values() if p.nm]
            for curve in curves(result)
        },
        "marks": marks(result),
    }
    if not chosen.costs:
        known: dict[str, float] = {}
        assignments = [assign(network, data, each, known).assignment for each in (result, exhaustive)]
        facts |= {
            "same_marks": marks(result) == marks(exhaustive),
            "assignment": assignments[0],
            "same_assignment": assignments[0] == assignments[1],
            "plain_curves": {name: curve_means(exhaustive, name) for name in exhaustive.groups},
        }
    print(json.dumps(facts, indent=1))
    return facts


def curves(result: Resilience) -> list[Any]:
    """Every curve once."""
    every = [*result.groups.values(), *(curve for layers in result.layers.values() for curve in layers.values())]
    return list({curve.operations: curve for curve in every}.values())


def curve_means(result: Resilience, group: str) -> dict[str, float]:
    """Mean accuracy by NM."""
    return {str(nm): result.groups[group].mean(nm) for nm in result.settings.noise_magnitudes}


def weights(path: Path | None) -> CapsNet:
    """The network with the weights of a file, or random ones."""
    return (load_published(ORIGINAL, path)[0] if path else initial(ORIGINAL, 0)).eval()  # type: ignore[return-value]


def fastest(work: dict[str, Callable[[], object]], rounds: int = 7) -> dict[str, float]:
    """The least CPU time of each, taken in turns."""
    best = dict.fromkeys(work, float("inf"))
    for _ in range(rounds):
        for name, run in work.items():
            start = time.thread_time()
            run()
            best[name] = min(best[name], time.thread_time() - start)
    return best


def hooked(network: CapsNet, modules: list[nn.Module], nm: float) -> Callable[[Tensor], object]:
    """The peer: noise by forward hooks on whole modules, as one would write it with torch alone."""

    def hook(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return output + nm * (output.max() - output.min()) * torch.randn_like(output)

    def run(images: Tensor) -> object:
        handles = [module.register_forward_hook(hook) for module in modules]
        try:
            return network(images)
        finally:
            for handle in handles:
                handle.remove()

    return run


def torch_tap(keys: tuple[str, ...], nm: float) -> Callable[..., Tensor]:
    """Noise at the taps with torch's own random numbers."""

    def tap(layer: str, name: str, x: Tensor, iteration: int, operands: tuple[Tensor, ...]) -> Tensor:
        if f"{layer}.{name}" not in keys:
            return x
        generator = torch.Generator().manual_seed(iteration)
        return x + (x.max() - x.min()) * (nm * torch.randn(x.shape, generator=generator))

    return tap


def noise(chosen: argparse.Namespace) -> dict[str, Any]:
    """One noise point on one batch, whole and behind its clean prefix, beside clean inferences and peers."""
    network = weights(chosen.weights)
    images = torch.rand(chosen.batch, 1, 28, 28)
    tape = Tape(network, images)
    inference = tape.making([tape.output], {0})
    every = {f"group {group}": tuple(o.key for o in operations(network) if o.group == group) for group in GROUPS}
    every |= {o.key: (o.key,) for o in operations(network)}
    rows: dict[str, Any] = {}
    hooks = {"conv1.mac": [network.conv1], "primary.squash": [network.primary]}
    with torch.inference_mode():
        for name, keys in every.items():
            part = tape.behind(keys)
            making = tape.making(part.needs, {0})
            known = {0: images} | making.compute({0: images})

            def inject(key: str, iteration: int, x: Tensor, out: Tensor | None) -> Tensor:
                return add_noise(x, 0.05, 0.0, noise_key(0, key, iteration, 0), out)

            tap = noise_tap(Injection(frozenset(keys), 0.05), 0, 0)
            work: dict[str, Callable[[], object]] = {
                "clean": lambda: network(images),
                "clean, tape": lambda: inference.compute({0: images}),
                "noisy": lambda tap=tap: network(images, tap),  # type: ignore[misc]
                "noisy, tape": lambda m=making, p=part, i=inject: p.run(  # type: ignore[misc]
                    {0: images} | m.compute({0: images}), i
                ),
                "noisy, behind its prefix": lambda p=part, k=known, i=inject: p.run(k, i),  # type: ignore[misc]
                "noisy, torch.randn at the taps": lambda k=keys: network(images, torch_tap(k, 0.05)),  # type: ignore[misc]
            }
            if name in hooks:
                peer = hooked(network, hooks[name], 0.05)
                work["noisy, forward hooks"] = lambda peer=peer: peer(images)  # type: ignore[misc]
            best = fastest(work, chosen.rounds)
            row = {what: seconds / best["clean"] for what, seconds in best.items() if what != "clean"}
            rows[name] = row | {"clean ms an image": 1e3 * best["clean"] / chosen.batch}
            print(f"{name:26}", "  ".join(f"{what} {ratio:.3f}" for what, ratio in rows[name].items()), flush=True)
    print("ratios to a clean inference")
    return {"batch": chosen.batch, "ratios to a clean inference": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, nargs="?", metavar="WEIGHTS")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--noise", action="store_true")
    parser.add_argument("--costs", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    name, facts = ("resilience-noise", noise(chosen)) if chosen.noise else (
        "resilience-costs" if chosen.costs else "resilience", analysis(chosen)
    )
    Path(__file__).with_name(f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
