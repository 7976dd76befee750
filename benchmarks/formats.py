"""The number formats against each other: accuracy over the energy of the whole processing element.

    python benchmarks/formats.py [--runs runs] [--images 2000] [--networks digits,compact-mnist,compact-fashion]
    python benchmarks/formats.py --plot-only

Every multiplier of the embedded library and of EvoApproxLib (imported as `evoapprox`) takes all products of a network
alike, in every format: accuracy by exact emulation on the first test images (of the digits, all 360 and seven moved
copies of each), energy of a multiply-accumulate by benchmarks/pe_energy.py on the network's own operands, each
operation as often as it multiplies. Wants OpenSTA and qflow-tech-osu018. The networks are trained where they are not.
Results are kept beside this file as formats.json after every multiplier, so a run that was stopped goes on; networks
that are not asked for keep theirs. The plot is docs/formats.svg.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pe_energy import CYCLES, LANES, Stream, energy, map_element
from tqdm import tqdm

from flows.config import Config
from flows.run import Run
from flows.stages import bring_up
from flows.synthesize import find_liberty
from model.augmentation import moved_about
from model.capsnet import CapsNet
from model.capture import Capture, capture
from model.emulation import Emulator
from model.errors import RedcaneError
from model.files import digest, write_atomic
from model.multipliers.library import load_library
from model.opensta import find_opensta
from model.operations import operations
from model.qnetwork import Format, Product, QClassCaps, QNetwork, Requantizer
from model.quantize import image_codes, quantize
from model.training import accuracy

HERE = Path(__file__).parent
RESULTS, PLOT = HERE / "formats.json", HERE.parent / "docs" / "formats.svg"
NETWORKS = ("digits", "compact-mnist", "compact-fashion")
LIBRARIES = ("embedded", "evoapprox")
CAPTURED = 64  # training images whose operands are sampled


@dataclass(frozen=True)
class Variant:
    """A number format, where magnitudes sit, and whether weights have a scale for each output channel."""

    title: str
    format: Format
    align: int | None
    per_channel: bool = False


VARIANTS = {
    "affine": Variant("affine", "affine", None),
    "bottom": Variant("sign-magnitude, bottom", "sign-magnitude", 0),
    "top": Variant("sign-magnitude, top", "sign-magnitude", 1),
    "top-channel": Variant("sign-magnitude, top, a scale per channel", "sign-magnitude", 1, True),
}


def per_channel(quantized: QNetwork, network: CapsNet) -> QNetwork:
    """The sign-magnitude network with a weight scale for each output channel (votes: each input capsule).

    Its requantisers hold arrays, so it is no network of docs/numerics.md: only `_Emulator` and the reference take it.
    """

    def requantizers(product: Product, scales: NDArray[np.float64]) -> Requantizer:
        signs = sum(coding.kind == "signed" for coding in (product.a, product.b))
        ratio = product.a.scale / 2 ** (product.align * signs) / product.out.scale
        units = [Requantizer.for_scale(ratio * scale, product.out) for scale in scales.reshape(-1)]
        multiplier, shift = (np.array([getattr(u, name) for u in units]).reshape(scales.shape)
                             for name in ("multiplier", "shift"))  # fmt: skip
        return replace(product.requantizer, multiplier=multiplier, shift=shift)

    def weights(values: NDArray[np.float64], axes: tuple[int, ...]) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
        scales = np.maximum(np.abs(values).max(axis=axes, keepdims=True), 1e-6) / 127
        return np.floor(values / scales + 0.5).astype(np.int16), scales

    layers: list[Any] = []
    parameters = {name: value.detach().double().numpy() for name, value in network.named_parameters()}
    for layer in quantized.layers:
        values = parameters[f"{layer.name}.weight"]
        if isinstance(layer, QClassCaps):
            codes, scales = weights(values, (1, 2, 3))
            votes = replace(layer.votes, requantizer=requantizers(layer.votes, scales[:, 0]))
            layers.append(replace(layer, weights=codes, votes=votes))
            continue
        codes, scales = weights(values.transpose(0, 2, 3, 1), (1, 2, 3))
        mac = replace(layer.conv.mac, requantizer=requantizers(layer.conv.mac, scales.reshape(-1)))
        unit = mac.out.scale * mac.requantizer.multiplier / 2.0**mac.requantizer.shift
        bias = np.floor(parameters[f"{layer.name}.bias"] / unit + 0.5).astype(np.int32)
        layers.append(replace(layer, conv=replace(layer.conv, weights=codes, bias=bias, mac=mac)))
    return replace(quantized, layers=tuple(layers))


class _Sums:
    """The sums of an emulator, and requantisers that hold arrays."""

    def __init__(self, sums: Any) -> None:
        self._inner = sums

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def requantize(self, unit: Requantizer, accumulators: torch.Tensor) -> torch.Tensor:
        if isinstance(unit.multiplier, np.ndarray):
            return torch.from_numpy(unit(accumulators.numpy()))
        return self._inner.requantize(unit, accumulators)


class _Emulator(Emulator):
    """The emulator, for networks of `per_channel` too."""

    def __init__(self, network: QNetwork) -> None:
        super().__init__(network)
        self._sums: Any = _Sums(self._sums)


class Subject:
    """A trained network in all formats, with its images and the operands of its operations."""

    def __init__(self, name: str, runs: Path, images: int) -> None:
        config = Config.load(HERE.parent / "configs" / f"{name}.yaml")
        run = Run(config, runs / config.name)
        bring_up(run, "train")
        network, data = run.network(), run.dataset
        test = data.test if len(data.test) >= images else moved_about(data.test, config.recipe(), 7)
        count = images if test is data.test else len(test)
        self.images, self.labels = test.images[:count], test.labels[:count]
        self.weights = digest(run.folder / "network.safetensors")
        self.float_accuracy = accuracy(network, self.images, self.labels)
        calibration = run.calibration
        counts = {o.key: o.counts.multiplications for o in operations(network)}
        self.networks: dict[str, QNetwork] = {}
        codes_of_all = []
        self.streams: dict[str, Stream] = {}
        for key, variant in VARIANTS.items():
            quantized = quantize(network, calibration, variant.format, align=variant.align or 0)
            codes_of_all += [layer.weights.tobytes() if isinstance(layer, QClassCaps) else layer.conv.weights.tobytes()
                             for layer in quantized.layers]  # fmt: skip
            self.networks[key] = per_channel(quantized, network) if variant.per_channel else quantized
            codes = image_codes(quantized, data.train.images[:CAPTURED])
            self.streams[key] = stream(capture(_Emulator(self.networks[key]), codes), counts)
        self.codes = digest(b"".join(codes_of_all))

    def accuracy(self, variant: str, name: str, table: NDArray[np.uint16]) -> float:
        """Fraction of the images that are classified right with one multiplier for everything."""
        network = self.networks[variant]
        used = network.with_components({key: name for key, _, _ in network.products()}, {name: table})
        classes = _Emulator(used).classify(image_codes(used, self.images))
        return float((classes == self.labels).mean())


def stream(captures: Mapping[str, Capture], counts: Mapping[str, int]) -> Stream:
    """Operands for the lanes of pe_energy: each lane is in the middle of some sum of an operation, and goes on with
    other sums of it; an operation has lanes in proportion to its multiplications."""
    rng = np.random.default_rng(0)
    keys = list(captures)
    share = np.array([counts[key] for key in keys], float)
    longest = max(capture.pairs.shape[1] for capture in captures.values())
    a, b = (np.zeros((LANES, longest + CYCLES), np.uint8) for _ in range(2))
    clear = np.zeros((LANES, longest + CYCLES), np.bool_)
    a_signed, begin = np.zeros(LANES, np.bool_), np.zeros(LANES, np.int64)
    for lane, key in enumerate(rng.choice(keys, LANES, p=share / share.sum())):
        product, pairs = captures[key].product, captures[key].pairs
        terms = pairs.shape[1]
        begin[lane] = rng.integers(terms)
        length = begin[lane] + CYCLES
        chosen = pairs[rng.integers(len(pairs), size=-(-length // terms))].reshape(-1)[:length]
        a[lane, :length], b[lane, :length] = _bytes(chosen >> 8, product.a.kind), _bytes(chosen & 255, product.b.kind)
        clear[lane, :length] = np.arange(length) % terms == 0
        a_signed[lane] = product.a.kind == "signed"
    return Stream(a, b, a_signed, clear, begin)


def _bytes(codes: NDArray[np.uint16], kind: str) -> NDArray[np.uint8]:
    """Bytes of codes, in two's complement, as the element takes them."""
    if kind != "signed":
        return codes.astype(np.uint8)
    return np.where(codes > 127, 128 | (256 - codes) & 127, codes).astype(np.uint8)


