"""A DeepCaps of the paper's channel counts on the RTL: every boundary against the reference, cycles layer by layer.

    python benchmarks/deepcaps.py configs/deepcaps-mnist.yaml [--weights FILE] [--images 1] [--size 16] [--batch 1]
        [--activation-kib 64]

The network of a configuration, with the weights of a file (a run's network.safetensors) or else fresh ones (seed 0),
quantised on images of its dataset with all products exact, classifies test images. Cycles and busy PEs come from the
counters in the RTL, the cycle model's beside them. Results are kept beside this file as NAME.json, the configuration's,
or as NAME-64kib.json.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import torch

from flows.config import Config
from flows.tables import table
from hw.cycles import predict
from hw.generate import generate
from hw.parameters import Size
from model.datasets import load
from model.multipliers.library import load_library
from model.network import build
from model.quantize import image_codes, quantize
from model.weights import load_weights
from sim.verify import verify

CALIBRATION = 64  # images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--activation-kib", type=int, help="memory for activations, in place of what the network needs")
    chosen = parser.parse_args()
    config, components = Config.load(chosen.config), load_library("embedded").components
    data = Path(config.data_dir) if config.data_dir else None
    dataset = load(config.dataset, data, pixels=config.pixels)
    torch.manual_seed(0)
    trained = load_weights(config.shape(), chosen.weights)[0] if chosen.weights else build(config.shape())
    network = quantize(trained, torch.from_numpy(dataset.train.images[:CALIBRATION]))
    network = network.with_components(
        {key: "mul8u_exact" for key, _, _ in network.products()}, {"mul8u_exact": components["mul8u_exact"].table}
    )
    images = image_codes(network, dataset.test.images[: chosen.images])
    kib = chosen.activation_kib
    size = Size(chosen.size, chosen.size, chosen.batch, activation_bytes=kib and 1024 * kib)
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
    rows: list[dict] = [
        {
            "layer": layer,
            "cycles": counted["cycles"] / chosen.batch,
            "predicted": predicted[layer] / chosen.batch,
            "weight_stalls": counted["weight_stalls"] / chosen.batch,
            "spill_stalls": (counted["load_stalls"] + counted["store_stalls"]) / chosen.batch,
            "busy": counted["busy_pe_cycles"] / (counted["cycles"] * pes),
        }
        for layer, counted in result["layers_first_batch"].items()
    ]
    told = {
        "network": config.name,
        "weights": "trained" if chosen.weights else "fresh, seed 0",
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
        "bytes_read": result["bus_last_batch"]["bytes_read"],
        "bytes_written": result["bus_last_batch"]["bytes_written"],
        "wall_seconds": round(seconds),
        "processor_seconds": round(sum(now[:4]) - sum(cpu[:4])),
        "layers": rows,
    }
    counts = "cycles", "predicted", "weight_stalls", "spill_stalls"
    cells = [[r["layer"], *(f"{r[name]:,.0f}" for name in counts), f"{r['busy']:.1%}"] for r in rows]
    print(table(["layer", "cycles", "predicted", "weight stalls", "spill stalls", "busy PEs"], cells))
    print({key: value for key, value in told.items() if key != "layers"})
    name = f"{config.name}-{kib}kib" if kib else config.name
    Path(__file__).with_name(f"{name}.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
