"""The networks there are, and their shapes."""

from __future__ import annotations

from model.capsnet import CapsNet, CapsNetShape
from model.deepcaps import DeepCaps, DeepCapsShape

Shape = CapsNetShape | DeepCapsShape
Network = CapsNet | DeepCaps


def build(shape: Shape) -> Network:
    """A network of this shape with fresh weights (from torch's global generator: seed it before)."""
    return DeepCaps(shape) if isinstance(shape, DeepCapsShape) else CapsNet(shape)
