"""The integer constants of single layers, from a float network's weights and the ranges of its tensors.

The range of a tensor is all that it takes on the calibration images, but for what squash reads: its largest vectors
are those that it shortens most, so that a smaller range, finer for the others, is right where the squashed vectors
come out nearer. Clipping the other tensors was measured and is worse: in a CapsNet the few large values are the
message. Error of the class capsules' lengths (root mean square, four networks on
the digits, sign-magnitude): 0.018 for the whole range, 0.022 for the clipping of least mean squared error, 0.033 for
the 99.99th percentile, 0.042 for the 99.9th, which also loses up to 1.5 points of accuracy. Before squash, less than
the whole range brings the compact CapsNet of Fashion-MNIST from 89.96 to 91.12 % of the validation images (float:
91.48 %) and from 90.02 to 90.66 % of the test images (90.90 %), and on MNIST and the digits changes a few images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.capsules import squash
from model.errors import RedcaneError
from model.network import Network
from model.qnetwork import (
    Codes,
    Coding,
    Format,
    Kind,
    Product,
    QClassCaps,
    QConv,
    QConvCaps3D,
    Requantizer,
    Squash,
    exp_table,
    takes_signed,
    unit_interval,
)

BATCH = 64  # calibration images at a time
VECTORS = 1024  # of what a squash reads are kept of a batch
PARTS = tuple(2 ** (-step / 4) for step in range(17))
"""Of the range of what a squash reads, to choose from."""

EXACT = {False: "exact", True: "exact_signed"}
"""What the exact multipliers of a quantised network are called, by the signedness of their operands."""


class Range:
    """The lowest and the highest value that a tensor takes."""

    def __init__(self, name: str) -> None:
        self.name, self.low, self.high = name, math.inf, -math.inf

    def add(self, tensor: Tensor) -> None:
        """Take in a batch's values. Raises RedcaneError when one of them is not a finite number."""
        low, high = (float(x) for x in tensor.aminmax())
        if not math.isfinite(low) or not math.isfinite(high):  # a NaN anywhere is both
            raise RedcaneError(f"{self.name}: holds values that are not numbers; the weights are broken, train again")
        self.low, self.high = min(self.low, low), max(self.high, high)

    def coding(self, kind: Kind) -> Coding:
        """The coding of this kind that covers the range and zero.

        Raises RedcaneError when the tensor holds nothing but zeros (`unsigned`: nothing above), which give no scale.
        """
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        if low == high or (kind == "unsigned" and high == 0):
            raise RedcaneError(f"{self.name}: nothing but zeros, which give no scale; the network is dead, train again")
        if kind == "signed":
            return Coding(kind, max(-low, high) / 127)
        if kind == "unsigned":
            return Coding(kind, high / 255)
        scale = (high - low) / 255
        return Coding(kind, scale, math.floor(-low / scale + 0.5))


