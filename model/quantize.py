"""From a float network to 8-bit codes and integer constants: per-tensor scales, calibrated on training images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.calibration import Calibration
from model.capsnet import CapsNet
from model.convcaps import ConvCaps, ConvCaps3D
from model.deepcaps import CELLS, KERNEL, Cell, DeepCaps, DeepCapsShape
from model.errors import RedcaneError
from model.multipliers.product_table import exact_table
from model.network import Network, Shape
from model.qnetwork import (
    FORMATS,
    Adder,
    Codes,
    Coding,
    Format,
    Layer,
    QAdd,
    QConvCaps,
    QConvCaps3D,
    QConvLayer,
    QNetwork,
    QPrimaryCaps,
    Squash,
    takes_signed,
)
from model.quantize_layers import EXACT, LayerMaker

OPERATIONS = ("conv1.mac", "primary.mac", "classcaps.votes", "classcaps.weighted_sum", "classcaps.agreement")
"""The operations of a CapsNet that multiply on the array, as keys "layer.operation"."""

_ROUTING = ("votes", "weighted_sum", "agreement")
DEEPCAPS_OPERATIONS = (
    "conv1.mac",
    *(f"{cell}.{layer}.mac" for cell in CELLS[:3] for layer in ("conv1", "skip", "conv2", "conv3")),
    "cell4.conv1.mac",
    *(f"cell4.skip.{name}" for name in _ROUTING),
    *(f"cell4.{layer}.mac" for layer in ("conv2", "conv3")),
    *(f"classcaps.{name}" for name in _ROUTING),
)
"""The operations of a DeepCaps that multiply on the array."""

ONE_TENSOR = (
    ("classcaps.weighted_sum", "classcaps.agreement", "the same votes"),
    ("cell4.skip.weighted_sum", "cell4.skip.agreement", "the same votes"),
    *((f"{cell}.conv2.mac", f"{cell}.skip.mac", f"the capsules of {cell}.conv1") for cell in CELLS[:3]),
    ("cell4.conv2.mac", "cell4.skip.votes", "the capsules of cell4.conv1"),
    ("cell4.conv1.mac", "classcaps.votes", "the capsules of cell3"),
)
"""Operations that read one tensor and so have one format, and what they read."""


def operations_of(shape: Shape) -> tuple[str, ...]:
    """The operations that multiply on the array in a network of this shape, in the order of execution."""
    return DEEPCAPS_OPERATIONS if isinstance(shape, DeepCapsShape) else OPERATIONS


def quantize(
    network: Network,
    images: Tensor | Calibration,
    formats: Mapping[str, Format] | Format = "sign-magnitude",
    align: Mapping[str, int] | int = 1,
) -> QNetwork:
    """Quantise a network, with exact multipliers (`EXACT`); `QNetwork.with_components` puts others in their places.

    `images` (N, C, H, W) in [0, 1] are training images to calibrate on, or what was found on them, which serves all
    quantisations of the network. `formats` is one format, or one for every operation of operations_of(shape); those of
    ONE_TENSOR share theirs. `align` = 1 puts the seven-bit magnitudes of the sign-magnitude format at the top of the
    multiplier's ports, 0 at the bottom (docs/numerics.md), of all operations or of each its own.

    Raises RedcaneError for formats that do not fit, images of another shape, values that are not numbers, tensors
    that are all zero, and sums that could overflow.
    """
    places = align if isinstance(align, Mapping) else dict.fromkeys(operations_of(network.shape), align)
    for place in places.values():
        if place not in (0, 1):
            raise RedcaneError(
                f"align: {place} should be 0 (magnitudes at the bottom of the multiplier) or 1 (at the top)"
            )
    of = check_formats(formats, operations_of(network.shape))
    make = LayerMaker(images if isinstance(images, Calibration) else Calibration(network, images), of, places)
    layers = _deepcaps(network, make) if isinstance(network, DeepCaps) else _capsnet(network, make)
    qnetwork = QNetwork(
        image=network.shape.image,
        input=make.unit_interval("conv1.mac"),
        layers=tuple(layers),
        tables={EXACT[kind]: exact_table(kind) for kind in sorted({takes_signed(fmt) for fmt in of.values()})},
    )
    qnetwork.check()
    return qnetwork


def _capsnet(network: CapsNet, make: LayerMaker) -> list[Layer]:
    shape, primary = network.shape, network.primary
    image = make.unit_interval("conv1.mac")
    x = make.positive("conv1.relu", "primary.mac")
    s = make.squashed("primary.mac")
    u = make.coding("primary.squash", "classcaps.votes")
    conv1 = make.conv(
        "conv1.mac", network.conv1.weight, network.conv1.bias, image, x, stride=shape.conv_stride, relu=True
    )
    mac = make.conv("primary.mac", primary.weight, primary.bias, x, s, stride=shape.primary_stride)
    return [
        QConvLayer("conv1", conv1),
        QPrimaryCaps("primary", mac, shape.primary_dim, Squash.for_scales(s.scale, u)),
        make.class_caps(network.classcaps.weight, u, shape.iterations),
    ]


def _deepcaps(network: DeepCaps, make: LayerMaker) -> list[Layer]:
    image, x = make.unit_interval("conv1.mac"), make.positive("conv1.relu", "cell1.conv1.mac")
    weight, bias = network.folded_conv1()
    conv1 = make.conv("conv1.mac", weight, bias, image, x, padding=KERNEL // 2, relu=True)
    layers: list[Layer] = [QConvLayer("conv1", conv1)]
    last = make.coding("cell4.add", "classcaps.votes", "cell3.add")  # the class capsules read both sums
    sums = [make.coding(f"cell{n}.add", f"cell{n + 1}.conv1.mac") for n in (1, 2)]
    for name, out in zip(CELLS, [*sums, last, last], strict=True):
        cell = network.get_submodule(name)
        assert isinstance(cell, Cell)
        layers += _cell(name, cell, x, out, make)
        x = out
    return [*layers, make.class_caps(network.classcaps.weight, last, network.shape.iterations, CELLS[:1:-1])]


def _cell(cell: str, module: Cell, x: Coding, out: Coding, make: LayerMaker) -> list[Layer]:
    """The layers of a cell that reads a tensor of coding `x` and gives one of coding `out`."""

    def conv_caps(name: str, layer: ConvCaps, a: Coding, v: Coding, *reads: str) -> QConvCaps:
        s = make.squashed(f"{cell}.{name}.mac")
        conv = make.conv(f"{cell}.{name}.mac", layer.weight, None, a, s, layer.stride, KERNEL // 2)
        return QConvCaps(f"{cell}.{name}", conv, layer.dim, Squash.for_scales(s.scale, v), reads)

    first = make.coding(f"{cell}.conv1.squash", f"{cell}.conv2.mac")
    second = make.coding(f"{cell}.conv2.squash", f"{cell}.conv3.mac")
    third = make.coding(f"{cell}.conv3.squash", None)
    skip: QConvCaps | QConvCaps3D
    if isinstance(module.skip, ConvCaps3D):
        types, iterations = module.conv1.types, module.skip.iterations
        skip = make.conv_caps_3d(f"{cell}.skip", module.skip.weight, first, iterations, types)
    else:
        skip = conv_caps("skip", module.skip, first, make.coding(f"{cell}.skip.squash", None))
    return [
        conv_caps("conv1", module.conv1, x, first),
        skip,
        conv_caps("conv2", module.conv2, first, second, f"{cell}.conv1"),
        conv_caps("conv3", module.conv3, second, third),
        QAdd(cell, Adder.for_codings(third, skip.squash.out, out), (f"{cell}.conv3", f"{cell}.skip")),
    ]


def check_formats(
    formats: Mapping[str, Format] | Format, operations: tuple[str, ...] = OPERATIONS
) -> dict[str, Format]:
    """One format for every operation; RedcaneError when one is unknown, missing, or at odds with another."""
    of: dict[str, Format] = dict(formats) if isinstance(formats, Mapping) else dict.fromkeys(operations, formats)
    for key in sorted(set(of) ^ set(operations)):
        raise RedcaneError(f"formats: {key}: " + ("has no format" if key in operations else "no such operation"))
    for key, name in of.items():
        if name not in FORMATS:
            raise RedcaneError(f"formats: {key}: {name!r} should be {' or '.join(FORMATS)}")
    for one, other, what in ONE_TENSOR:
        if one in of and other in of and of[one] != of[other]:
            raise RedcaneError(f"formats: {one} and {other} read {what}: give them one")
    return of


def image_codes(network: QNetwork, images: NDArray[np.floating] | Tensor) -> Codes:
    """Images (N, C, H, W) in [0, 1] as the network's input codes (N, H, W, C)."""
    return network.input.encode(np.asarray(images)).transpose(0, 2, 3, 1).copy()
