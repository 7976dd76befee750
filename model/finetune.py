"""Approximation-aware fine-tuning: the weights of a network are trained for the multipliers that it is to run with.

Forward, the images go through the quantised network with its assigned multipliers, bit for bit (model/emulation.py).
Backward, the gradients are those of the float network at these values: rounding, clamping and the multipliers' errors
count as the identity (the straight-through estimator: Bengio, Leonard and Courville, arXiv:1308.3432, 2013).
Scales and integer constants stay as they were calibrated; only codes of weights and biases change.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.capsules import ClassCaps
from model.convcaps import ConvCaps3D
from model.datasets import Dataset
from model.deepcaps import DeepCaps
from model.emulation import Emulator
from model.errors import RedcaneError
from model.files import digest
from model.network import Network, parameters_of
from model.qfile import save
from model.qnetwork import Coding, Layer, QAdd, QClassCaps, QConv, QNetwork, QPrimaryCaps, Routed
from model.quantize import image_codes
from model.recipe import TrainingRecipe
from model.training import History, evaluate, train

Values = dict[tuple[str, str], Tensor]
"""The real values of the integer network's boundaries, by layer and operation; of routing, the last iteration's."""


class StraightThrough:
    """The forward pass of fine-tuning, on the scales, constants and multipliers of a quantised network."""

    def __init__(self, quantized: QNetwork) -> None:
        self.quantized = quantized

    def __call__(self, network: Network, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> the class capsules (N, J, E) of the integer network of these weights."""
        network.eval()  # what a batch normalisation has learnt is folded into the convolution before it
        quantized = with_weights(self.quantized, network)
        codes = image_codes(quantized, images.numpy())
        values = boundary_values(quantized, Emulator(quantized, "cpu").run(codes))  # where the gradients are
        if not torch.is_grad_enabled():
            return next(reversed(values.values()))

        def tap(layer: str, operation: str, output: Tensor, iteration: int, operands: tuple[Tensor, ...]) -> Tensor:
            value = values.get((layer, operation))
            result: Tensor = output if value is None else _Replace.apply(output, value)
            return result

        with _routed_once(network):
            capsules: Tensor = network(_decode(quantized.input, torch.from_numpy(codes)).permute(0, 3, 1, 2), tap)
        return capsules


@contextmanager
def _routed_once(network: Network) -> Iterator[None]:
    """The network with one iteration of routing: no gradient comes through those before the last, and what they lead
    to, the coupling coefficients, is put in their place.
    """
    routed = [module for module in network.modules() if isinstance(module, ClassCaps | ConvCaps3D)]
    before = [module.iterations for module in routed]
    try:
        for module in routed:
            module.iterations = 1
        yield
    finally:
        for module, iterations in zip(routed, before, strict=True):
            module.iterations = iterations


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
        if isinstance(layer, QAdd):
            values[name, "add"] = _decode(layer.adder.out, trace[f"{name}.add"])
        elif isinstance(layer, Routed):
            values[name, "votes"] = _decode(layer.products()["votes"].out, trace[f"{name}.votes"])
            codings = {"softmax": layer.weighted_sum.a, "weighted_sum": layer.weighted_sum.out,
                       "squash": layer.squash.out}  # fmt: skip
            for operation, coding in codings.items():
                codes = trace[f"{name}.{operation}.{layer.iterations}"]
                by_class = operation == "softmax"  # (..., J, I), which is (..., I, J) in float
                values[name, operation] = _decode(coding, codes.mT if by_class else codes)
        else:
            maps = _decode(layer.conv.mac.out, trace[f"{name}.mac"])
            values[name, "mac"] = maps.permute(0, 3, 1, 2)  # (N, C, H, W)
            if isinstance(layer, QPrimaryCaps):
                values[name, "squash"] = _decode(layer.squash.out, trace[f"{name}.squash"])
    return values


def _decode(coding: Coding, codes: Tensor) -> Tensor:
    return (codes.float() - coding.zero_point) * coding.scale