class SquashRange(Range):
    """What squash reads: a range, and a sample of the vectors."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._vectors: list[Tensor] = []

    def add(self, tensor: Tensor) -> None:
        """Take in vectors (..., D)."""
        super().add(tensor)
        vectors = tensor.flatten(0, -2)
        self._vectors.append(vectors[:: max(1, len(vectors) // VECTORS)].float())

    def coding(self, kind: Kind) -> Coding:
        """The signed coding, of the whole range or less, with the least squared error of the squashed vectors."""
        whole = super().coding(kind)
        vectors = torch.cat(self._vectors)
        squashed = squash(vectors)

        def error(scale: float) -> float:
            codes = torch.floor(vectors / scale + 0.5).clamp(-127, 127)
            return float((squash(codes * scale) - squashed).square().sum())

        return Coding(kind, min((whole.scale * part for part in PARTS), key=error))


def calibrate(network: Network, images: Tensor) -> dict[str, Range]:
    """The ranges of all operations' outputs on images (N, C, H, W) in [0, 1], by "layer.operation", and of what the
    squashes read, by "layer.squash's input".
    """
    ranges: dict[str, Range] = {}

    def tap(layer: str, operation: str, output: Tensor, iteration: int, operands: tuple[Tensor, ...]) -> Tensor:
        key = f"{layer}.{operation}"
        ranges.setdefault(key, Range(key)).add(output)
        if operation == "squash":
            read = f"{layer}.squash's input"
            ranges.setdefault(read, SquashRange(read)).add(operands[0])
        return output

    with torch.inference_mode():
        for batch in images.split(BATCH):
            network(batch, tap)
    return ranges


# the coding, in each format, of an operand with negative values, and of one without
_SIGNED: dict[Format, Kind] = {"sign-magnitude": "signed", "affine": "affine", "twos-complement": "signed"}
_POSITIVE: dict[Format, Kind] = {"sign-magnitude": "unsigned", "affine": "unsigned", "twos-complement": "signed"}


class LayerMaker:
    """Makes the layers of one network. Operations and tensors are named "layer.operation"; a tensor's coding is that of
    the format of the operation that reads it. Raises RedcaneError for weights and tensors that give no scale.
    """

    def __init__(
        self, network: Network, images: Tensor, formats: Mapping[str, Format], align: Mapping[str, int]
    ) -> None:
        """Calibrates on images (N, C, H, W) in [0, 1]; format and place of the magnitudes are those of operations."""
        self._ranges = calibrate(network, images)
        self._formats, self._align = formats, align

    def coding(self, tensor: str, reader: str | None, *same: str) -> Coding:
        """The coding of a tensor that the operation `reader` multiplies with, or none does; `same` share it."""
        joint = Range(tensor)
        for found in (self._ranges[name] for name in (tensor, *same)):
            joint.low, joint.high = min(joint.low, found.low), max(joint.high, found.high)
        return joint.coding(_SIGNED[self._formats[reader]] if reader else "signed")

    def squashed(self, layer: str) -> Coding:
        """The coding of what the squash of a layer reads."""
        return self._ranges[f"{layer}.squash's input"].coding("signed")

    def positive(self, tensor: str, reader: str) -> Coding:
        """The coding of a tensor without negative values."""
        return self._ranges[tensor].coding(_POSITIVE[self._formats[reader]])

    def unit_interval(self, reader: str) -> Coding:
        """The coding of image and coupling coefficients."""
        return unit_interval(self._formats[reader])

    def conv(
        self,
        key: str,
        weight: Tensor,
        bias: Tensor | None,
        a: Coding,
        out: Coding,
        stride: int = 1,
        padding: int = 0,
        relu: bool = False,
    ) -> QConv:
        """A convolution with a kernel (Cout, Cin, Kh, Kw) of a tensor of coding `a`."""
        layer = key.rpartition(".")[0]
        b, kernel = self._weights(f"{layer}.weight", weight, key)
        mac = self._product(key, a, b, out, relu)
        unit = out.scale * mac.requantizer.multiplier / 2**mac.requantizer.shift  # value of 1 in the accumulator
        real = np.zeros(len(kernel)) if bias is None else bias.detach().double().numpy()
        codes = np.floor(real / unit + 0.5)
        if not (np.abs(codes) < 2**31).all():  # a NaN is not either
            raise RedcaneError(f"{layer}.bias: too large for the 32-bit accumulator, or not a number; train it again")
        return QConv(kernel.transpose(0, 2, 3, 1).copy(), codes.astype(np.int32), stride, mac, padding)

    def class_caps(self, weight: Tensor, u: Coding, iterations: int, reads: tuple[str, ...] = ()) -> QClassCaps:
        """Class capsules with matrices (I, D, J, E) of capsules of coding `u`."""
        name = "classcaps"
        votes = self.coding(f"{name}.votes", f"{name}.weighted_sum")
        matrices, codes = self._weights(f"{name}.weight", weight, f"{name}.votes")
        product = self._product(f"{name}.votes", u, matrices, votes)
        return QClassCaps(name, codes, product, *self._routing(name, votes, iterations), iterations, reads)

    def conv_caps_3d(self, name: str, weight: Tensor, u: Coding, iterations: int, types: int) -> QConvCaps3D:
        """Routed capsules on a grid: a kernel (J, E, D, Kh, Kw) of `types` types of capsules of coding `u`."""
        votes = self.coding(f"{name}.votes", f"{name}.weighted_sum")
        kernel, dim = weight.flatten(0, 1), weight.shape[1]
        conv = self.conv(f"{name}.votes", kernel, None, u, votes, padding=kernel.shape[2] // 2)
        return QConvCaps3D(name, conv, types, dim, *self._routing(name, votes, iterations), iterations)

    def _routing(
        self, name: str, votes: Coding, iterations: int
    ) -> tuple[Product, Product, NDArray[np.uint16], Squash]:
        """Weighted sum, agreement, table of exponentials and squash of a layer's routing."""
        sums = self.squashed(name)
        v = self.coding(f"{name}.squash", f"{name}.agreement")
        # With one iteration nothing becomes of the logits: any scale will do
        logits = self.coding(f"{name}.agreement", None) if iterations > 1 else Coding("signed", 1 / 127)
        coupling = self.unit_interval(f"{name}.weighted_sum")
        return (
            self._product(f"{name}.weighted_sum", coupling, votes, sums),
            self._product(f"{name}.agreement", v, votes, logits),
            exp_table(logits.scale),
            Squash.for_scales(sums.scale, v),
        )

    def _weights(self, name: str, weight: Tensor, key: str) -> tuple[Coding, Codes]:
        """Coding and codes of weights that the operation `key` multiplies with."""
        found = Range(name)
        found.add(weight.detach())
        coding = found.coding(_SIGNED[self._formats[key]])
        return coding, coding.encode(weight.detach().double().numpy())

    def _product(self, key: str, a: Coding, b: Coding, out: Coding, relu: bool = False) -> Product:
        number_format = self._formats[key]
        align = self._align[key] if number_format == "sign-magnitude" else 0
        lanes = sum(coding.kind == "signed" for coding in (a, b))
        requantizer = Requantizer.for_scale(a.scale * b.scale / 2 ** (align * lanes) / out.scale, out, relu)
        return Product(number_format, a, b, out, requantizer, EXACT[takes_signed(number_format)], align)
