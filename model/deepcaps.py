"""DeepCaps (Rajasegaran et al., CVPR 2019), every size a parameter.

image -> conv1 + ReLU -> cell1 ... cell4 -> classcaps (votes, dynamic routing).

A cell is four capsule layers of 3 x 3 kernels: conv1 halves the grid; conv3, behind conv2, and skip both go on from
conv1, and their sum is the cell's output. The skip of cell4 is the 3D layer with dynamic routing. The class capsules
see the capsules of cell4 and of cell3. The decoder turns the one class capsule of the label, whichever class that is,
into the image.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import pairwise

import torch
from torch import Tensor, nn

from model.capsules import ClassCaps, Tap, identity, lengths
from model.convcaps import ConvCaps, ConvCaps3D
from model.errors import RedcaneError

KERNEL = 3
CELLS = ("cell1", "cell2", "cell3", "cell4")


@dataclass(frozen=True)
class DeepCapsShape:
    """All sizes of a DeepCaps, by default the paper's; raises RedcaneError when they do not fit together."""

    image: tuple[int, int, int]  # height, width, channels
    classes: int
    conv_channels: int = 128  # of the convolution before the cells
    types: int = 32  # capsule types at every position, in all cells
    dims: tuple[int, ...] = (4, 8, 8, 8)  # dimensions of a capsule, in each of the four cells
    class_dim: int = 32  # dimensions of a class capsule
    iterations: int = 3  # of the routing, in cell4's skip and to the classes
    # Channels of the reconstruction: of the small maps that the class capsule becomes, of a layer of their size, and of
    # each layer that doubles it; () for none. In training only.
    decoder: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, count in (("image", 3), ("dims", len(CELLS))):
            if len(getattr(self, name)) != count:
                raise RedcaneError(f"network.{name}: {getattr(self, name)} should be {count} numbers")
        for field in fields(self):
            value = getattr(self, field.name)
            if any(type(v) is not int or v < 1 for v in (value if isinstance(value, tuple) else (value,))):
                raise RedcaneError(f"network.{field.name}: {value} should be positive whole numbers")
        for name in ("dims", "types", "class_dim", "classes"):
            value = getattr(self, name)
            if max(value if isinstance(value, tuple) else (value,)) > 64:
                raise RedcaneError(f"network.{name}: {value} is more than the 64 that are supported")
        if self.decoder and (len(self.decoder) < 2 or any(edge % self._zoom for edge in self.image[:2])):
            raise RedcaneError(
                f"network.decoder: {len(self.decoder)} layers do not make images of {self.image[0]}x{self.image[1]}: "
                "give the channels of the first maps, of a layer of their size, and of each layer that doubles it"
            )

    @property
    def _zoom(self) -> int:
        """How much larger the decoder's images are than its first maps."""
        return 2 ** (len(self.decoder) - 2)

    @property
    def decoder_size(self) -> tuple[int, int]:
        """Height and width of the decoder's first maps."""
        return self.image[0] // self._zoom, self.image[1] // self._zoom

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each cell's output."""
        return tuple((-(-self.image[0] // 2**n), -(-self.image[1] // 2**n)) for n in range(1, len(CELLS) + 1))

    @property
    def capsules(self) -> int:
        """Number of capsules that vote for the classes: those of the last two cells."""
        return sum(height * width * self.types for height, width in self.grids[2:])


class Cell(nn.Module):
    """Four capsule layers, the last two side by side and added; `routed` makes one of them the 3D layer."""

    def __init__(self, in_types: int, in_dim: int, types: int, dim: int, routed: int = 0) -> None:
        """`routed`: iterations of the 3D layer's routing, 0 for a plain skip."""
        super().__init__()
        self.conv1 = ConvCaps(in_types, in_dim, types, dim, KERNEL, stride=2)
        self.conv2 = ConvCaps(types, dim, types, dim, KERNEL, stride=1)
        self.conv3 = ConvCaps(types, dim, types, dim, KERNEL, stride=1)
        self.skip: ConvCaps | ConvCaps3D = (
            ConvCaps3D(types, dim, types, dim, KERNEL, routed)
            if routed
            else ConvCaps(types, dim, types, dim, KERNEL, stride=1)
        )

    def forward(self, u: Tensor, tap: Tap = identity, layer: str = "cell") -> Tensor:
        """Capsules (N, H, W, T', D'), or maps (N, H, W, C), -> capsules (N, ceil(H / 2), ceil(W / 2), T, D)."""
        first = self.conv1(u, tap, f"{layer}.conv1")
        skip = self.skip(first, tap, f"{layer}.skip")
        deep = self.conv3(self.conv2(first, tap, f"{layer}.conv2"), tap, f"{layer}.conv3")
        return tap(layer, "add", skip + deep, 0, (skip, deep))


class DeepCaps(nn.Module):
    """A DeepCaps of the given shape with fresh weights (from torch's global generator: seed it before).

    It is made for inference; `train()` lets the batch normalisation behind conv1 learn, `eval()` ends that.
    """

    def __init__(self, shape: DeepCapsShape) -> None:
        super().__init__()
        self.shape = shape
        self.conv1 = nn.Conv2d(shape.image[2], shape.conv_channels, KERNEL, padding=KERNEL // 2, bias=False)
        self.norm = nn.BatchNorm2d(shape.conv_channels)
        inputs = [(shape.conv_channels, 1), *((shape.types, dim) for dim in shape.dims)]
        for name, (types, dim), (_, out) in zip(CELLS, inputs, inputs[1:], strict=False):
            self.add_module(name, Cell(types, dim, shape.types, out, shape.iterations if name == CELLS[-1] else 0))
        self.classcaps = ClassCaps(shape.capsules, shape.dims[-1], shape.classes, shape.class_dim, shape.iterations)
        self.decoder = _decoder(shape) if shape.decoder else None
        self.eval()

    def forward(self, images: Tensor, tap: Tap = identity) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> class capsules (N, J, E); `tap` sees every operation's output."""
        if self.training:
            x = self.norm(self.conv1(images))
        else:
            weight, bias = self.folded_conv1()
            x = nn.functional.conv2d(images, weight, bias, padding=KERNEL // 2)
            x = tap("conv1", "mac", x, 0, (images, weight, bias))  # (N, conv_channels, H, W)
        x = tap("conv1", "relu", torch.relu(x), 0, (x,))
        u = x.permute(0, 2, 3, 1)
        outputs = []
        for name in CELLS:
            u = self.get_submodule(name)(u, tap, name)  # (N, H', W', T, D)
            outputs.append(u)
        capsules = torch.cat([outputs[3].flatten(1, 3), outputs[2].flatten(1, 3)], dim=1)  # (N, I, D)
        return self.classcaps(capsules, tap)  # (N, J, E)

    def folded_conv1(self) -> tuple[Tensor, Tensor]:
        """Kernel (C', C, Kh, Kw) and bias (C',) of conv1 with the batch normalisation, as it is in inference, in it."""
        gain, mean = self.gain(), self.norm.running_mean
        assert mean is not None  # it was made to track it
        return self.conv1.weight * gain[:, None, None, None], self.norm.bias - mean * gain

    def gain(self) -> Tensor:
        """By what the batch normalisation multiplies each channel of conv1 (C',) in inference."""
        assert self.norm.running_var is not None
        return self.norm.weight / torch.sqrt(self.norm.running_var + self.norm.eps)

    @torch.no_grad()
    def even_channels(self) -> None:
        """Give all channels of conv1, as inference has them, the same largest number (of kernel and bias), and take
        that back in the layer that reads them. Inference computes what it did, but for rounding: a ReLU's output grows
        as its input.

        Batch normalisation leaves the channels far apart, and the small ones little of the 8 bits that they share
        (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, Sec. 4.1).
        """
        weight, bias = self.folded_conv1()
        largest = torch.maximum(weight.abs().amax(dim=(1, 2, 3)), bias.abs())
        gain = torch.where(largest > 0, largest.max() / largest, 1.0)
        reader = self.get_submodule(f"{CELLS[0]}.conv1")
        assert isinstance(reader, ConvCaps)
        self.norm.weight.mul_(gain)
        self.norm.bias.mul_(gain)
        reader.weight.div_(gain[:, None, None])

    def classify(self, images: Tensor, tap: Tap = identity) -> Tensor:
        """Images (N, C, H, W) -> classes (N,), those of the longest class capsules."""
        return lengths(self(images, tap)).argmax(dim=1)

    def reconstruct(self, capsules: Tensor, labels: Tensor) -> Tensor:
        """Class capsules (N, J, E), of which the labelled (N,) one counts -> images (N, C, H, W)."""
        assert self.decoder is not None, "this shape has no decoder"
        images: Tensor = self.decoder(capsules[torch.arange(len(labels), device=labels.device), labels])
        return images

    def encoder_parameters(self) -> int:
        """Number of parameters that an inference uses (the decoder's are not)."""
        return sum(p.numel() for name, p in self.named_parameters() if not name.startswith("decoder."))


def _decoder(shape: DeepCapsShape) -> nn.Sequential:
    """The class-independent decoder (the paper's Sec. 4): a class capsule (N, E) -> images (N, C, H, W)."""
    first, *later = shape.decoder
    size = shape.decoder_size
    layers: list[nn.Module] = [nn.Linear(shape.class_dim, first * size[0] * size[1]), nn.Unflatten(1, (first, *size))]
    for index, (before, after) in enumerate(pairwise([first, *later])):
        doubling = index > 0
        layers += [
            nn.ReLU(),
            nn.ConvTranspose2d(before, after, KERNEL, 2 if doubling else 1, padding=1, output_padding=int(doubling)),
        ]
    return nn.Sequential(
        *layers, nn.ReLU(), nn.Conv2d(later[-1], shape.image[2], KERNEL, padding=1), nn.Sigmoid()
    )
