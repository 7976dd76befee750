"""From a float CapsNet to 8-bit codes and integer constants: per-tensor scales, calibrated on training images.

The range of a tensor is all that it takes on the calibration images. Clipping it was measured and is worse: in a
CapsNet the few large values are the message. Error of the class capsules' lengths (root mean square, four networks on
the digits, sign-magnitude): 0.018 for the whole range, 0.022 for the clipping of least mean squared error, 0.033 for
the 99.99th percentile, 0.042 for the 99.9th, which also loses up to 1.5 points of accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.capsnet import CapsNet
from model.errors import RedcaneError
from model.multipliers.product_table import exact_table
from model.network import Network
from model.qnetwork import (
    FORMATS,
    Codes,
    Coding,
    Format,
    Kind,
    Product,
    QClassCaps,
    QConv,
    QConvLayer,
    QNetwork,
    QPrimaryCaps,
    Requantizer,
    Squash,
    exp_table,
    takes_signed,
    unit_interval,
)

OPERATIONS = ("conv1.mac", "primary.mac", "classcaps.votes", "classcaps.weighted_sum", "classcaps.agreement")
"""The operations of a CapsNet that multiply on the array, as keys "layer.operation"."""

BATCH = 64  # calibration images at a time

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


def calibrate(network: CapsNet, images: Tensor) -> dict[str, Range]:
    """The ranges of all operations' outputs on images (N, C, H, W) in [0, 1], by "layer.operation"."""
    ranges: dict[str, Range] = {}

    def tap(layer: str, operation: str, output: Tensor, iteration: int, operands: tuple[Tensor, ...]) -> Tensor:
        key = f"{layer}.{operation}"
        ranges.setdefault(key, Range(key)).add(output)
        return output

    with torch.inference_mode():
        for batch in images.split(BATCH):
            network(batch, tap)
    return ranges


