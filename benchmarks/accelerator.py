"""Cycles an image of a finished run's network on arrays of several sizes, against the limit of the array.

    python benchmarks/accelerator.py runs/digits [--sizes 4 8 16]

The limit is one multiplication a PE and cycle. The Verilog is generated and simulated for each size; the figures come
from the counters in the RTL. Results are kept beside this file as accelerator.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from hw.generate import generate
from hw.parameters import Size
from model import qfile
from model.multipliers.library import load_library
from model.qnetwork import QClassCaps, QNetwork
from sim.verify import verify


def array_multiplications(network: QNetwork) -> int:
    """Multiplications of one inference that are done on the array."""
    total, size = 0, network.image[:2]
    for layer in network.layers:
        if isinstance(layer, QClassCaps):
            inputs, dim_in, classes, dim = layer.weights.shape
            total += inputs * classes * dim * (dim_in + 2 * layer.iterations - 1)
        else:
            conv = layer.conv
            _, height, width, _ = conv.weights.shape
            size = tuple(
                (s + 2 * conv.padding - k) // conv.stride + 1 for s, k in zip(size, (height, width), strict=True)
            )
            total += size[0] * size[1] * conv.weights.size
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--library", default="embedded")
    parser.add_argument("--sizes", type=int, nargs="+", default=[4, 8, 16])
    chosen = parser.parse_args()
    network = qfile.load(chosen.run / "qmodel")
    components = load_library(chosen.library).components
    image = np.zeros((1, *network.image), np.int16)
    limit = array_multiplications(network)
    rows = []
    print(
        f"{limit} multiplications an image\n array  cycles   limit  limit/cycles  busy PEs  matmul squash softmax fetch"
    )
    for size in chosen.sizes:
        with tempfile.TemporaryDirectory() as folder:
            generate(network, components, Path(folder), Size(size, size))
            result = verify(network, Path(folder), image, np.zeros(1, np.int64), back_pressure=0)
        if result["mismatches"]:
            raise SystemExit(f"{size} x {size}: the accelerator differs from the reference: {result['first_mismatch']}")
        cycles, counters = result["cycles_per_image"]["mean"], result["counters_first_batch"]
        ideal = limit / size**2
        shares = [counters[f"{unit}_cycles"] / cycles for unit in ("matmul", "squash", "softmax", "fetch")]
        print(
            f"{size:3} x {size:<2} {cycles:6.0f} {ideal:7.0f} {ideal / cycles:12.1%} {result['pe_utilisation']:9.1%}  "
            + "  ".join(f"{share:5.1%}" for share in shares)
        )
        rows.append(
            {
                "array": size,
                "cycles": cycles,
                "ideal_cycles": ideal,
                "utilisation": result["pe_utilisation"],
                **counters,
            }
        )
    Path(__file__).with_suffix(".json").write_text(
        json.dumps({"multiplications": limit, "arrays": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
