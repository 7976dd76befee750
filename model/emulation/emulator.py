"""The torch emulation of the quantised network: docs/numerics.md for batches of images, on any product tables.

A product's format, alignment, signs and zero points, and its multiplier, are all one table of 256 x 256 signed *terms*,
indexed by the bytes of the two operands' codes. A sum of products is then nothing but look-ups and 32-bit additions:
exact, since `QNetwork.check` keeps every sum below 2^31. Two engines do the sums: the compiled kernel
(kernel_sums.py) on CPUs, and gathers in torch (gather_sums.py) on other devices and without a compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.emulation import lookup
from model.emulation.gather_sums import GatherSums
from model.emulation.kernel_sums import KernelSums
from model.emulation.terms import term_table
from model.errors import RedcaneError
from model.qnetwork import (
    COUPLING_ONE,
    QClassCaps,
    QNetwork,
    QPrimaryCaps,
    Squash,
    squash_intervals,
)

MEMORY = 64 * 2**20  # bytes for what lives while one tile of images is computed

Observer = Callable[[str, int, Tensor], None]
"""Called with an operation's key, the routing iteration (from 1, else 0), and its accumulators (N, ...)."""


class Emulator:
    """Runs a quantised network on a device, `memory` bytes of images at a time (at the least, one image).

    On the CPU `engine` may force one of lookup.LEVELS, or "torch"; else `$REDCANE_EMULATION`, else the fastest.
    Raises RedcaneError when a sum of the network could overflow, or the machine lacks the engine that is asked for.
    """

    def __init__(
        self, network: QNetwork, device: str | torch.device = "cpu", memory: int = MEMORY, engine: str | None = None
    ) -> None:
        network.check()
        self.network, self.device = network, torch.device(device)
        self.tile = max(1, memory // image_bytes(network))
        terms = {key: term_table(product, network.tables[product.component]) for key, product, _ in network.products()}
        level = lookup.choose(engine) if self.device.type == "cpu" else None
        if level is not None:
            self._sums: KernelSums | GatherSums = KernelSums(network, terms, level)
        else:  # transposed, so that a row holds the terms of one weight with every activation
            self._sums = GatherSums(
                {key: torch.from_numpy(table.T.copy()).to(self.device) for key, table in terms.items()}
            )

    def run(self, images: NDArray[np.int16] | Tensor, observe: Observer | None = None) -> dict[str, Tensor]:
        """Every boundary of docs/numerics.md for image codes (N, H, W, C): int16 (N, ...), "class" int64 (N,).

        `observe` sees the accumulators of every operation, tile by tile. Raises RedcaneError for other shapes.
        """
        with self._sums.prepared():
            traces = [self._run(tile, observe) for tile in self._tiles(images)]
        return {name: torch.cat([trace[name] for trace in traces]) for name in traces[0]}

    def classify(self, images: NDArray[np.int16] | Tensor) -> NDArray[np.int64]:
        """Classes (N,) of image codes (N, H, W, C); holds no more than one tile's boundaries."""
        with self._sums.prepared():
            return torch.cat([self._run(tile, None)["class"] for tile in self._tiles(images)]).cpu().numpy()

    def _tiles(self, images: NDArray[np.int16] | Tensor) -> Iterator[Tensor]:
        codes = torch.as_tensor(images)
        if codes.ndim != 4 or len(codes) == 0 or tuple(codes.shape[1:]) != self.network.image:
            raise RedcaneError(
                f"the network takes images of {self.network.image} (height, width, channels), got {tuple(codes.shape)}"
            )
        for tile in codes.split(self.tile):
            yield tile.to(self.device, torch.int16)

    def _run(self, images: Tensor, observe: Observer | None) -> dict[str, Tensor]:
        trace = {"input": images}
        seen = observe or (lambda key, iteration, accumulators: None)
        x, coding = images, self.network.input
        for layer in self.network.layers:
            if isinstance(layer, QClassCaps):
                x, coding = self._class_capsules(layer, x, trace, seen), layer.squash.out
                continue
            key = f"{layer.name}.mac"
            accumulators = self._sums.convolution(key, layer.conv, x)
            seen(key, 0, accumulators)
            x, coding = self._sums.requantize(layer.conv.mac.requantizer, accumulators), layer.conv.mac.out
            trace[key] = x
            if isinstance(layer, QPrimaryCaps):
                x, coding = squash(layer.squash, x.reshape(len(x), -1, layer.capsule_dim)), layer.squash.out
                trace[f"{layer.name}.squash"] = x
        trace["class"] = ((x.long() - coding.zero_point) ** 2).sum(dim=-1).argmax(dim=-1)
        return trace

    def _class_capsules(self, layer: QClassCaps, u: Tensor, trace: dict[str, Tensor], seen: Observer) -> Tensor:
        """Capsules u (N, I, Din) -> class capsules (N, J, D) of the last iteration."""
        name = layer.name
        accumulators = self._sums.votes(layer, u)
        seen(f"{name}.votes", 0, accumulators)
        votes = trace[f"{name}.votes"] = self._sums.requantize(layer.votes.requantizer, accumulators)  # (N, I, J, D)
        n, inputs, classes, _ = votes.shape
        b = votes.new_zeros(n, classes, inputs)
        weighted_sum, agreement = self._sums.routing(layer, votes)
        v = votes[:, 0]
        for t in range(1, layer.iterations + 1):
            k = trace[f"{name}.softmax.{t}"] = softmax(layer, b)
            accumulators = weighted_sum(k)  # (N, J, D)
            seen(f"{name}.weighted_sum", t, accumulators)
            s = trace[f"{name}.weighted_sum.{t}"] = self._sums.requantize(layer.weighted_sum.requantizer, accumulators)
            v = trace[f"{name}.squash.{t}"] = squash(layer.squash, s)  # (N, J, D)
            if t < layer.iterations:
                accumulators = agreement(v)  # (N, I, J)
                seen(f"{name}.agreement", t, accumulators)
                change = self._sums.requantize(layer.agreement.requantizer, accumulators).mT
                b = trace[f"{name}.agreement.{t}"] = (b + change).clamp(-127, 127)
        return v


def squash(unit: Squash, q: Tensor) -> Tensor:
    """Signed codes (..., D) -> codes of the squashed capsules, by the table of docs/numerics.md."""
    lowest = torch.from_numpy(squash_intervals()[0]).to(q.device).int()  # the first sum of squares of every index
    table = torch.from_numpy(unit.table.astype(np.int64)).to(q.device)
    q = q.long()
    n = (q * q).sum(dim=-1, keepdim=True).int()
    gain = table[torch.bucketize(n, lowest, right=True) - 1]
    v = (q * gain + (1 << (unit.shift - 1))) >> unit.shift
    return (v + unit.out.zero_point).clamp(unit.out.lo, unit.out.hi).short()


def softmax(layer: QClassCaps, b: Tensor) -> Tensor:
    """Coupling coefficients (N, J, I) of logits (N, J, I), over j."""
    table = torch.from_numpy(layer.exp_table.astype(np.int64)).to(b.device)
    e = table[(b.amax(dim=1, keepdim=True) - b).int()]
    r = torch.div(COUPLING_ONE << 16, e.sum(dim=1, keepdim=True), rounding_mode="floor")
    return ((e * r + (1 << 15)) >> 16).short()


def image_bytes(network: QNetwork) -> int:
    """Bytes that one image takes at its most: the largest layer's inputs, sums and intermediate values."""
    height, width, channels = network.image
    most = 0
    for layer in network.layers:
        if isinstance(layer, QClassCaps):
            inputs, _, classes, dim = layer.weights.shape
            most = max(most, 24 * inputs * classes * dim)  # codes, rows, indices, terms, 64-bit sums
            continue
        cout, kh, kw, _ = layer.conv.weights.shape
        x = 8 * (height + 2 * layer.conv.padding) * (width + 2 * layer.conv.padding) * channels
        height = (height + 2 * layer.conv.padding - kh) // layer.conv.stride + 1
        width = (width + 2 * layer.conv.padding - kw) // layer.conv.stride + 1
        channels = cout
        most = max(most, x + 24 * height * width * channels)
    return most