def measure(names: list[str], runs: Path, images: int) -> dict[str, Any]:
    """Bring formats.json up to date."""
    liberty, opensta = find_liberty(None), find_opensta()
    if liberty is None or opensta is None:
        raise RedcaneError("this benchmark wants Debian's packages opensta and qflow-tech-osu018")
    components = {n: c for library in LIBRARIES for n, c in load_library(library).components.items() if not c.signed}
    known: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    subjects = {name: Subject(name, runs, images) for name in names}
    for name, subject in subjects.items():
        about = {"weights": subject.weights, "codes": subject.codes, "images": len(subject.labels)}
        about["float"] = subject.float_accuracy
        if known.get(name, {}).get("about") != about:
            known[name] = {"about": about, "results": {key: {} for key in VARIANTS}}
    for component in tqdm(components.values(), desc="formats", unit="multiplier"):
        for key, variant in VARIANTS.items():
            for name, subject in subjects.items():
                results = known[name]["results"].setdefault(key, {})
                if component.name not in results:
                    element = map_element(component, variant.align, liberty, opensta)
                    results[component.name] = {
                        "accuracy": round(subject.accuracy(key, component.name, component.table), 6),
                        "energy_pj": energy(element, component, variant.align, subject.streams[key], liberty),
                        "area": element.area,
                    }
        write_atomic(RESULTS, json.dumps(known, indent=1) + "\n")
    return known