def quantize(
    network: Network,
    images: Tensor,
    formats: Mapping[str, Format] | Format = "sign-magnitude",
    align: int = 1,
) -> QNetwork:
    """Quantise a CapsNet, with exact multipliers (`EXACT`); `QNetwork.with_components` puts others in their places.

    `images` (N, C, H, W) in [0, 1] are training images to calibrate on. `formats` is one format, or one for every
    operation of OPERATIONS; weighted_sum and agreement read the same votes and share theirs. `align` = 1 puts the
    seven-bit magnitudes of the sign-magnitude format at the top of the multiplier's ports, 0 at the bottom
    (docs/numerics.md).

    Raises RedcaneError for formats that do not fit, images of another shape, values that are not numbers, tensors
    that are all zero, and sums that could overflow.
    """
    if not isinstance(network, CapsNet):
        raise RedcaneError("quantize: there is no 8-bit DeepCaps yet; its stages go up to analyze")
    if align not in (0, 1):
        raise RedcaneError(f"align: {align} should be 0 (magnitudes at the bottom of the multiplier) or 1 (at the top)")
    height, width, channels = network.shape.image
    if images.ndim != 4 or len(images) == 0 or tuple(images.shape[1:]) != (channels, height, width):
        raise RedcaneError(f"calibration: images of {channels}x{height}x{width} are wanted, got {tuple(images.shape)}")
    of = check_formats(formats)
    ranges = calibrate(network, images)
    # the coding, in each format, of an operand with negative values, and of one without
    signed: dict[Format, Kind] = {"sign-magnitude": "signed", "affine": "affine", "twos-complement": "signed"}
    positive: dict[Format, Kind] = {"sign-magnitude": "unsigned", "affine": "unsigned", "twos-complement": "signed"}
    image, coupling = (unit_interval(of[key]) for key in ("conv1.mac", "classcaps.weighted_sum"))

    def weights(name: str, key: str) -> tuple[Coding, NDArray[np.float64]]:
        parameter = network.get_parameter(name).detach()
        found = Range(name)
        found.add(parameter)
        return found.coding(signed[of[key]]), parameter.double().numpy()

    def product(key: str, a: Coding, b: Coding, out: Coding, relu: bool = False) -> Product:
        shift = align if of[key] == "sign-magnitude" else 0
        lanes = sum(coding.kind == "signed" for coding in (a, b))
        requantizer = Requantizer.for_scale(a.scale * b.scale / 2 ** (shift * lanes) / out.scale, out, relu)
        return Product(of[key], a, b, out, requantizer, EXACT[takes_signed(of[key])], shift)

    def conv(layer: str, a: Coding, out: Coding, stride: int, relu: bool = False) -> QConv:
        key = f"{layer}.mac"
        b, kernel = weights(f"{layer}.weight", key)
        mac = product(key, a, b, out, relu)
        unit = out.scale * mac.requantizer.multiplier / 2**mac.requantizer.shift  # value of 1 in the accumulator
        bias = np.floor(network.get_parameter(f"{layer}.bias").detach().double().numpy() / unit + 0.5)
        if not (np.abs(bias) < 2**31).all():  # a NaN is not either
            raise RedcaneError(f"{layer}.bias: too large for the 32-bit accumulator, or not a number; train it again")
        return QConv(b.encode(kernel).transpose(0, 2, 3, 1).copy(), bias.astype(np.int32), stride, mac)

    x = ranges["conv1.relu"].coding(positive[of["primary.mac"]])
    s = ranges["primary.mac"].coding("signed")
    u = ranges["primary.squash"].coding(signed[of["classcaps.votes"]])
    votes = ranges["classcaps.votes"].coding(signed[of["classcaps.weighted_sum"]])
    sums = ranges["classcaps.weighted_sum"].coding("signed")
    v = ranges["classcaps.squash"].coding(signed[of["classcaps.agreement"]])
    iterations = network.shape.iterations
    # With one iteration nothing becomes of the logits: any scale will do
    logits = ranges["classcaps.agreement"].coding("signed") if iterations > 1 else Coding("signed", 1 / 127)
    matrices, matrix_values = weights("classcaps.weight", "classcaps.votes")

    qnetwork = QNetwork(
        image=network.shape.image,
        input=image,
        layers=(
            QConvLayer("conv1", conv("conv1", image, x, network.shape.conv_stride, relu=True)),
            QPrimaryCaps(
                "primary",
                conv("primary", x, s, network.shape.primary_stride),
                network.shape.primary_dim,
                Squash.for_scales(s.scale, u),
            ),
            QClassCaps(
                "classcaps",
                matrices.encode(matrix_values),
                votes=product("classcaps.votes", u, matrices, votes),
                weighted_sum=product("classcaps.weighted_sum", coupling, votes, sums),
                agreement=product("classcaps.agreement", v, votes, logits),
                exp_table=exp_table(logits.scale),
                squash=Squash.for_scales(sums.scale, v),
                iterations=iterations,
            ),
        ),
        tables={EXACT[kind]: exact_table(kind) for kind in sorted({takes_signed(fmt) for fmt in of.values()})},
    )
    qnetwork.check()
    return qnetwork


def check_formats(formats: Mapping[str, Format] | Format) -> dict[str, Format]:
    """One format for every operation; RedcaneError when one is unknown, missing, or at odds with another."""
    of: dict[str, Format] = dict(formats) if isinstance(formats, Mapping) else dict.fromkeys(OPERATIONS, formats)
    for key in sorted(set(of) ^ set(OPERATIONS)):
        raise RedcaneError(f"formats: {key}: " + ("has no format" if key in OPERATIONS else "no such operation"))
    for key, name in of.items():
        if name not in FORMATS:
            raise RedcaneError(f"formats: {key}: {name!r} should be {' or '.join(FORMATS)}")
    if of["classcaps.weighted_sum"] != of["classcaps.agreement"]:
        raise RedcaneError("formats: classcaps.weighted_sum and classcaps.agreement read the same votes: give them one")
    return of


def image_codes(network: QNetwork, images: NDArray[np.floating] | Tensor) -> Codes:
    """Images (N, C, H, W) in [0, 1] as the network's input codes (N, H, W, C)."""
    return network.input.encode(np.asarray(images)).transpose(0, 2, 3, 1).copy()
