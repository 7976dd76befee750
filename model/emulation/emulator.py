"""The torch emulation of the quantised network: docs/numerics.md for batches of images, on any product tables.

A product's format, alignment, signs and zero points, and its multiplier, are all one table of 256 x 256 signed *terms*,
indexed by the bytes of the two operands' codes. A sum of products is then nothing but look-ups and 32-bit additions:
exact, since `QNetwork.check` keeps every sum below 2^31. Two engines do the sums: the compiled kernel
(kernel_sums.py) on CPUs, and torch on other devices and without a compiler: products of bytes (factor_sums.py) where
terms have integer factors, else gathers (gather_sums.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.emulation import lookup
from model.emulation.factor_sums import FactorSums
from model.emulation.kernel_sums import KernelSums
from model.emulation.terms import term_table
from model.errors import RedcaneError
from model.multipliers.product_table import Table
from model.qnetwork import (
    Adder,
    Layer,
    QAdd,
    QClassCaps,
    QConv,
    QConvCaps,
    QConvCaps3D,
    QConvLayer,
    QNetwork,
    QPrimaryCaps,
    Requantizer,
    Routed,
    convolution_of,
)

MEMORY = 64 * 2**20  # bytes for what lives while one tile of images is computed
DEVICE_MEMORY = 8 * 2**30  # the same on a GPU, which needs more at once to be busy; at most an eighth of what it has

Observer = Callable[[str, int, Tensor], None]
"""Called with an operation's key, the routing iteration (from 1, else 0), and its accumulators (N, ...)."""


def convolved(conv: QConv, table: Table, maps: NDArray[np.int16]) -> NDArray[np.int32]:
    """Accumulators (N, H', W', Cout) of a convolution by itself on maps of codes (N, H, W, Cin), modulo 2^32."""
    device = _device(None)
    alone = QNetwork(maps.shape[1:], conv.mac.a, (QConvLayer("", conv),), {conv.mac.component: table})
    sums = _engine(alone, device, MEMORY, None)
    with sums.prepared():
        return sums.convolution(".mac", conv, torch.from_numpy(maps).to(device)).cpu().numpy()


def _device(asked: str | torch.device | None) -> torch.device:
    if asked is None:
        asked = lookup.GPU if os.environ.get(lookup.ENGINE) == lookup.GPU else "cpu"
    device = torch.device(asked)
    if device.type == lookup.GPU and not torch.cuda.is_available():
        raise RedcaneError(f"emulation: {lookup.GPU} is asked for (by {lookup.ENGINE}?), but torch finds no GPU")
    return device


def _engine(network: QNetwork, device: torch.device, memory: int, engine: str | None) -> KernelSums | FactorSums:
    """What sums the products of a network on a device."""
    terms = {key: term_table(product, network.tables[product.component]) for key, product, _ in network.products()}
    level = lookup.choose(engine) if device.type == "cpu" else None
    if level is not None:
        return KernelSums(network, terms, level)
    return FactorSums(network, terms, device, memory)


