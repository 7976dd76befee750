"""Approximation-aware fine-tuning: the weights of a network are trained for the multipliers that it is to run with.

Forward, the images go through the quantised network with its assigned multipliers, bit for bit (model/emulation.py).
Backward, the gradients are those of the float network at these values: rounding, clamping and the multipliers' errors
count as the identity (the straight-through estimator: Bengio, Leonard and Courville, arXiv:1308.3432, 2013).
Scales and integer constants stay as they were calibrated; only codes of weights and biases change.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.datasets import Dataset
from model.emulation import Emulator
from model.errors import RedcaneError
from model.files import digest
from model.network import Network
from model.qfile import save
from model.qnetwork import Coding, Layer, QClassCaps, QConv, QConvCaps, QConvLayer, QNetwork, QPrimaryCaps
from model.quantize import image_codes
from model.training import History, TrainingRecipe, evaluate, train

Values = dict[tuple[str, str, int], Tensor]
"""The real values of the integer network's boundaries, by (layer, operation, routing iteration from 0)."""


class StraightThrough:
    """The forward pass of fine-tuning, on the scales, constants and multipliers of a quantised network."""

    def __init__(self, quantized: QNetwork) -> None:
        self.quantized = quantized

    def __call__(self, network: Network, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> the class capsules (N, J, E) of the integer network of these weights."""
        quantized = with_weights(self.quantized, network)
        codes = image_codes(quantized, images.numpy())
        values = boundary_values(quantized, Emulator(quantized).run(codes))
        if not torch.is_grad_enabled():
            return next(reversed(values.values()))

        def tap(layer: str, operation: str, output: Tensor, iteration: int, operands: tuple[Tensor, ...]) -> Tensor:
            value = values.get((layer, operation, iteration))
            result: Tensor = output if value is None else _Replace.apply(output, value)
            return result

        capsules: Tensor = network(_decode(quantized.input, torch.from_numpy(codes)).permute(0, 3, 1, 2), tap)
        return capsules


class _Replace(torch.autograd.Function):
    """Another value of the same shape, with the gradient of the first."""

    @staticmethod
    def forward(ctx: object, output: Tensor, value: Tensor) -> Tensor:
        return value.reshape(output.shape)

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def boundary_values(quantized: QNetwork, trace: dict[str, Tensor]) -> Values:
    """The real values of the boundaries (docs/numerics.md) of a batch, in the layouts of the float network.

    The last are the class capsules. A convolution with ReLU stands at its "mac", before the ReLU, where codes of zero
    then stop the gradient.
    """
    values: Values = {}
    for layer in quantized.layers:
        name = layer.name
        if isinstance(layer, QConvLayer | QPrimaryCaps):
            maps = _decode(layer.conv.mac.out, trace[f"{name}.mac"])
            values[name, "mac", 0] = maps.permute(0, 3, 1, 2)  # (N, C, H, W)
            if isinstance(layer, QPrimaryCaps):
                values[name, "squash", 0] = _decode(layer.squash.out, trace[f"{name}.squash"])
        if not isinstance(layer, QClassCaps):
            continue
        values[name, "votes", 0] = _decode(layer.votes.out, trace[f"{name}.votes"])
        for t in range(layer.iterations):
            values[name, "softmax", t] = _decode(layer.weighted_sum.a, trace[f"{name}.softmax.{t + 1}"]).mT  # (N, I, J)
            values[name, "weighted_sum", t] = _decode(layer.weighted_sum.out, trace[f"{name}.weighted_sum.{t + 1}"])
            values[name, "squash", t] = _decode(layer.squash.out, trace[f"{name}.squash.{t + 1}"])
            if t < layer.iterations - 1:
                values[name, "agreement", t] = _decode(layer.agreement.out, trace[f"{name}.agreement.{t + 1}"]).mT
    return values


def _decode(coding: Coding, codes: Tensor) -> Tensor:
    return (codes.float() - coding.zero_point) * coding.scale


def with_weights(quantized: QNetwork, network: Network) -> QNetwork:
    """The quantised network with the weights and biases of a float one, in the codings that it has.

    Weights beyond a coding's range saturate. Raises RedcaneError for a bias that the accumulator cannot hold.
    """
    parameters = {name: parameter.detach().double().numpy() for name, parameter in network.named_parameters()}

    def conv(layer: str, old: QConv) -> QConv:
        out, unit = old.mac.out, old.mac.requantizer
        bias = np.floor(parameters[f"{layer}.bias"] / (out.scale * unit.multiplier / 2**unit.shift) + 0.5)
        if not (np.abs(bias) < 2**31).all():
            raise RedcaneError(f"{layer}.bias: too large for the 32-bit accumulator; lower finetune.learning_rate")
        kernel = old.mac.b.encode(parameters[f"{layer}.weight"]).transpose(0, 2, 3, 1)
        return replace(old, weights=kernel.copy(), bias=bias.astype(np.int32))

    layers: list[Layer] = []
    for layer in quantized.layers:
        if isinstance(layer, QClassCaps):
            weights = layer.votes.b.encode(parameters[f"{layer.name}.weight"])
            layers.append(replace(layer, weights=weights))
        elif isinstance(layer, QConvLayer | QPrimaryCaps) and not isinstance(layer, QConvCaps):
            layers.append(replace(layer, conv=conv(layer.name, layer.conv)))
        else:
            raise RedcaneError(f"finetune: {layer.name} is no layer of a CapsNet, which alone can be fine-tuned")
    return replace(quantized, layers=tuple(layers))


def finetune(
    network: Network, quantized: QNetwork, dataset: Dataset, recipe: TrainingRecipe, checkpoint: Path
) -> tuple[History, tuple[float, float]]:
    """Train the network in place for the multipliers of `quantized`, which was made from it.

    Returns the history, and the validation accuracy (fraction) and loss before. The network is left with the weights of
    the epoch of the lowest validation loss, all by the integer network; if none is lower than before, with those that
    it came with (and the history's `best` is -1). Checkpoint, resuming and errors as in model.training.train.
    """
    forward = StraightThrough(quantized)
    start = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    before = evaluate(network, dataset.validation.images, dataset.validation.labels, forward=forward)
    with tempfile.TemporaryDirectory() as folder:
        save(quantized, Path(folder, "qmodel"))
        basis = digest(Path(folder, "qmodel"))
    history = train(network, dataset, recipe, checkpoint, forward=forward, title="finetune", basis=basis)
    if history.validation_loss[history.best] >= before[1]:
        network.load_state_dict(start)
        history.best = -1
    return history, before
