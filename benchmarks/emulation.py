"""How fast the emulation is, beside torch in float32 and a gather in NumPy, in one process.

    python benchmarks/emulation.py layers                       # some layers, several multipliers, both formats
    python benchmarks/emulation.py layers --device cuda         # the same on a GPU
    python benchmarks/emulation.py threads                      # two threads against one
    python benchmarks/emulation.py trained                      # layers of trained CapsNets on what they read, in which
                                                                # a ReLU has left zeros
    python benchmarks/emulation.py capsnet [--images 1000]      # MNIST's images through the trained original CapsNet;
                                                                # --device cuda on a GPU
    python benchmarks/emulation.py run runs/digits              # a finished run's network, against the reference

Operands of `layers` are uniformly random codes, the worst for caches and without zeros. Times are the best of several;
those of one thread are the thread's CPU time, so that neighbours on the machine disturb little. Two threads against one
are by the clock, which neighbours do disturb, and by the CPU time of both, which shows what the division itself costs.
The tables are of EvoApprox8b where $REDCANE_DATA has them (evoapprox/tables-v1.0.npz), else the embedded library's. All
that is timed is compared with the reference as well. Results are kept beside this file as emulation-MODE.json, of a GPU
as emulation-MODE-gpu.json, of a processor without AVX-512 as emulation-MODE-avx2.json or -portable.json.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hw.compiler import compile_network
from hw.cycles import predict
from hw.parameters import MultiplierKind, Size
from model import datasets, qfile, reference
from model.capsnet import CapsNetShape
from model.emulation import Emulator
from model.emulation.costs import fastest
from model.emulation.emulator import device_memory
from model.emulation.factor_sums import BITS, MOST_FACTORS, FactorSums
from model.emulation.factors import factorise
from model.emulation.kernel_sums import KernelSums
from model.emulation.lookup import LEVELS, best_level
from model.emulation.terms import exact_terms, term_table
from model.errors import RedcaneError
from model.multipliers.library import load_library
from model.multipliers.product_table import Table
from model.published import load_published
from model.qnetwork import (
    Coding,
    Product,
    QClassCaps,
    QConv,
    QConvLayer,
    QNetwork,
    Requantizer,
    Squash,
    exp_table,
)
from model.quantize import image_codes, quantize

RANKS = {"1JFF": 0, "1446": 1, "JQQ": 3, "7C1": 8, "QJD": 11, "NGR": 52, "L40": 192, "12N4": 228}  # of the errors
SIGNED, UNSIGNED = Coding("signed", 1 / 127), Coding("unsigned", 1 / 255)
LAYERS = {  # batch, height and width, channels in, out, kernel, stride, padding; what is read
    "conv1": (4, 28, 1, 256, 9, 1, 0, UNSIGNED),
    "PrimaryCaps": (1, 20, 256, 256, 9, 2, 0, UNSIGNED),
    "PrimaryCaps, batch 4": (4, 20, 256, 256, 9, 2, 0, UNSIGNED),
    "3x3 64->64": (4, 32, 64, 64, 3, 1, 1, UNSIGNED),
    "DeepCaps 3x3 256->256": (4, 8, 256, 256, 3, 1, 1, SIGNED),
}
VOTES = ("ClassCaps votes, batch 16", 16, 1152, 8, 10, 16)  # batch, capsules in, their elements, classes, elements
ON_DEVICE = 1024  # images at once on a GPU
UNIT = Requantizer(2**15, 25, 0, -127, 127)
CAPSNET = CapsNetShape((28, 28, 1), 256, 9, 32, 8, 9, 2, 10, 16)  # Sabour et al. 2017
WEIGHTS = Path(__file__).parent.parent / "weights"
TRAINED = {"capsnet-mnist": "mnist", "capsnet-fashion-mnist": "fashion-mnist"}


def best(work: Callable[[], object], clock: Callable[[], float] = time.thread_time, seconds: float = 0.25) -> float:
    """The shortest of the runs that fit `seconds`, at least three, after one to warm up."""
    work()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        start = clock()
        work()
        times.append(clock() - start)
    return min(times)


def two_against_one(work: Callable[[], object], seconds: float = 3.0) -> dict[str, float]:
    """What a second thread gains by the clock (the shortest runs) and costs in CPU time (all runs): 2 and 1 at best.

    One and two threads alternate, some tens of runs at a time: an inference, too, has work for its threads all along.
    """
    shortest, spent, runs = {1: np.inf, 2: np.inf}, {1: 0.0, 2: 0.0}, {1: 0, 2: 0}
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for threads in shortest:
            torch.set_num_threads(threads)
            work()
            began, cpu = time.perf_counter(), time.process_time()
            while time.perf_counter() - began < 0.1:
                start = time.perf_counter()
                work()
                shortest[threads] = min(shortest[threads], time.perf_counter() - start)
                runs[threads] += 1
            spent[threads] += time.process_time() - cpu
    torch.set_num_threads(1)
    return {"speed": shortest[1] / shortest[2], "CPU time": spent[2] / runs[2] / (spent[1] / runs[1])}


_EVOAPPROX = Path(os.environ.get("REDCANE_DATA") or ".") / "evoapprox" / "tables-v1.0.npz"


def multipliers() -> dict[str, Table]:
    """Product tables by name, of every rank that there is."""
    if _EVOAPPROX.is_file():
        with np.load(_EVOAPPROX, allow_pickle=False) as arrays:
            return {f"mul8u_{name} (rank {rank})": arrays[f"mul8u_{name}"] for name, rank in RANKS.items()}
    components = load_library().components
    return {name: components[name].table for name in list(components)[:: max(1, len(components) // 8)]}


def operands(format: str, a: Coding) -> tuple[Coding, Coding]:
    """Codings of both operands; `a` is that of the sign-magnitude format."""
    return (Coding("affine", 1.0, 100), Coding("affine", 1.0, 120)) if format == "affine" else (a, SIGNED)


def random_codes(rng: np.random.Generator, coding: Coding, shape: tuple[int, ...]) -> NDArray[np.int16]:
    return rng.integers(coding.lo, coding.hi + 1, shape).astype(np.int16)


class Convolution:
    """One convolution of codes (N, H, W, C): the kernel's, torch's in float32, NumPy's gather, and the reference."""

    def __init__(self, conv: QConv, x: NDArray[np.int16], table: Table) -> None:
        self.product, self.conv, self.x, self.table = conv.mac, conv, x, table
        self.network = QNetwork(x.shape[1:], conv.mac.a, (QConvLayer("conv", conv),), {conv.mac.component: table})
        cout, kernel, _, cin = conv.weights.shape
        batch, side, *_ = x.shape
        out = (side + 2 * conv.padding - kernel) // conv.stride + 1
        self.sums, self.terms = batch * out * out * cout, kernel * kernel * cin

    @classmethod
    def random(cls, size: tuple[Any, ...], format: str, table: Table) -> Convolution:
        """Of random codes."""
        batch, side, cin, cout, kernel, stride, padding, coding = size
        rng = np.random.default_rng(0)
        a, b = operands(format, coding)
        product = Product(format, a, b, SIGNED, UNIT, "table", 1)  # type: ignore[arg-type]  # one of two
        weights = random_codes(rng, b, (cout, kernel, kernel, cin))
        conv = QConv(weights, np.zeros(cout, np.int32), stride, product, padding)
        return cls(conv, random_codes(rng, a, (batch, side, side, cin)), table)

    def kernel(self, level: str) -> Callable[[], torch.Tensor]:
        terms = {key: term_table(product, self.table) for key, product, _ in self.network.products()}
        unit = KernelSums(self.network, terms, level)
        x = torch.from_numpy(self.x)

        def work() -> torch.Tensor:
            with unit.prepared():
                return self.sums_of(unit, x, self.product.requantizer)

        self.check(self.sums_of(unit, x), work())
        return work

    def plan(self, level: str) -> str:
        """What the kernel does for each term."""
        planes, factors = fastest(self.product, term_table(self.product, self.table), level, self.terms).shape
        return " + ".join([f"{planes} lookups"] * (planes > 0) + [f"{factors} products"] * (factors > 0))

    def on_device(self, device: torch.device) -> tuple[Callable[[], torch.Tensor], int | None]:
        """The sums on a device, and how many products of bytes a term takes there (None: it is looked up)."""
        terms = {key: term_table(product, self.table) for key, product, _ in self.network.products()}
        unit = FactorSums(self.network, terms, device, device_memory(device))
        x = torch.from_numpy(self.x).to(device)
        factors = factorise(terms[next(iter(terms))], exact_terms(self.product), BITS, MOST_FACTORS["cuda"])
        return (lambda: self.sums_of(unit, x)), factors and factors.rank

    def sums_of(
        self, unit: KernelSums | FactorSums, x: torch.Tensor, requantizer: Requantizer | None = None
    ) -> torch.Tensor:
        return unit.convolution("conv.mac", self.conv, x, requantizer)

    def float32(self) -> Callable[[], torch.Tensor]:
        x = torch.from_numpy(self.x).float().permute(0, 3, 1, 2).contiguous()
        weights = torch.from_numpy(self.conv.weights).float().permute(0, 3, 1, 2).contiguous()
        return lambda: torch.nn.functional.conv2d(x, weights, None, self.conv.stride, self.conv.padding)

    def gather(self) -> tuple[Callable[[], list[NDArray]], int]:
        """NumPy's `table[a, b]`, summed, for some rows and channels of the layer's length, and how many terms."""
        rng = np.random.default_rng(1)
        a, b = rng.integers(0, 256, (200, self.terms)), rng.integers(0, 256, (4, self.terms))
        table = self.table.astype(np.int32)
        return lambda: [table[a, channel].sum(axis=1) for channel in b], a.size * len(b)

    def wanted(self) -> NDArray:
        """The reference's sums of the first image and four channels."""
        few = QConv(self.conv.weights[:4], self.conv.bias[:4], self.conv.stride, self.conv.mac, self.conv.padding)
        return reference.convolution(few, self.table, self.x[0])

    def check(self, sums: torch.Tensor, codes: torch.Tensor | None = None) -> None:
        wanted = self.wanted()
        np.testing.assert_array_equal(sums[0, ..., : wanted.shape[-1]].numpy(), wanted)
        if codes is not None:
            np.testing.assert_array_equal(codes.numpy(), self.product.requantizer(sums.numpy()))


