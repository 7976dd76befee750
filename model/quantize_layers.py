"""The integer constants of single layers, from a float network's weights and its calibration."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.calibration import Calibration, Range
from model.errors import RedcaneError
from model.qnetwork import (
    Coding,
    Format,
    Kind,
    Product,
    QClassCaps,
    QConv,
    QConvCaps3D,
    Squash,
    exp_table,
    takes_signed,
    unit_interval,
)

EXACT = {False: "exact", True: "exact_signed"}
"""What the exact multipliers of a quantised network are called, by the signedness of their operands."""


# the coding, in each format, of an operand with negative values, and of one without
_SIGNED: dict[Format, Kind] = {"sign-magnitude": "signed", "affine": "affine", "twos-complement": "signed"}
_POSITIVE: dict[Format, Kind] = {"sign-magnitude": "unsigned", "affine": "unsigned", "twos-complement": "signed"}


class LayerMaker:
    """Makes the layers of one network. Operations and tensors are named "layer.operation"; a tensor's coding is that of
    the format of the operation that reads it. Raises RedcaneError for weights and tensors that give no scale.
    """

    def __init__(self, calibration: Calibration, formats: Mapping[str, Format], align: Mapping[str, int]) -> None:
        """Format and place of the magnitudes are those of operations."""
        self._calibration, self._ranges = calibration, calibration.ranges
        self._formats, self._align = formats, align

    def coding(self, tensor: str, reader: str | None, *same: str) -> Coding:
        """The coding of a tensor that the operation `reader` multiplies with, or none does; `same` share it."""
        joint = Range(tensor)
        for found in (self._ranges[name] for name in (tensor, *same)):
            joint.low, joint.high = min(joint.low, found.low), max(joint.high, found.high)
        return joint.coding(_SIGNED[self._formats[reader]] if reader else "signed")

    def squashed(self, tensor: str) -> Coding:
        """The coding of a tensor that a squash reads."""
        return self._ranges[tensor].coding("float")

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
        b = self._weights_coding(f"{layer}.weight", weight, key)
        kernel = self._calibration.kernel(key, weight, a, b, stride, padding)
        mac = self._product(key, a, b, out, relu)
        real = np.zeros(len(kernel)) if bias is None else bias.detach().double().numpy()
        codes = np.floor(real / mac.accumulator_scale + 0.5)
        if not (np.abs(codes) < 2**31).all():  # a NaN is not either
            raise RedcaneError(f"{layer}.bias: too large for the 32-bit accumulator, or not a number; train it again")
        return QConv(kernel.transpose(0, 2, 3, 1).copy(), codes.astype(np.int32), stride, mac, padding)

    def class_caps(self, weight: Tensor, u: Coding, iterations: int, reads: tuple[str, ...] = ()) -> QClassCaps:
        """Class capsules with matrices (I, D, J, E) of capsules of coding `u`."""
        name = "classcaps"
        votes = self.coding(f"{name}.votes", f"{name}.weighted_sum")
        matrices = self._weights_coding(f"{name}.weight", weight, f"{name}.votes")
        codes = matrices.encode(weight.detach().double().numpy())
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
        sums = self.squashed(f"{name}.weighted_sum")
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

    def _weights_coding(self, name: str, weight: Tensor, key: str) -> Coding:
        """The coding of weights that the operation `key` multiplies with."""
        found = Range(name)
        found.add(weight.detach())
        return found.coding(_SIGNED[self._formats[key]])

    def _product(self, key: str, a: Coding, b: Coding, out: Coding, relu: bool = False) -> Product:
        number_format = self._formats[key]
        align = self._align[key] if number_format == "sign-magnitude" else 0
        return Product.make(number_format, a, b, out, EXACT[takes_signed(number_format)], align, relu)
