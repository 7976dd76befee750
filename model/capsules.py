"""Capsules after Sabour, Frosst and Hinton, "Dynamic Routing Between Capsules" (2017): squash, routing, capsule layers.

Every operation's output passes through a *tap* before it is used, so that one forward pass serves inference, training,
operation counting, noise injection and calibration alike.

Letters of the shapes: N images, I input capsules of D dimensions, J output (class) capsules of E dimensions.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

EPSILON = 1e-8  # inside the root of the norm: the gradient of sqrt is infinite at zero


class Tap(Protocol):
    """Sees, and may replace, the output of every operation of a forward pass, in the order of execution."""

    def __call__(
        self, layer: str, operation: str, output: Tensor, iteration: int, operands: tuple[Tensor, ...]
    ) -> Tensor:
        """Return the tensor that the network goes on with (`output` itself to leave it alone).

        `layer` and `operation` name the operation ("classcaps", "softmax"); `output` is its result, images first;
        `iteration` counts the routing iterations from 0 and is 0 outside the routing.
        `operands` are the tensors that it was computed from. Of an operation with multiplications these are the two
        factors: (activation, weight) for convolutions and votes, (votes, coefficients) for the weighted sum and
        (votes, output capsules) for the agreement; a convolution's bias, if it has one, is a third. Otherwise what it
        read.
        """
        ...


def identity(layer: str, operation: str, output: Tensor, iteration: int, operands: tuple[Tensor, ...]) -> Tensor:
    """The tap that changes nothing."""
    return output


def squash(s: Tensor) -> Tensor:
    """Shorten vectors (last axis) to below 1, keeping their direction: s |s| / (1 + |s|^2) (Sabour, Eq. 1)."""
    squared = (s * s).sum(dim=-1, keepdim=True)
    return s * (torch.sqrt(squared + EPSILON) / (1 + squared))


def lengths(capsules: Tensor) -> Tensor:
    """Lengths of capsules (..., D) -> (...): the probability that what the capsule stands for is there."""
    return torch.sqrt((capsules * capsules).sum(dim=-1) + EPSILON)


def route(votes: Tensor, iterations: int, tap: Tap = identity, layer: str = "classcaps") -> Tensor:
    """Dynamic routing by agreement (Sabour, procedure 1): votes (N, ..., I, J, E) -> output capsules (N, ..., J, E).

    Axes between the images and the input capsules, such as positions, are routed each by itself. The coupling
    coefficients of an input capsule are a softmax over the OUTPUT capsules; they start equal.
    Gradients flow through the last iteration's votes only: the coefficients are treated as constants.
    Where a training computes in mixed precision, the routing stays in that of the votes: it would be slower otherwise.
    """
    with torch.autocast(votes.device.type, enabled=False):
        return _route(votes, iterations, tap, layer)


def _route(votes: Tensor, iterations: int, tap: Tap, layer: str) -> Tensor:
    logits = votes.new_zeros(votes.shape[:-1])  # b: (N, ..., I, J)
    for iteration in range(iterations):
        last = iteration == iterations - 1
        u = votes if last else votes.detach()
        k = tap(layer, "softmax", torch.softmax(logits, dim=-1), iteration, (logits,))
        s = tap(layer, "weighted_sum", torch.einsum("...ij,...ije->...je", k, u), iteration, (u, k))
        v = tap(layer, "squash", squash(s), iteration, (s,))
        if not last:
            logits = tap(layer, "agreement", logits + torch.einsum("...ije,...je->...ij", u, v), iteration, (u, v))
    return v


class PrimaryCaps(nn.Conv2d):
    """A convolution whose output CHANNELS are cut into capsules: channel = type * dim + d.

    Input (N, C, H, W) -> capsules (N, I, D) with I = H' * W' * types and capsule i = (y * W' + x) * types + type.
    """

    def __init__(self, channels: int, types: int, dim: int, kernel: int, stride: int) -> None:
        super().__init__(channels, types * dim, kernel, stride)
        self.types, self.dim = types, dim

    def forward(self, x: Tensor, tap: Tap = identity, layer: str = "primary") -> Tensor:
        assert self.bias is not None  # it was made with one
        maps = tap(layer, "mac", super().forward(x), 0, (x, self.weight, self.bias))  # (N, types * D, H', W')
        n, _, height, width = maps.shape
        s = maps.view(n, self.types, self.dim, height, width).permute(0, 3, 4, 1, 2).reshape(n, -1, self.dim)
        return tap(layer, "squash", squash(s), 0, (s,))


class ClassCaps(nn.Module):
    """Fully connected capsules: input (N, I, D) -> class capsules (N, J, E), one D x E matrix for every pair (i, j)."""

    def __init__(self, capsules: int, dim: int, classes: int, class_dim: int, iterations: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(capsules, dim, classes, class_dim))  # (I, D, J, E)
        self.iterations = iterations
        # Squashed inputs are short and the first weighted sum takes a J-th of I votes: this keeps class capsules alive.
        nn.init.normal_(self.weight, std=classes / math.sqrt(capsules * class_dim))

    def forward(self, u: Tensor, tap: Tap = identity, layer: str = "classcaps") -> Tensor:
        votes = tap(layer, "votes", torch.einsum("nid,idje->nije", u, self.weight), 0, (u, self.weight))  # (N, I, J, E)
        return route(votes, self.iterations, tap, layer)