class Votes(Convolution):
    """The votes of class capsules, of capsules (N, I, Din)."""

    def __init__(self, layer: QClassCaps, x: NDArray[np.int16], table: Table) -> None:
        self.product, self.layer, self.x, self.table = layer.votes, layer, x, table
        components = {product.component: table for product in layer.products().values()}
        self.network = QNetwork((1, 1, 1), layer.votes.a, (layer,), components)
        inputs, dim_in, classes, dim = layer.weights.shape
        self.sums, self.terms = len(x) * inputs * classes * dim, dim_in

    @classmethod
    def random(cls, size: tuple[Any, ...], format: str, table: Table) -> Votes:
        """Of random codes."""
        batch, inputs, dim_in, classes, dim = size
        rng = np.random.default_rng(0)
        a, b = operands(format, SIGNED)
        product = Product(format, a, b, SIGNED, UNIT, "table", 1)  # type: ignore[arg-type]  # one of two
        weights = random_codes(rng, b, (inputs, dim_in, classes, dim))
        squash = Squash.for_scales(0.01, SIGNED)
        layer = QClassCaps("caps", weights, product, product, product, exp_table(0.1), squash, 1)
        return cls(layer, random_codes(rng, a, (batch, inputs, dim_in)), table)

    def sums_of(
        self, unit: KernelSums | FactorSums, x: torch.Tensor, requantizer: Requantizer | None = None
    ) -> torch.Tensor:
        return unit.votes(self.layer, x, requantizer)

    def float32(self) -> Callable[[], torch.Tensor]:
        x = torch.from_numpy(self.x).float().transpose(0, 1).contiguous()
        weights = torch.from_numpy(self.layer.weights).float().flatten(2)
        return lambda: torch.bmm(x, weights)

    def wanted(self) -> NDArray:
        terms = reference.products(self.layer.votes, self.table, self.x[0, :, :, None, None], self.layer.weights)
        return terms.sum(axis=1)


