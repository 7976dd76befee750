"""How fast the torch emulation runs a finished run's network, against the NumPy reference.

    python benchmarks/emulation.py runs/digits [--images 512]

One thread, the same images, all in one process; ratios are what counts. Results are kept beside this file as
emulation.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.accelerator import array_multiplications
from model import qfile, reference
from model.emulation import Emulator


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """The median of several runs after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=512)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    network = qfile.load(chosen.run / "qmodel")
    codes = np.random.default_rng(0).integers(0, 256, (chosen.images, *network.image)).astype(np.int16)
    work = array_multiplications(network)
    emulator = Emulator(network)
    taken = {
        "emulation": seconds(lambda: emulator.classify(codes)) / chosen.images,
        "NumPy reference": seconds(lambda: [reference.run(network, image) for image in codes[:8]], 3) / 8,
    }
    same = all(
        int(reference.run(network, image)["class"]) == answer
        for image, answer in zip(codes[:8], emulator.classify(codes[:8]), strict=True)
    )
    if not same:
        raise SystemExit("emulation and reference differ")
    for name, each in taken.items():
        ratio = taken["NumPy reference"] / each
        print(f"{name:16} {each * 1e3:8.3f} ms an image {work / each / 1e9:7.3f} G products/s {ratio:7.1f} x reference")
    rows = {name: {"seconds_per_image": each, "products_per_second": work / each} for name, each in taken.items()}
    Path(__file__).with_suffix(".json").write_text(
        json.dumps({"multiplications": work, "engines": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
