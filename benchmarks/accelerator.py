"""Cycles of a network layer by layer, against the limit of the array and against what is published of other designs.

    python benchmarks/accelerator.py [configs/capsnet-mnist.yaml] [--size 16] [--batches 1 2 3 4] [--verified FILE ...]

The network has the configuration's shape and fresh weights (seed 0), as cycles depend on no value. They come from the
cycle model; each FILE is the verify.json of a run of the same shape, array and bus, and its counters, of the RTL, are
held against the model. The limit is one multiplication a PE and cycle. Results are kept beside this file as
accelerator.json, and docs/roofline.svg is drawn from them.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from flows.config import Config
from flows.map_command import compiler_of
from flows.tables import table
from hw.cycles import predict
from hw.parameters import Size
from hw.program import Program
from model.files import read_bounded

HERE = Path(__file__).parent
ROOFLINE = HERE.parent / "docs" / "roofline.svg"

# What is published for CapsNet on MNIST (Sabour et al., 2017, three iterations), and what it is that it says. None of
# them gives cycles measured on hardware for the whole, unpruned network.
PUBLISHED = [
    ("FastCaps (Rahoof et al., IJCNN 2023; arXiv 2509.03103), abstract", "Xilinx PYNQ-Z1",
     "82 images/s with 99.26 % of the weights pruned, 1,351 with simplified routing besides"),
    ("NASCaps (Marchisio et al., ICCAD 2020), its public estimator run for this network", "16 x 16 PEs, 3 ns",
     "1.823 ms = 607,667 cycles: a model, below the 788,256 cycles that 256 PEs need at least"),
    ("CapsAcc (Marchisio et al., DATE 2019; arXiv 1811.08932), abstract", "16 x 16 PEs, 8 bits, 32 nm",
     "compared with a GPU only; no cycles"),
]  # fmt: skip


@dataclass
class Row:
    """A layer (or operation) for one batch size; all for one image."""

    batch: int
    layer: str
    macs: float
    cycles: float
    limit: float  # cycles
    stalls: float  # cycles that wait for weights
    bus_bytes: float
    measured: float | None = None  # cycles, by the counters in the RTL

    @property
    def use(self) -> float:
        return self.limit / self.cycles


def predicted(program: Program, size: Size) -> list[Row]:
    """The rows of one batch size: every layer, the class, and the sum."""
    rows: dict[str, Row] = {}
    whole = Row(size.batch, "in all", 0, 0, 0, 0, 0)
    for label, cost in predict(program).items():
        layer = label.rpartition(".")[0] or label
        for row in (rows.setdefault(layer, Row(size.batch, layer, 0, 0, 0, 0, 0)), whole):
            row.macs += cost.products / size.batch
            row.cycles += cost.cycles / size.batch
            row.limit += cost.products / (size.batch * size.rows * size.columns)
            row.stalls += cost.stalls / size.batch
            row.bus_bytes += cost.weight_bytes / size.batch
    return [*rows.values(), whole]


def measure(rows: list[Row], verified: dict[str, Any], size: Size) -> None:
    """Put the counters of a verify.json into the rows of its batch size.

    Raises SystemExit when it is of another array, or of a memory that holds back, or a layer's cycles differ from the
    model's by more than 2 %.
    """
    if verified["array"] != [size.rows, size.columns] or verified["back_pressure"]:
        raise SystemExit(f"verify.json: take one of {size.rows} x {size.columns} PEs and back_pressure 0")
    counted = verified["layers_first_batch"]
    for row in rows:
        if row.batch == verified["batch"]:
            layers = counted if row.layer == "in all" else [row.layer]
            row.measured = sum(counted[n]["cycles"] - counted[n]["output_stalls"] for n in layers) / row.batch
            if abs(row.measured - row.cycles) > 0.02 * row.cycles:
                raise SystemExit(f"{row.layer}, batch {row.batch}: {row.measured} cycles, the model says {row.cycles}")


def roofline(rows: list[Row], size: Size, path: Path) -> None:
    """Multiplications a cycle against multiplications a byte from the bus, as SVG, the same for the same rows."""
    pes, bytes_a_cycle = size.rows * size.columns, size.bus_bits // 8
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    limits = [2.0**n for n in range(-3, 13)]
    axes.plot(limits, [min(pes, bytes_a_cycle * x) for x in limits], color="black", linewidth=1)
    axes.annotate(f"{size.rows} x {size.columns} PEs", (limits[-1], pes), ha="right", va="bottom")
    axes.annotate(f"{size.bus_bits}-bit bus", (0.5, bytes_a_cycle * 0.5), ha="right", va="bottom")
    batches = sorted({row.batch for row in rows})
    for layer, marker in zip(dict.fromkeys(r.layer for r in rows if r.macs and r.layer != "in all"), "os^Dvp",
                             strict=False):  # fmt: skip
        points = [row for row in rows if row.layer == layer and row.batch in (batches[0], batches[-1])]
        x, y = [row.macs / row.bus_bytes for row in points], [row.macs / row.cycles for row in points]
        axes.plot(x, y, marker=marker, linewidth=0.5, label=layer)
        for row, at in zip(points, zip(x, y, strict=True), strict=True):
            axes.annotate(f"{row.batch}", at, textcoords="offset points", xytext=(4, -10), fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="multiplications a byte from the bus", ylabel="multiplications a cycle")
    axes.set_title("Layers at batches of 1 and more images, and the limits", fontsize=10)
    axes.legend(loc="lower right")
    with matplotlib.rc_context({"svg.hashsalt": "redcane"}):
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, nargs="?", default=HERE.parent / "configs" / "capsnet-mnist.yaml")
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--verified", type=Path, nargs="*", default=[])
    chosen = parser.parse_args()
    compiled = compiler_of(Config.load(chosen.config, {}))
    sizes = [Size(chosen.size, chosen.size, batch) for batch in chosen.batches]
    rows = [row for size in sizes for row in predicted(compiled(size), size)]
    for path in chosen.verified:
        measure(rows, json.loads(read_bounded(path, 2**24)), sizes[0])
    cells = [
        [row.batch, row.layer, *(f"{n:,.0f}" for n in (row.cycles, row.limit, row.stalls, row.bus_bytes)),
         f"{row.use:.1%}", "" if row.measured is None else f"{row.measured:,.1f}"]
        for row in rows
    ]  # fmt: skip
    print(f"{chosen.size} x {chosen.size} PEs, bus of {sizes[0].bus_bits} bits; for one image\n")
    print(table(["batch", "layer", "cycles", "limit", "stalls", "bus bytes", "use", "RTL"], cells, left=(1,)))
    print("\n" + table(["published", "what", "says"], PUBLISHED, left=(0, 1, 2)))
    told = {"config": chosen.config.name, "array": chosen.size, "rows": [asdict(row) for row in rows]}
    Path(__file__).with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n")
    roofline(rows, sizes[0], ROOFLINE)


if __name__ == "__main__":
    main()