def measured_levels() -> tuple[str, ...]:
    """AVX2 and better, where the processor has them."""
    best_of = best_level()
    if best_of is None:
        raise SystemExit("there is no compiler: nothing to measure")
    return LEVELS[LEVELS.index("avx2") if best_of != "portable" else 0 : LEVELS.index(best_of) + 1]


def show(name: str, row: dict[str, Any]) -> None:
    """A layer's figures; of several multipliers the ends."""
    print(name)
    for label, value in row.items():
        ends = (min(value.values()), max(value.values())) if isinstance(value, dict) else (value,)
        print(f"    {label:28}", " ... ".join(f"{each:6.2f}" for each in ends), flush=True)


def layers(only: str) -> dict[str, Any]:
    """GMAC/s of every layer, by format, level and multiplier, each with the plan that was chosen."""
    levels = measured_levels()
    tables = multipliers()
    first = next(iter(tables.values()))
    rows: dict[str, Any] = {}
    sizes = {**LAYERS, VOTES[0]: VOTES[1:]}
    for name, size in ((name, size) for name, size in sizes.items() if only in name):
        kind = Votes if name == VOTES[0] else Convolution
        row: dict[str, Any] = {}
        plain = kind.random(size, "sign-magnitude", first)
        work = plain.sums * plain.terms / 1e9
        row["torch float32"] = work / best(plain.float32())
        gather, count = plain.gather()
        row["NumPy gather"] = count / 1e9 / best(gather)
        for format in ("sign-magnitude", "affine"):
            for level in levels:
                speeds = {}
                for label, table in tables.items():
                    case = kind.random(size, format, table)
                    run = case.kernel(level)
                    speeds[f"{label}: {case.plan(level)}"] = work / best(run)
                row[f"{format}, {level}"] = speeds
        rows[name] = row
        show(name, row)
    return {"unit": "GMAC/s per core", "levels": levels, "layers": rows}


