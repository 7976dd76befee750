"""The CapsNet of Sabour, Frosst and Hinton (2017), every size a parameter.

image -> conv1 + ReLU -> primary (convolution, cut into capsules, squash) -> classcaps (votes, dynamic routing).
The class is that of the longest class capsule. MNIST's original and the small network for the digits are two shapes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import pairwise

import torch
from torch import Tensor, nn

from model.capsules import ClassCaps, PrimaryCaps, Tap, identity, lengths
from model.errors import RedcaneError


@dataclass(frozen=True)
class CapsNetShape:
    """All sizes of a CapsNet; raises RedcaneError when they do not fit together."""

    image: tuple[int, int, int]  # height, width, channels
    conv_channels: int
    conv_kernel: int
    primary_types: int  # capsule types at every position of the primary layer
    primary_dim: int  # dimensions of a primary capsule
    primary_kernel: int
    primary_stride: int
    classes: int
    class_dim: int  # dimensions of a class capsule
    conv_stride: int = 1
    iterations: int = 3  # of the routing
    decoder: tuple[int, ...] = ()  # hidden sizes of the reconstruction, used in training only; () for none

    def __post_init__(self) -> None:
        if len(self.image) != 3:
            raise RedcaneError(f"network.image: {self.image} should be [height, width, channels]")
        for field in fields(self):
            value = getattr(self, field.name)
            if any(type(v) is not int or v < 1 for v in (value if isinstance(value, tuple) else (value,))):
                raise RedcaneError(f"network.{field.name}: {value} should be positive whole numbers")
        for name in ("primary_dim", "class_dim", "classes"):
            if getattr(self, name) > 64:
                raise RedcaneError(f"network.{name}: {getattr(self, name)} is more than the 64 that are supported")
        if min(self.conv_size) < 1 or min(self.primary_size) < 1:
            raise RedcaneError(
                f"network: an image of {self.image[0]}x{self.image[1]} is too small for kernels of "
                f"{self.conv_kernel} and {self.primary_kernel}; use smaller kernels or strides"
            )

    @property
    def conv_size(self) -> tuple[int, int]:
        """Height and width of conv1's output."""
        return _convolved(self.image[:2], self.conv_kernel, self.conv_stride)

    @property
    def primary_size(self) -> tuple[int, int]:
        """Height and width of the primary layer's output."""
        return _convolved(self.conv_size, self.primary_kernel, self.primary_stride)

    @property
    def capsules(self) -> int:
        """Number of primary capsules, the inputs of the routing."""
        return self.primary_size[0] * self.primary_size[1] * self.primary_types


def _convolved(size: tuple[int, int], kernel: int, stride: int) -> tuple[int, int]:
    """Output size of a convolution without padding."""
    height, width = size
    return (height - kernel) // stride + 1, (width - kernel) // stride + 1


class CapsNet(nn.Module):
    """A CapsNet of the given shape with fresh weights (from torch's global generator: seed it before)."""

    def __init__(self, shape: CapsNetShape) -> None:
        super().__init__()
        self.shape = shape
        height, width, channels = shape.image
        self.conv1 = nn.Conv2d(channels, shape.conv_channels, shape.conv_kernel, shape.conv_stride)
        self.primary = PrimaryCaps(
            shape.conv_channels, shape.primary_types, shape.primary_dim, shape.primary_kernel, shape.primary_stride
        )
        self.classcaps = ClassCaps(shape.capsules, shape.primary_dim, shape.classes, shape.class_dim, shape.iterations)
        self.decoder: nn.Sequential | None = None
        if shape.decoder:
            sizes = (shape.classes * shape.class_dim, *shape.decoder)
            hidden = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
            self.decoder = nn.Sequential(*hidden, nn.Linear(sizes[-1], channels * height * width), nn.Sigmoid())

    def forward(self, images: Tensor, tap: Tap = identity) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> class capsules (N, J, E); `tap` sees every operation's output."""
        assert self.conv1.bias is not None  # it was made with one
        x = tap("conv1", "mac", self.conv1(images), 0, (images, self.conv1.weight, self.conv1.bias))
        x = tap("conv1", "relu", torch.relu(x), 0, (x,))
        u = self.primary(x, tap)  # (N, I, D)
        return self.classcaps(u, tap)  # (N, J, E)

    def classify(self, images: Tensor, tap: Tap = identity) -> Tensor:
        """Images (N, C, H, W) -> classes (N,), those of the longest class capsules."""
        return lengths(self(images, tap)).argmax(dim=1)

    def reconstruct(self, capsules: Tensor, labels: Tensor) -> Tensor:
        """Class capsules (N, J, E), all but the labelled (N,) one masked -> images (N, C, H, W)."""
        assert self.decoder is not None, "this shape has no decoder"
        height, width, channels = self.shape.image
        mask = nn.functional.one_hot(labels, self.shape.classes).to(capsules.dtype)
        pixels: Tensor = self.decoder((capsules * mask[:, :, None]).flatten(1))
        return pixels.view(-1, channels, height, width)

    def encoder_parameters(self) -> int:
        """Number of parameters that an inference uses (the decoder's are not)."""
        return sum(p.numel() for name, p in self.named_parameters() if not name.startswith("decoder."))