def pareto(results: Mapping[str, Mapping[str, Any]]) -> list[tuple[float, float, str]]:
    """(energy, accuracy, name) of what no other multiplier beats in both, by growing energy."""
    front: list[tuple[float, float, str]] = []
    for name, r in sorted(results.items(), key=lambda item: (item[1]["energy_pj"]["total"], -item[1]["accuracy"])):
        if not front or r["accuracy"] > front[-1][1]:
            front.append((r["energy_pj"]["total"], r["accuracy"], name))
    return front


def summary(known: Mapping[str, Any], budget: float = 0.005) -> str:
    """By network and format: how many multipliers keep the accuracy, and the element that takes the least energy."""
    lines = [f"| network | format | within {100 * budget:g} points | least energy pJ | multiplier | accuracy % | "
             "exact multiplier: pJ | accuracy % |", "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, part in known.items():
        for key, results in part["results"].items():
            enough = {n: r for n, r in results.items() if r["accuracy"] >= part["about"]["float"] - budget}
            exact = results["mul8u_1JFF"]
            least = min(enough, key=lambda n: enough[n]["energy_pj"]["total"], default=None)
            found = "- | - | -" if least is None else (f"{results[least]['energy_pj']['total']:.1f} | {least} | "
                                                       f"{100 * results[least]['accuracy']:.2f}")  # fmt: skip
            lines.append(f"| {name} | {VARIANTS[key].title} | {len(enough)} of {len(results)} | {found} | "
                         f"{exact['energy_pj']['total']:.1f} | {100 * exact['accuracy']:.2f} |")  # fmt: skip
    return "\n".join(lines)


def plot(known: Mapping[str, Any]) -> None:
    """docs/formats.svg: every multiplier in every format, and the best ones of each format joined."""
    import matplotlib

    matplotlib.use("svg")
    # the salt: the same bytes every time
    matplotlib.rcParams |= {"svg.hashsalt": "redcane", "svg.fonttype": "none", "font.size": 8}
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(known), figsize=(3.4 * len(known), 3.6), layout="constrained", squeeze=False)
    colours = dict(zip(VARIANTS, ("#c0392b", "#7fb3d5", "#1f618d", "#27ae60"), strict=True))
    for axis, (name, part) in zip(axes[0], known.items(), strict=True):
        for key, everything in part["results"].items():
            # a multiplier that is constantly zero needs no element at all
            results = {name: r for name, r in everything.items() if r["energy_pj"]["total"] > 0}
            x = [r["energy_pj"]["total"] for r in results.values()]
            loss = [max(100 * (part["about"]["float"] - r["accuracy"]), 0.01) for r in results.values()]
            axis.scatter(x, loss, s=7, color=colours[key], alpha=0.55, linewidths=0)
            front = pareto(results)
            axis.plot([e for e, _, _ in front], [max(100 * (part["about"]["float"] - a), 0.01) for _, a, _ in front],
                      color=colours[key], linewidth=1.2, label=VARIANTS[key].title)  # fmt: skip
        axis.axhline(0.5, color="grey", linewidth=0.6, linestyle=":")
        axis.set(title=name, xlabel="energy of the element, pJ a product", yscale="log", ylim=(100, 0.009))
    axes[0][0].set_ylabel("points of accuracy lost against float")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=len(VARIANTS), fontsize=7)
    figure.savefig(PLOT, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--plot-only", action="store_true")
    chosen = parser.parse_args()
    try:
        known = json.loads(RESULTS.read_text()) if chosen.plot_only else measure(
            chosen.networks.split(","), chosen.runs, chosen.images)  # fmt: skip
    except RedcaneError as error:
        sys.exit(str(error))
    plot(known)
    print(summary(known))


if __name__ == "__main__":
    main()
