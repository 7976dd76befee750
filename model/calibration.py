"""What a network's tensors hold on training images: their ranges, and operands.

The range of a tensor is all that it takes on the calibration images. Clipping was measured and is worse: in a CapsNet
the few large values are the message. Error of the class capsules' lengths (root mean square, four networks on the
digits, sign-magnitude): 0.018 for the whole range, 0.022 for the clipping of least mean squared error, 0.033 for the
99.99th percentile, 0.042 for the 99.9th, which also loses up to 1.5 points of accuracy.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from model.errors import RedcaneError
from model.network import Network
from model.qunits import Codes, Coding, Kind
from model.rounding import rounded_kernel

BATCH = 64  # calibration images at a time
OPERAND_BYTES = 32 * 2**20  # of the first images' tensors, for each operation that reads them and has weights
ROUTED = 8  # images whose routing is kept


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
        if kind != "affine":
            most = high if kind == "unsigned" else max(-low, high)
            return Coding(kind, most / Coding(kind, 1.0).hi)
        scale = (high - low) / 255
        return Coding(kind, scale, math.floor(-low / scale + 0.5))


class Calibration:
    """What a network holds on training images (N, C, H, W) in [0, 1]: what its quantisations in all formats share."""

    def __init__(self, network: Network, images: Tensor, fit: bool = True) -> None:
        """Without `fit` weights are rounded to the nearest codes: where shapes are all that counts.
        Raises RedcaneError for images of another shape, and for values that are not numbers.
        """
        height, width, channels = network.shape.image
        if images.ndim != 4 or len(images) == 0 or tuple(images.shape[1:]) != (channels, height, width):
            wanted = f"images of {channels}x{height}x{width} are wanted"
            raise RedcaneError(f"calibration: {wanted}, got {tuple(images.shape)}")
        self.ranges: dict[str, Range] = {}
        """Of all operations' outputs, by "layer.operation"."""
        self._operands: dict[str, list[Tensor]] = {}
        self.routed: dict[str, list[tuple[Tensor, ...]]] = {}
        """Operands of weighted sums and agreements in every iteration, of a few images, by "layer.operation"."""
        self._kernels: dict[tuple[str, Coding, Coding], Codes] = {}

        def tap(layer: str, operation: str, output: Tensor, iteration: int, operands: tuple[Tensor, ...]) -> Tensor:
            key = f"{layer}.{operation}"
            self.ranges.setdefault(key, Range(key)).add(output)
            if fit and operation in ("mac", "votes"):
                self._keep(key, operands)
            elif fit and operation in ("weighted_sum", "agreement") and self._images == 0:
                self.routed.setdefault(key, []).append(tuple(x[:ROUTED].clone() for x in operands))
            return output

        self._images = 0  # that went through
        with torch.inference_mode():
            for batch in images.split(BATCH):
                network(batch, tap)
                self._images += len(batch)
        self._fit = fit

    def kernel(self, key: str, weight: Tensor, a: Coding, b: Coding, stride: int, padding: int) -> Codes:
        """The codes of a kernel (Cout, Cin, Kh, Kw) of this network that the operation `key` multiplies with; b is its
        coding, and a that of the tensor that it is moved over. See model/rounding.py.
        """
        values = weight.detach().double().numpy()
        if not self._fit:
            return b.encode(values)
        place = (key, a, b)
        if place not in self._kernels:
            self._kernels[place] = rounded_kernel(values, b, self.read(key, a), stride, padding)
        return self._kernels[place]

    def read(self, key: str, a: Coding) -> Codes:
        """What an operation with weights reads of the first images, as codes of coding `a` less the zero point:
        maps (N, C, H, W) of a convolution, capsules (N, I, D) of the class capsules' votes.
        """
        codes: Codes = a.encode(torch.cat(self._operands[key]).numpy()) - np.int16(a.zero_point)
        return codes

    def _keep(self, key: str, operands: tuple[Tensor, ...]) -> None:
        """What an operation with weights reads, of the first images."""
        x, weight = operands[:2]
        if weight.ndim == 5:  # 3D capsules: each type is moved over by itself, (N, H, W, T, D) -> (N * T, D, H, W)
            x = x.permute(0, 3, 4, 1, 2).flatten(0, 1)
        kept = self._operands.setdefault(key, [])
        room = OPERAND_BYTES - sum(tensor.nbytes for tensor in kept)
        if room > 0:
            kept.append(x[: max(1, room // x[0].nbytes)].clone())
