"""The networks there are, and their shapes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.capsnet import CapsNet, CapsNetShape
from model.deepcaps import DeepCaps, DeepCapsShape

Shape = CapsNetShape | DeepCapsShape
Network = CapsNet | DeepCaps


def build(shape: Shape) -> Network:
    """A network of this shape with fresh weights (from torch's global generator: seed it before)."""
    return DeepCaps(shape) if isinstance(shape, DeepCapsShape) else CapsNet(shape)


def parameters_of(network: Network) -> dict[str, NDArray[np.float64]]:
    """All parameters by name; of a DeepCaps, conv1's with the batch normalisation in them."""
    values = dict(network.named_parameters())
    found = {name: value.detach().double().numpy() for name, value in values.items()}
    if isinstance(network, DeepCaps):
        weight, bias = network.folded_conv1()
        found["conv1.weight"], found["conv1.bias"] = (x.detach().double().numpy() for x in (weight, bias))
    return found