def threads() -> dict[str, Any]:
    """What a second thread gains by the clock, and costs in CPU time, on every layer: 2 and 1 at best."""
    level = best_level()
    if level is None:
        raise SystemExit("there is no compiler: nothing to measure")
    name, table = list(multipliers().items())[-1]
    rows = {}
    for layer, size in {**LAYERS, VOTES[0]: VOTES[1:]}.items():
        kind = Votes if layer == VOTES[0] else Convolution
        run = kind.random(size, "sign-magnitude", table).kernel(level)
        rows[layer] = two_against_one(run)
        print(f"{layer:28}", *(f"{label} x {ratio:.2f}" for label, ratio in rows[layer].items()), flush=True)
    return {"multiplier": name, "level": level, "two threads against one": rows}


def device_layers(device: str, only: str) -> dict[str, Any]:
    """T products/s of every layer on a GPU, and their share of what its tensor cores do with bytes alone."""
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here")

    def seconds(work: Callable[[], object]) -> float:
        def finished() -> None:
            work()
            torch.cuda.synchronize()

        return best(finished, time.perf_counter)

    square = torch.randint(-128, 128, (8192, 8192), dtype=torch.int8, device=device)
    peak = 8192**3 / 1e12 / seconds(lambda: torch._int_mm(square, square.t()))
    print(f"{torch.cuda.get_device_name()}: {peak:.0f} T products of bytes a second")
    rows: dict[str, Any] = {}
    for name, size in {**LAYERS, VOTES[0]: VOTES[1:]}.items():
        if "batch 4" in name or only not in name:  # a GPU takes more images at once
            continue
        kind, layer = (Votes if name == VOTES[0] else Convolution), name.split(",")[0]
        for label, table in multipliers().items():
            case = kind.random((ON_DEVICE, *size[1:]), "sign-magnitude", table)
            run, factors = case.on_device(torch.device(device))
            case.check(run().cpu())
            speed = case.sums * case.terms / 1e12 / seconds(run)
            share = speed * factors / peak if factors else None
            rows[f"{layer}, {label}"] = {"T products/s": speed, "factors": factors, "share": share}
            print(f"{layer:16} {label:22} {factors or 'table':>5} factors {speed:8.3f} T/s", flush=True)
    device_name, versions = torch.cuda.get_device_name(), {"torch": torch.__version__}
    return {"device": device_name, **versions, "batch": ON_DEVICE, "T products of bytes/s": peak, "layers": rows}