class Emulator:
    """Runs a quantised network on a device, so many images at a time as `memory` bytes hold (at the least, one).

    The device is the CPU unless told, here or by `$REDCANE_EMULATION`, to be "cuda". On the CPU `engine` may force one
    of lookup.LEVELS, or "torch"; else `$REDCANE_EMULATION`, else the fastest. Raises RedcaneError when a sum of the
    network could overflow, or the machine lacks the engine that is asked for.
    """

    def __init__(
        self,
        network: QNetwork,
        device: str | torch.device | None = None,
        memory: int | None = None,
        engine: str | None = None,
    ) -> None:
        network.check()
        self.network, self.device = network, _device(device)
        if memory is None:
            memory = MEMORY if self.device.type == "cpu" else device_memory(self.device)
        self.tile = max(1, memory // image_bytes(network))
        self._sums = _engine(network, self.device, memory, engine)

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

    def before_last(self, images: NDArray[np.int16] | Tensor) -> dict[str, Tensor]:
        """The boundaries (N, ...) that the last layer reads, for image codes (N, H, W, C): see `classify_last`."""
        *layers, (_, boundaries) = self.network.sources()
        traces: list[dict[str, Tensor]] = []
        with self._sums.prepared():
            for tile in self._tiles(images):
                trace = {"input": tile}
                self._compute(layers, trace, None)
                traces.append({name: trace[name] for name in boundaries})
        return {name: torch.cat([trace[name] for trace in traces]) for name in boundaries}

    def classify_last(self, boundaries: dict[str, Tensor]) -> NDArray[np.int64]:
        """Classes (N,) from what the last layer reads: `before_last` of a network whose other layers are the same."""
        *_, last = self.network.sources()
        classes = []
        with self._sums.prepared():
            for tile in zip(*(tensor.split(self.tile) for tensor in boundaries.values()), strict=True):
                trace = dict(zip(boundaries, tile, strict=True))
                self._compute([last], trace, None)
                classes.append(trace["class"])
        return torch.cat(classes).cpu().numpy()

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
        self._compute(self.network.sources(), trace, observe)
        return trace

    def _compute(
        self, layers: Iterable[tuple[Layer, tuple[str, ...]]], trace: dict[str, Tensor], observe: Observer | None
    ) -> None:
        """Add to `trace` the boundaries of layers, each with the names of those that it reads."""
        for layer, sources in layers:
            x = [trace[source] for source in sources]
            if isinstance(layer, QClassCaps):
                capsules = [u.reshape(len(u), -1, layer.weights.shape[1]) for u in x]
                self._class_capsules(layer, torch.cat(capsules, dim=1), trace, observe)
            elif isinstance(layer, QConvCaps3D):
                self._conv_capsules_3d(layer, x[0], trace, observe)
            elif isinstance(layer, QAdd):
                trace[f"{layer.name}.add"] = add(layer.adder, x[0], x[1].reshape(x[0].shape))
            else:
                key = f"{layer.name}.mac"
                sums = partial(self._sums.convolution, key, layer.conv, x[0].flatten(3))
                maps = trace[key] = self._codes(key, sums, layer.conv.mac.requantizer, observe)
                if isinstance(layer, QPrimaryCaps):
                    grid = maps.shape[1:3] if isinstance(layer, QConvCaps) else ()
                    s = maps.reshape(len(maps), *grid, -1, layer.capsule_dim)
                    trace[f"{layer.name}.squash"] = self._sums.squash(layer.squash, s)

    def _codes(
        self, key: str, sums: Callable[[Requantizer | None], Tensor], unit: Requantizer, observe: Observer | None,
        iteration: int = 0,
    ) -> Tensor:  # fmt: skip
        """The codes that `unit` makes of sums, of which an engine makes codes itself unless they are observed."""
        if observe is None:
            return sums(unit)
        accumulators = sums(None)
        observe(key, iteration, accumulators)
        return self._sums.requantize(unit, accumulators)

    def _conv_capsules_3d(
        self, layer: QConvCaps3D, u: Tensor, trace: dict[str, Tensor], observe: Observer | None
    ) -> None:
        """Capsules u (N, H, W, I, Din): votes (N, H * W, I, J, D), routed at every position as if it were an image."""
        n, height, width, inputs, _ = u.shape
        key = f"{layer.name}.votes"
        by_type = u.permute(0, 3, 1, 2, 4).reshape(n * inputs, height, width, -1)

        def sums(unit: Requantizer | None) -> Tensor:
            by_input = self._sums.convolution(key, layer.conv, by_type, unit)  # (N * I, H, W, J * D)
            return by_input.view(n, inputs, height * width, -1).transpose(1, 2).contiguous()

        votes = self._codes(key, sums, layer.conv.mac.requantizer, observe)
        votes = trace[key] = votes.view(n, height * width, inputs, -1, layer.capsule_dim)
        found: dict[str, Tensor] = {}
        self._route(layer, votes.flatten(0, 1), found, observe)
        trace |= {name: tensor.unflatten(0, (n, height * width)) for name, tensor in found.items()}

    def _class_capsules(self, layer: QClassCaps, u: Tensor, trace: dict[str, Tensor], observe: Observer | None) -> None:
        """Capsules u (N, I, Din) -> class capsules (N, J, D) of every iteration."""
        key = f"{layer.name}.votes"
        votes = trace[key] = self._codes(key, partial(self._sums.votes, layer, u), layer.votes.requantizer, observe)
        self._route(layer, votes, trace, observe)
        v = trace[layer.output].long() - layer.squash.out.zero_point
        trace["class"] = (v**2).sum(dim=-1).argmax(dim=-1)

    def _route(self, layer: Routed, votes: Tensor, trace: dict[str, Tensor], observe: Observer | None) -> None:
        """Dynamic routing of votes (N, I, J, D)."""
        name = layer.name
        n, inputs, classes, _ = votes.shape
        b = votes.new_zeros(n, classes, inputs)
        weighted_sum, agreement = self._sums.routing(layer, votes)
        for t in range(1, layer.iterations + 1):
            k = trace[f"{name}.softmax.{t}"] = self._sums.softmax(layer, b)
            key, unit = f"{name}.weighted_sum", layer.weighted_sum.requantizer
            s = trace[f"{key}.{t}"] = self._codes(key, partial(weighted_sum, k), unit, observe, t)  # (N, J, D)
            v = trace[f"{name}.squash.{t}"] = self._sums.squash(layer.squash, s)
            if t < layer.iterations:
                key, unit = f"{name}.agreement", layer.agreement.requantizer
                change = self._codes(key, partial(agreement, v), unit, observe, t)  # (N, J, I)
                b = trace[f"{key}.{t}"] = (b + change).clamp(-127, 127)


def device_memory(device: torch.device) -> int:
    """Bytes that a GPU takes for what lives while one tile of images is computed."""
    return min(DEVICE_MEMORY, torch.cuda.get_device_properties(device).total_memory // 8)


def add(adder: Adder, a: Tensor, b: Tensor) -> Tensor:
    """The sum of two tensors of codes, each of its own scale."""
    ma, mb = adder.multipliers
    wide = (a.int() - adder.a.zero_point) * ma + (b.int() - adder.b.zero_point) * mb
    q = ((wide + (1 << (adder.shift - 1))) >> adder.shift) + adder.out.zero_point
    return q.clamp(adder.out.lo, adder.out.hi).short()


def image_bytes(network: QNetwork) -> int:
    """Bytes that one image takes at its most: the largest layer's inputs, sums and intermediate values."""
    most, grids = 0, {"input": network.image}
    for layer, sources in network.sources():
        if isinstance(layer, QClassCaps):
            inputs, _, classes, dim = layer.weights.shape
            most = max(most, 24 * inputs * classes * dim)  # codes, rows, indices, terms, 64-bit sums
            continue
        height, width, channels = grids[sources[0]]
        images, (_, conv) = 1, convolution_of(layer)
        if conv is not None:
            x = 8 * (height + 2 * conv.padding) * (width + 2 * conv.padding) * channels
            channels, kh, kw, _ = conv.weights.shape
            height = (height + 2 * conv.padding - kh) // conv.stride + 1
            width = (width + 2 * conv.padding - kw) // conv.stride + 1
            images = layer.in_types if isinstance(layer, QConvCaps3D) else 1
            most = max(most, x + 24 * images * height * width * channels)
        grids[layer.output] = height, width, channels
    return most
