"""Convolutional capsule layers after Rajasegaran et al., "DeepCaps: Going Deeper with Capsule Networks" (CVPR 2019).

A tensor of capsules on a grid has the shape (N, H, W, T, D): N images, T capsule types at each of H x W positions, D
dimensions. Kernels have an odd edge and their inputs are padded with zeros, so that a stride of s makes ceil(H / s)
positions of H.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from model.capsules import Tap, identity, route, squash

GAIN = 3.0
"""Length of a capsule before squash over the length of those that it is made of, in fresh layers.

Squash turns a length n into n^2 / (1 + n^2), which dies away in a dozen layers unless each makes its input longer: of
n = g^2 n^2 / (1 + g^2 n^2) there is no solution but 0 for a gain g below 2, and at the borders of small grids, where
half of the neighbours are padding, more is needed. A small DeepCaps on the digits learns nothing with 1.5.
"""


class ConvCaps(nn.Module):
    """A convolution without bias over all capsules of the neighbourhood, then squash (its Sec. 3.1).

    Its channels are cut into capsules: channel = type * dimensions + d.
    """

    def __init__(self, in_types: int, in_dim: int, types: int, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.types, self.dim, self.stride = types, dim, stride
        self.weight = nn.Parameter(torch.empty(types * dim, in_types * in_dim, kernel, kernel))
        nn.init.normal_(self.weight, std=GAIN / math.sqrt(in_types * kernel * kernel * dim))

    def forward(self, u: Tensor, tap: Tap = identity, layer: str = "convcaps") -> Tensor:
        """Capsules (N, H, W, T', D') or maps (N, H, W, C) -> capsules (N, H', W', types, dim)."""
        x = u.flatten(3).permute(0, 3, 1, 2)  # (N, C, H, W)
        maps = nn.functional.conv2d(x, self.weight, stride=self.stride, padding=self.weight.shape[2] // 2)
        maps = tap(layer, "mac", maps, 0, (x, self.weight))  # (N, types * dim, H', W')
        s = maps.permute(0, 2, 3, 1).unflatten(3, (self.types, self.dim))
        return tap(layer, "squash", squash(s), 0, (s,))


class ConvCaps3D(nn.Module):
    """Convolutional capsules with dynamic routing (its Sec. 3.2).

    Every capsule type of the input votes by itself: a kernel over the neighbourhood and the D dimensions of its
    capsules, which all types share (a 3D convolution with a depth and a stride of D). At every position the input types
    are routed to the output types. The paper lets the softmax run over all positions too; here, as everywhere in this
    project, it runs over the output capsules of a position: 8-bit coupling coefficients could not express the others.
    """

    def __init__(self, in_types: int, in_dim: int, types: int, dim: int, kernel: int, iterations: int) -> None:
        super().__init__()
        self.iterations = iterations
        self.weight = nn.Parameter(torch.empty(types, dim, in_dim, kernel, kernel))
        # The first weighted sum takes a `types`-th of every input type's vote. No gain: longer votes would decide the
        # routing at random before anything is learnt, and conv3 beside it keeps the cell alive.
        nn.init.normal_(self.weight, std=types / math.sqrt(in_types * kernel * kernel * dim))

    def forward(self, u: Tensor, tap: Tap = identity, layer: str = "convcaps3d") -> Tensor:
        """Capsules (N, H, W, T, D) -> capsules (N, H, W, types, dim).

        Taps see votes (N, P = H * W, I, J, E) and the routing's tensors with the positions as their second axis.
        """
        n, height, width, in_types, in_dim = u.shape
        x = u.permute(0, 3, 4, 1, 2).reshape(n * in_types, in_dim, height, width)
        kernel = self.weight.flatten(0, 1)  # (J * E, D, Kh, Kw)
        votes = nn.functional.conv2d(x, kernel, padding=kernel.shape[2] // 2)  # (N * I, J * E, H, W)
        votes = votes.view(n, in_types, *self.weight.shape[:2], height * width).permute(0, 4, 1, 2, 3)
        votes = tap(layer, "votes", votes, 0, (u, self.weight))  # (N, P, I, J, E)
        return route(votes, self.iterations, tap, layer).unflatten(1, (height, width))