def trained_network(name: str, images: int) -> tuple[QNetwork, torch.Tensor]:
    """A published CapsNet, quantised, and test images (N, C, H, W) of its dataset; noise where that is not at hand."""
    network, _ = load_published(CAPSNET, WEIGHTS / f"{name}.safetensors")
    try:
        data = datasets.load(TRAINED[name])
        calibration, pixels = data.train.images[:128], torch.from_numpy(data.test.images[:images])
    except RedcaneError as error:
        print(f"noise instead of {TRAINED[name]}: {error}")
        torch.manual_seed(0)
        pixels = torch.rand(images, 1, 28, 28)
        calibration = pixels[:128].numpy()
    return quantize(network, torch.from_numpy(calibration)), pixels


def trained() -> dict[str, Any]:
    """GMAC/s per core of trained CapsNets' layers on what they read of 16 test images, by level and multiplier, beside
    torch in float32. What is not summed because an activation is zero counts as done; `active` is the others' share."""
    levels = measured_levels()
    rows: dict[str, Any] = {}
    for name in TRAINED:
        network, pixels = trained_network(name, 16)
        trace = Emulator(network).run(image_codes(network, pixels))
        for layer, (source,) in network.sources():
            x = trace[source].numpy()
            cases = {label: of_layer(layer, x, label, table) for label, table in multipliers().items()}
            first = next(iter(cases.values()))
            work = first.sums * first.terms / 1e9
            row: dict[str, Any] = {"active": {}, "torch float32": work / best(first.float32())}
            for label, case in cases.items():
                terms = term_table(case.product, case.table)
                row["active"][label] = float((terms != terms[0]).any(axis=1)[case.x.astype(np.uint8)].mean())
            for level in levels:
                row[level] = {label: work / best(case.kernel(level)) for label, case in cases.items()}
            rows[f"{name}, {layer.name}"] = row
            show(f"{name}, {layer.name}", row)
    return {"unit": "GMAC/s per core", "levels": levels, "layers": rows}


def of_layer(layer: Any, x: NDArray[np.int16], name: str, table: Table) -> Convolution:
    """A CapsNet's layer on codes that it reads, all its multipliers of one name."""
    layer = layer.with_products({key: replace(p, component=name) for key, p in layer.products().items()})
    if isinstance(layer, QClassCaps):
        return Votes(layer, x.reshape(len(x), -1, layer.weights.shape[1]), table)
    return Convolution(layer.conv, x, table)