def with_weights(quantized: QNetwork, network: Network) -> QNetwork:
    """The quantised network with the weights and biases of a float one, in the codings that it has.

    Weights beyond a coding's range saturate. Raises RedcaneError for a bias that the accumulator cannot hold.
    """
    values = parameters_of(network)

    def conv(layer: str, old: QConv) -> QConv:
        bias = old.bias
        if f"{layer}.bias" in values:
            real = np.floor(values[f"{layer}.bias"] / old.mac.accumulator_scale + 0.5)
            if not (np.abs(real) < 2**31).all():
                raise RedcaneError(f"{layer}.bias: too large for the 32-bit accumulator; lower finetune.learning_rate")
            bias = real.astype(np.int32)
        kernel = values[f"{layer}.weight"]
        kernel = kernel.reshape(len(old.weights), *kernel.shape[-3:])  # of the 3D layer's capsules, their channels
        return replace(old, weights=old.mac.b.encode(kernel).transpose(0, 2, 3, 1).copy(), bias=bias)

    layers: list[Layer] = []
    for layer in quantized.layers:
        if isinstance(layer, QClassCaps):
            layers.append(replace(layer, weights=layer.votes.b.encode(values[f"{layer.name}.weight"])))
        elif isinstance(layer, QAdd):
            layers.append(layer)
        else:
            layers.append(replace(layer, conv=conv(layer.name, layer.conv)))
    return replace(quantized, layers=tuple(layers))


@torch.no_grad()
def take_weights(network: Network, quantized: QNetwork) -> None:
    """Give a float network the weights and biases that the codes of its quantised one stand for, so that with_weights
    finds these codes again: they need not be the nearest to what the weights were (model/rounding.py), and make up for
    multipliers (model/fitting.py).
    """
    parameters = dict(network.named_parameters())
    for layer in quantized.layers:
        if isinstance(layer, QAdd):
            continue
        weight = parameters[f"{layer.name}.weight"]
        if isinstance(layer, QClassCaps):
            values = torch.from_numpy(layer.votes.b.decode(layer.weights))
        else:
            mac = layer.conv.mac
            values = torch.from_numpy(mac.b.decode(layer.conv.weights).transpose(0, 3, 1, 2))
            bias = torch.from_numpy(layer.conv.bias * mac.accumulator_scale)
            if isinstance(network, DeepCaps) and layer.name == "conv1":  # which has a batch normalisation behind it
                network.norm.bias.add_(bias - network.folded_conv1()[1])
                values = values / network.gain()[:, None, None, None]
            elif f"{layer.name}.bias" in parameters:
                parameters[f"{layer.name}.bias"].copy_(bias)
        weight.copy_(values.reshape(weight.shape))


def finetune(
    network: Network,
    quantized: QNetwork,
    dataset: Dataset,
    recipe: TrainingRecipe,
    checkpoint: Path,
    distill: bool = False,
) -> tuple[History, tuple[float, float]]:
    """Train the network in place for the multipliers of `quantized`, which was made from it.

    It learns the labels or, with `distill`, the class capsules of the float network that it comes as.

    Returns the history, and the validation accuracy (fraction) and loss before. The network is left with the weights of
    the epoch of the lowest validation loss, all by the integer network; if none is lower than before, with those that
    the codes of `quantized` stand for (and the history's `best` is -1). Checkpoint, resuming and errors as in
    model.training.train.
    """
    forward = StraightThrough(quantized)
    teacher = copy.deepcopy(network) if distill else None
    take_weights(network, quantized)
    start = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    before = evaluate(network, dataset.validation.images, dataset.validation.labels, forward=forward)
    with tempfile.TemporaryDirectory() as folder:
        save(quantized, Path(folder, "qmodel"))
        basis = digest(Path(folder, "qmodel")) + (" distilled" if distill else "")
    history = train(
        network, dataset, recipe, checkpoint, forward=forward, title="finetune", basis=basis, teacher=teacher
    )
    if history.validation_loss[history.best] >= before[1]:
        network.load_state_dict(start)
        history.best = -1
    return history, before
