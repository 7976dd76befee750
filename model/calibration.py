"""What a network's tensors hold on training images: their ranges, the scales of what squashes read, and operands.

The range of a tensor is all that it takes on the calibration images, but for what squash reads: its largest vectors
are those that it shortens most, so that a smaller range, finer for the others, is often right. How much smaller differs
from network to network, and no error of the tensor itself tells: that of the squashed vectors does in CapsNets, but in
a DeepCaps it cuts off what later layers go by. So the error of the class capsules' lengths decides.

Clipping the other tensors was measured and is worse: in a CapsNet the few large values are the message. Error of the
class capsules' lengths (root mean square, four networks on the digits, sign-magnitude): 0.018 for the whole range,
0.022 for the clipping of least mean squared error, 0.033 for the 99.99th percentile, 0.042 for the 99.9th, which also
loses up to 1.5 points of accuracy.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]  # it has no stubs

from model.capsules import lengths, squash
from model.errors import RedcaneError
from model.network import Network
from model.qunits import Codes, Coding, Kind
from model.rounding import rounded_kernel
from model.tape import Tape

BATCH = 64  # calibration images at a time
VECTORS = 1024  # of what a squash reads are kept of a batch
PARTS = tuple(2 ** (-step / 4) for step in range(17))
"""Of the range of what a squash reads, to choose from."""
DECIDING = 128  # calibration images whose class capsules decide
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
        if kind == "signed":
            return Coding(kind, max(-low, high) / 127)
        if kind == "unsigned":
            return Coding(kind, high / 255)
        scale = (high - low) / 255
        return Coding(kind, scale, math.floor(-low / scale + 0.5))


class SquashRange(Range):
    """What the squash of a layer reads, the output of `operation` ("layer.name"): a range, and a sample of vectors."""

    def __init__(self, name: str, operation: str) -> None:
        super().__init__(name)
        self.operation = operation
        self._vectors: list[Tensor] = []

    def add(self, tensor: Tensor) -> None:
        """Take in vectors (..., D)."""
        super().add(tensor)
        vectors = tensor.flatten(0, -2)
        self._vectors.append(vectors[:: max(1, len(vectors) // VECTORS)].float())

    def likely(self) -> int:
        """Which of PARTS has the least squared error of the squashed vectors."""
        vectors, whole = torch.cat(self._vectors), self.coding("signed").scale
        squashed = squash(vectors)
        errors = [float((squash(_coded(vectors, whole * part)) - squashed).square().sum()) for part in PARTS]
        return errors.index(min(errors))


class Calibration:
    """What a network holds on training images (N, C, H, W) in [0, 1]: what its quantisations in all formats share."""

    def __init__(self, network: Network, images: Tensor, fit: bool = True) -> None:
        """Without `fit` ranges are whole and weights rounded to the nearest codes: where shapes are all that counts.
        Raises RedcaneError for images of another shape, and for values that are not numbers."""
        height, width, channels = network.shape.image
        if images.ndim != 4 or len(images) == 0 or tuple(images.shape[1:]) != (channels, height, width):
            wanted = f"images of {channels}x{height}x{width} are wanted"
            raise RedcaneError(f"calibration: {wanted}, got {tuple(images.shape)}")
        self.ranges: dict[str, Range] = {}
        """Of all operations' outputs, by "layer.operation"."""
        self._read: dict[str, SquashRange] = {}  # by layer
        self._operands: dict[str, list[Tensor]] = {}
        self.routed: dict[str, list[tuple[Tensor, ...]]] = {}
        """Operands of weighted sums and agreements in every iteration, of a few images, by "layer.operation"."""
        self._kernels: dict[tuple[str, Coding, Coding], Codes] = {}
        before: dict[str, str] = {}  # the operation before, by layer

        def tap(layer: str, operation: str, output: Tensor, iteration: int, operands: tuple[Tensor, ...]) -> Tensor:
            key = f"{layer}.{operation}"
            self.ranges.setdefault(key, Range(key)).add(output)
            if operation == "squash":
                found = SquashRange(f"{layer}.squash's input", before[layer])
                self._read.setdefault(layer, found).add(operands[0])
            elif fit and operation in ("mac", "votes"):
                self._keep(key, operands)
            elif fit and operation in ("weighted_sum", "agreement") and self._images == 0:
                self.routed.setdefault(key, []).append(tuple(x[:ROUTED].clone() for x in operands))
            before[layer] = key
            return output

        self._images = 0  # that went through
        with torch.inference_mode():
            for batch in images.split(BATCH):
                network(batch, tap)
                self._images += len(batch)
        self._fit = fit
        self._parts = self._decide(network, images[:DECIDING]) if fit else dict.fromkeys(self._read, 1.0)

    def squashed(self, layer: str) -> Coding:
        """The coding of what the squash of a layer reads. Raises RedcaneError when that is all zero."""
        whole = self._read[layer].coding("signed")
        return Coding(whole.kind, whole.scale * self._parts[layer])

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

    def _decide(self, network: Network, images: Tensor) -> dict[str, float]:
        """Of the range of what each squash reads, the part with which the class capsules' lengths come nearest to the
        float ones, the other tensors left as they are.
        """
        tape = Tape(network, images)
        clean = lengths(tape.making([tape.output], {0}).compute({0: images})[tape.output])
        alive = {layer: found for layer, found in self._read.items() if found.low < found.high}
        bar = tqdm(alive.items(), desc="calibrate", unit="layer", leave=False)
        return {layer: _best_part(found, tape, images, clean) for layer, found in bar}


def _best_part(found: SquashRange, tape: Tape, images: Tensor, clean: Tensor) -> float:
    """From the likely part as far up or down as the error of the class capsules' lengths falls with each step."""
    behind, whole = tape.behind([found.operation]), found.coding("signed").scale
    known = {0: images, **tape.making(behind.needs - {0}, {0}).compute({0: images})}

    def error(at: int) -> float:
        capsules = behind.run(known, lambda operation, iteration, x, out: _coded(x, whole * PARTS[at]))
        return float((lengths(capsules) - clean).square().sum())

    best = found.likely()
    least = error(best)
    for step in (1, -1):
        while 0 <= best + step < len(PARTS) and (next_one := error(best + step)) < least:
            best, least = best + step, next_one
    return PARTS[best]


def _coded(x: Tensor, scale: float) -> Tensor:
    """What is left of values when they have been signed codes."""
    return torch.floor(x / scale + 0.5).clamp(-127, 127) * scale
