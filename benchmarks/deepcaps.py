"""A DeepCaps of the paper's channel counts on the RTL: every boundary against the reference, cycles layer by layer.

    python benchmarks/deepcaps.py [--dataset mnist] [--run runs/deepcaps-mnist] [--images 1] [--size 16] [--batch 1]

Takes the quantised network of a run, or else one with fresh weights (seed 0), quantised on images of the dataset, with
all products exact; test images in either case. Cycles and busy PEs come from the counters in the RTL, the cycle model's
beside them. Results are kept beside this file as deepcaps-DATASET.json.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from flows.tables import table
from hw.cycles import predict
from hw.generate import generate
from hw.parameters import Size
from model import qfile
from model.datasets import Dataset, load
from model.deepcaps import DeepCaps, DeepCapsShape
from model.multipliers.library import load_library
from model.qnetwork import QNetwork
from model.quantize import image_codes, quantize
from sim.verify import verify

CALIBRATION = 64  # images


def fresh(dataset: Dataset, tables: dict[str, np.ndarray]) -> QNetwork:
    """A DeepCaps for these images as the paper has it, untrained."""
    images = dataset.train.images[:CALIBRATION]
    torch.manual_seed(0)
    network = quantize(DeepCaps(DeepCapsShape((*images.shape[2:], images.shape[1]), 10)), torch.from_numpy(images))
    return network.with_components({key: "mul8u_exact" for key, _, _ in network.products()}, tables)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--batch", type=int, default=1)
    chosen = parser.parse_args()
    components = load_library("embedded").components
    dataset = load(chosen.dataset)
    tables = {name: component.table for name, component in components.items()}
    network = qfile.load(chosen.run / "qmodel") if chosen.run else fresh(dataset, tables)
    images = image_codes(network, dataset.test.images[: chosen.images])
    size = Size(chosen.size, chosen.size, chosen.batch)
    begin, cpu = time.monotonic(), os.times()
    with tempfile.TemporaryDirectory() as folder:
        program = generate(network, components, Path(folder), size)
        result = verify(network, Path(folder), images, dataset.test.labels[: chosen.images], back_pressure=0)
    seconds, now = time.monotonic() - begin, os.times()
    if result["mismatches"]:
        raise SystemExit(f"the accelerator differs from the reference: {result['first_mismatch']}")
    pes = chosen.size**2
    predicted: dict[str, int] = {}
    for label, cost in predict(program).items():
        layer = label.rsplit(".", 1)[0]
        predicted[layer] = predicted.get(layer, 0) + cost.cycles
    rows = [
        {
            "layer": layer,
            "cycles": counted["cycles"] / chosen.batch,
            "predicted": predicted[layer] / chosen.batch,
            "weight_stalls": counted["weight_stalls"] / chosen.batch,
            "busy": counted["busy_pe_cycles"] / (counted["cycles"] * pes),
        }
        for layer, counted in result["layers_first_batch"].items()
    ]
    told = {
        "dataset": chosen.dataset,
        "weights": "of a run" if chosen.run else "fresh, seed 0",
        "images": chosen.images,
        "array": chosen.size,
        "batch": chosen.batch,
        "values_compared": result["values_compared"],
        "mismatches": result["mismatches"],
        "cycles_per_image": result["cycles_per_image"]["mean"],
        "pe_utilisation": result["pe_utilisation"],
        "activation_bytes": program.parameters.activation_bytes,
        "vote_bytes": program.parameters.vote_words * program.parameters.square**2,
        "weight_bytes": len(program.weights),
        "wall_seconds": round(seconds),
        "processor_seconds": round(sum(now[:4]) - sum(cpu[:4])),
        "layers": rows,
    }
    cells = [[r["layer"], *(f"{r[k]:,.0f}" for k in ("cycles", "predicted", "weight_stalls")), f"{r['busy']:.1%}"]
             for r in rows]  # fmt: skip
    print(table(["layer", "cycles", "predicted", "weight stalls", "busy PEs"], cells))
    print({key: value for key, value in told.items() if key != "layers"})
    Path(__file__).with_name(f"deepcaps-{chosen.dataset}.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
