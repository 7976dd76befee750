"""What 8 bits cost a network, with exact multipliers: weights and ranges fitted to what comes out, and not.

    python benchmarks/quantization.py compact-mnist deepcaps-cifar10-32 ... [--images 5000] [--runs runs]

Every argument is a file in configs/; its network is trained in RUNS/NAME where it is not. Measured on validation
images: the accuracy, and the error of the class capsules' lengths against the float network's (root mean square), in
the configured number formats. Results are kept in quantization.json beside this file, of other networks too.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from flows.config import Config
from flows.run import Run
from flows.stages import bring_up
from model.calibration import Calibration
from model.capsules import lengths
from model.emulation import Emulator
from model.qnetwork import QClassCaps
from model.quantize import image_codes, quantize

HERE = Path(__file__).parent
RESULTS = HERE / "quantization.json"
BATCH = 100


def measure(name: str, runs: Path, images: int) -> dict[str, Any]:
    """One network's row."""
    config = Config.load(HERE.parent / "configs" / f"{name}.yaml")
    run = Run(config, runs / config.name)
    bring_up(run, "train")
    network, validation = run.network(), run.dataset.validation
    pixels, labels = validation.images[:images], torch.from_numpy(validation.labels[:images])
    with torch.inference_mode():
        parts = torch.from_numpy(pixels).split(BATCH)
        clean = torch.cat([lengths(network(part)) for part in parts])
    row: dict[str, Any] = {"images": len(labels), "float": float((clean.argmax(1) == labels).float().mean())}
    calibrating = torch.from_numpy(run.dataset.train.images[: config.quantize.images])
    for variant, fit in (("nearest", False), ("fitted", True)):
        start = time.perf_counter()
        quantized = quantize(network, Calibration(network, calibrating, fit), config.formats())
        taken = time.perf_counter() - start
        last, emulator = quantized.layers[-1], Emulator(quantized)
        assert isinstance(last, QClassCaps)
        out, name_of = last.squash.out, f"classcaps.squash.{last.iterations}"
        found = []
        for part in parts:
            codes = emulator.run(image_codes(quantized, part))[name_of]
            found.append(lengths((codes.float() - out.zero_point) * out.scale))
        measured = torch.cat(found)
        row[variant] = {
            "accuracy": float((measured.argmax(1) == labels).float().mean()),
            "error": float((measured - clean).square().mean().sqrt()),
            "seconds": taken,
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", metavar="NAME")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--images", type=int, default=5000)
    chosen = parser.parse_args()
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in chosen.networks:
        known[name] = row = measure(name, chosen.runs, chosen.images)
        RESULTS.write_text(json.dumps(known, indent=1) + "\n")
        shown = (f"{variant} {100 * row[variant]['accuracy']:.2f} %, error {row[variant]['error']:.4f}, "
                 f"{row[variant]['seconds']:.0f} s" for variant in ("nearest", "fitted"))  # fmt: skip
        print(f"{name}: float {100 * row['float']:.2f} %;", "; ".join(shown), flush=True)


if __name__ == "__main__":
    main()
