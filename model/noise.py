"""The paper's noise model of an approximate component (Eq. 3-4), injected into operations of a running network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.capsules import Tap
from model.seeds import derive_seed


@dataclass(frozen=True)
class Injection:
    """Noise on the outputs of some operations ("layer.operation"), relative to the range of each output tensor."""

    operations: frozenset[str]
    nm: float  # noise magnitude: the standard deviation
    na: float = 0.0  # noise average


def add_noise(x: Tensor, nm: float, na: float, generator: torch.Generator) -> Tensor:
    """X' = X + Gauss(0, NM * R) + NA * R, where R = max - min of the whole tensor (Eq. 3-4)."""
    span = x.max() - x.min()
    return x + span * (nm * torch.randn(x.shape, generator=generator, dtype=x.dtype) + na)


def noise_tap(injection: Injection, seed: int, batch_index: int) -> Tap:
    """The tap that injects noise while one batch is evaluated.

    The random numbers derive from (seed, operation, routing iteration, batch index) alone: the result of a point
    depends neither on what ran before nor on who else runs, and all noise magnitudes scale the same draws.
    """

    def tap(layer: str, operation: str, output: Tensor, iteration: int, operands: tuple[Tensor, ...]) -> Tensor:
        key = f"{layer}.{operation}"
        if key not in injection.operations or injection.nm == injection.na == 0:
            return output
        generator = torch.Generator().manual_seed(derive_seed("noise", seed, key, iteration, batch_index))
        return add_noise(output, injection.nm, injection.na, generator)

    return tap
