"""Networks fitted to their multipliers in a run: what was measured is what is quantised, or nothing is fitted."""

import json
from pathlib import Path

import numpy as np

from flows.config import Config
from flows.main import main
from flows.run import Run
from model.qnetwork import QClassCaps, QNetwork

TINY = """
name: tiny
dataset: digits
copies: 0
network: {image: [8, 8, 1], classes: 10, conv_channels: 8, conv_kernel: 3, primary_types: 4, primary_dim: 4,
          primary_kernel: 3, primary_stride: 2, class_dim: 4, iterations: 2}
train: {epochs: 8, patience: 8}
analyze: {noise_magnitudes: [0.02, 0.0], seeds: [0], images: 100}
assign: {budget_points: 5.0, images: 32, measurements: 12}
"""


def weights(network: QNetwork) -> list[np.ndarray]:
    return [q.weights if isinstance(q, QClassCaps) else q.conv.weights for q in network.layers]


def test_what_was_measured_is_what_is_quantised(tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    differing = []
    for fit in (True, False):
        config.write_text(TINY + f"quantize: {{fit_multipliers: {json.dumps(fit)}}}\n")
        assert main(["quantize", str(config), "--runs", str(tmp_path)]) == 0
        run = Run(Config.load(config), tmp_path / "tiny")
        selection, accuracy = run.read("selection.json"), run.read("accuracy.json")
        assert accuracy["assigned"]["selection"] == selection["accuracy"]
        assert accuracy["exact_8_bit"]["selection"] == selection["exact_accuracy"]
        network, exact = run.qnetwork(), run.quantized(run.config.formats())
        approximate = {key for key, p, _ in network.products() if p.component != run.library.exact.name}
        assert approximate, "something is saved"
        differing.append([not np.array_equal(*pair) for pair in zip(weights(network), weights(exact), strict=True)])
        has = [layer.name for layer in network.layers if approximate & {f"{layer.name}.mac", f"{layer.name}.votes"}]
        assert sum(differing[-1]) == (len(has) if fit else 0)
    assert any(differing[0])