def capsnet(images: int, device: str) -> dict[str, Any]:
    """The original CapsNet on MNIST's test images (noise where they are not at hand), each operation its multiplier."""
    quantised, pixels = trained_network("capsnet-mnist", images)
    tables = {name.split()[0]: table for name, table in multipliers().items()}
    keys = [key for key, _, _ in quantised.products()]
    hardest = list(tables)[::-1]
    assignment = {key: hardest[i % len(tables)] for i, key in enumerate(keys)}
    quantised = quantised.with_components(assignment, tables)
    codes = image_codes(quantised, pixels)
    emulator = Emulator(quantised, device=device)
    rows: dict[str, Any] = {"assignment": assignment, "images": len(codes)}
    if device != "cpu":
        rows["device"] = torch.cuda.get_device_name()
    for threads in (1, 2) if device == "cpu" else (1,):
        torch.set_num_threads(threads)
        emulator.classify(codes[: 20 if device == "cpu" else len(codes)])
        start, cpu = time.perf_counter(), time.process_time()
        classes = emulator.classify(codes)
        taken, used = time.perf_counter() - start, time.process_time() - cpu
        rows[f"{threads} threads" if device == "cpu" else "on the device"] = {"seconds": taken, "cpu_seconds": used}
        print(f"{threads} threads: {len(codes)} images in {taken:.2f} s ({used:.2f} s of CPU time); "
              f"10,000 take {taken / len(codes) * 1e4:.2f} s")  # fmt: skip
    trace = emulator.run(codes[:2])
    for n in range(2):
        for name, value in reference.run(quantised, codes[n]).items():
            np.testing.assert_array_equal(trace[name][n].cpu().numpy(), value, err_msg=name)
        assert trace["class"][n] == classes[n]
    print("every boundary of two images equals the reference")
    return rows


def multiplications(network: QNetwork) -> int:
    """Multiplications of one inference, as the accelerator's array would do them."""
    names = sorted({product.component for _, product, _ in network.products()})
    program = compile_network(network, tuple(MultiplierKind(name, name) for name in names), Size())
    return sum(cost.products for cost in predict(program).values())


def finished_run(folder: Path, images: int) -> dict[str, Any]:
    """A finished run's network: seconds for an image and products a second."""
    network = qfile.load(folder / "qmodel")
    codes = np.random.default_rng(0).integers(0, 256, (images, *network.image)).astype(np.int16)
    work, emulator = multiplications(network), Emulator(network)
    torch_alone = Emulator(network, engine="torch")
    taken = {
        "emulation": best(lambda: emulator.classify(codes)) / images,
        "torch alone": best(lambda: torch_alone.classify(codes[:64])) / min(64, images),
        "NumPy reference": best(lambda: [reference.run(network, image) for image in codes[:8]]) / min(8, images),
    }
    for image, found in zip(codes[:8], emulator.classify(codes[:8]), strict=True):
        assert int(reference.run(network, image)["class"]) == found, "emulation and reference differ"
    for name, each in taken.items():
        ratio = taken["NumPy reference"] / each
        print(f"{name:16} {each * 1e3:8.3f} ms an image {work / each / 1e9:7.3f} G products/s {ratio:7.1f} x reference")
    rows = {name: {"seconds_per_image": each, "products_per_second": work / each} for name, each in taken.items()}
    return {"multiplications": work, "engines": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    one = modes.add_parser("layers")
    one.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    one.add_argument("--only", default="", help="layers with this in their name; nothing is kept")
    modes.add_parser("threads")
    modes.add_parser("trained")
    whole = modes.add_parser("capsnet")
    whole.add_argument("--images", type=int, default=1000)
    whole.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    run = modes.add_parser("run")
    run.add_argument("folder", type=Path)
    run.add_argument("--images", type=int, default=512)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.mode == "layers":
        results = layers(chosen.only) if chosen.device == "cpu" else device_layers(chosen.device, chosen.only)
    elif chosen.mode == "threads":
        results = threads()
    elif chosen.mode == "trained":
        results = trained()
    elif chosen.mode == "capsnet":
        results = capsnet(chosen.images, chosen.device)
    else:
        results = finished_run(chosen.folder, chosen.images)
    if getattr(chosen, "only", ""):
        return
    level = "gpu" if getattr(chosen, "device", "cpu") != "cpu" else best_level() or "torch"
    parts = ["emulation", chosen.mode, *([] if level == LEVELS[-1] else [level])]
    parts += [] if _EVOAPPROX.is_file() or chosen.mode == "run" else ["embedded"]
    out = Path(__file__).with_name("-".join(parts) + ".json")
    out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
