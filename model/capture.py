"""What an operation's multipliers really see: whole sums of operand pairs, sampled while real images are computed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.emulation import Emulator
from model.emulation.terms import code_values, term_table
from model.multipliers.product_table import Table
from model.qnetwork import Coding, Product, QClassCaps, QConv, QConvCaps3D, Routed, convolution_of, terms

SUMS = 2**14  # sums sampled of each operation: their mean error is then known to 1/128 of its deviation
PAIRS = 2**21  # and at most so many operand pairs, which for long sums is less
RUNS, RUN = 2**11, 32  # samples of consecutive operand pairs, and their length

Pairs = NDArray[np.uint16]


@dataclass(frozen=True)
class Capture:
    """S sampled sums of one operation, of K terms each, and how large its outputs get."""

    product: Product
    pairs: Pairs  # (S, K): byte of A * 256 + byte of B
    spans: NDArray[np.float64]  # (S,): R(X) = max - min of the output tensor that the sum is from, in accumulator units

    def error(self, exact: Table, table: Table) -> NDArray[np.float64]:
        """(P - P') / R of every sum (S,): P by the `exact` table, P' by `table`. The sign is the paper's (Table IV)."""
        difference = term_table(self.product, exact).astype(np.int64) - term_table(self.product, table)
        return difference.reshape(-1)[self.pairs].sum(axis=1) / self.spans

    def noise(self, exact: Table, table: Table) -> float:
        """Root mean square of (P - g P') / R over the sums, with the gain g that makes it least: a common gain is in no
        class's favour.
        """
        sums = [term_table(self.product, t).astype(np.int64).reshape(-1)[self.pairs].sum(axis=1) / self.spans
                for t in (exact, table)]  # fmt: skip
        power = float(sums[1] @ sums[1])
        gain = float(sums[0] @ sums[1]) / power if power else 0.0
        return float(np.sqrt(np.mean(np.square(sums[0] - gain * sums[1]))))

    def operands(self, runs: int = RUNS, length: int = RUN) -> NDArray[np.int64]:
        """What the multiplier's ports see one after the other: int64 [runs, length], each pair of bytes 256 a + b.

        Every run begins at random within the sums, of which one follows the other. Of few pairs the runs are shorter.
        """
        flat = self.pairs.reshape(-1)
        length = min(length, flat.size)
        starts = np.random.default_rng(0).integers(0, flat.size - length + 1, runs)
        codes = flat[starts[:, None] + np.arange(length)]
        port_a, port_b = (self._port(c, code_values(c)) for c in (self.product.a, self.product.b))
        return 256 * port_a[codes >> 8] + port_b[codes & 255]

    def port_histogram(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """How often the multiplier's ports see each pair of values [a, b], 256 x 256 counts each: of the products
        that are added, and of those that are subtracted (sign-magnitude, operands of unlike signs).
        """
        counts = np.bincount(self.pairs.reshape(-1), minlength=65536).reshape(256, 256)
        a, b = code_values(self.product.a), code_values(self.product.b)
        port_a, port_b = self._port(self.product.a, a), self._port(self.product.b, b)
        subtracted = (self.product.format == "sign-magnitude") & ((a[:, None] < 0) != (b[None, :] < 0))
        histograms = []
        for chosen in (~subtracted, subtracted):
            histogram = np.zeros((256, 256), np.int64)
            np.add.at(histogram, (port_a[:, None], port_b[None, :]), np.where(chosen, counts, 0))
            histograms.append(histogram)
        return histograms[0], histograms[1]

    def _port(self, coding: Coding, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """The bytes at the multiplier's port for the values of codes."""
        if self.product.format == "twos-complement":
            return values & 255
        return np.abs(values) << (self.product.align if coding.kind == "signed" else 0)


def capture(
    emulator: Emulator, images: NDArray[np.int16], sums: int = SUMS, pairs: int = PAIRS, seed: int = 0
) -> dict[str, Capture]:
    """Sample every product operation's sums, by "layer.operation", while the network runs on image codes (N, H, W, C).

    Up to `sums` sums and `pairs` operand pairs of each operation are drawn at random, evenly over the routing
    iterations. R(X) is the range of the operation's output over all the images, of each iteration its own: the tensor
    that the noise of model/noise.py is relative to. For the agreement that is the updated logits. Keeps the boundaries
    of all the images in memory.
    """
    lows: dict[tuple[str, int], float] = {}
    highs: dict[tuple[str, int], float] = {}

    def observe(key: str, iteration: int, accumulators: Tensor) -> None:
        place, (low, high) = (key, iteration), accumulators.aminmax()
        lows[place] = min(lows.get(place, np.inf), float(low))
        highs[place] = max(highs.get(place, -np.inf), float(high))

    trace = {name: tensor.cpu().numpy() for name, tensor in emulator.run(images, observe).items()}
    rng = np.random.default_rng(seed)
    captures: dict[str, Capture] = {}
    for layer, sources in emulator.network.sources():
        x = trace[sources[0]]
        for name, product in layer.products().items():
            key = f"{layer.name}.{name}"
            iterations = sorted(iteration for found, iteration in lows if found == key)
            if not iterations:  # one routing iteration only: there is no agreement
                continue
            parts, spans = [], []
            for t in iterations:
                count = max(1, min(sums, pairs // terms(layer, name)) // len(iterations))
                operation, conv = convolution_of(layer)
                if isinstance(layer, QClassCaps) and name == "votes":
                    u = [trace[source].reshape(len(x), -1, layer.weights.shape[1]) for source in sources]
                    parts.append(_vote_pairs(layer, np.concatenate(u, axis=1), count, rng))
                elif isinstance(layer, Routed) and name != operation:
                    parts.append(_routing_pairs(layer, name, t, trace, count, rng))
                elif conv is not None:
                    if isinstance(layer, QConvCaps3D):  # one image of every input type's capsules
                        x = x.transpose(0, 3, 1, 2, 4).reshape(-1, *x.shape[1:3], x.shape[4])
                    parts.append(_convolution_pairs(conv, x.reshape(*x.shape[:3], -1), count, rng))
                span = highs[key, t] - lows[key, t]
                if name == "agreement":
                    unit = product.requantizer.multiplier / 2.0**product.requantizer.shift
                    span = float(np.ptp(trace[f"{key}.{t}"])) / unit
                spans.append(np.full(len(parts[-1]), max(span, 1.0)))
            captures[key] = Capture(product, np.concatenate(parts), np.concatenate(spans))
    return captures


def _pairs(a: NDArray[np.int16], b: NDArray[np.int16]) -> Pairs:
    """Operand codes (S, ...) as pairs (S, K)."""
    joint = (a.astype(np.uint16) & 255) * 256 + (b.astype(np.uint16) & 255)
    return joint.astype(np.uint16).reshape(len(joint), -1)


def _convolution_pairs(conv: QConv, x: NDArray[np.int16], count: int, rng: np.random.Generator) -> Pairs:
    """Random sums of a convolution of codes x (N, H, W, C)."""
    border = (conv.padding, conv.padding)
    x = np.pad(x, ((0, 0), border, border, (0, 0)), constant_values=conv.mac.a.zero_point)
    cout, kh, kw, _ = conv.weights.shape
    height, width = ((size - k) // conv.stride + 1 for size, k in zip(x.shape[1:3], (kh, kw), strict=True))
    n, y, column, channel = (rng.integers(0, size, count) for size in (len(x), height, width, cout))
    rows = (y * conv.stride)[:, None, None] + np.arange(kh)[:, None]
    columns = (column * conv.stride)[:, None, None] + np.arange(kw)
    return _pairs(x[n[:, None, None], rows, columns], conv.weights[channel])


def _vote_pairs(layer: QClassCaps, u: NDArray[np.int16], count: int, rng: np.random.Generator) -> Pairs:
    """Random sums of the votes of capsules u (N, I, Din)."""
    inputs, _, classes, dim = layer.weights.shape
    n, i, j, d = (rng.integers(0, size, count) for size in (len(u), inputs, classes, dim))
    return _pairs(u[n, i], layer.weights[i, :, j, d])


def _routing_pairs(
    layer: Routed, name: str, t: int, trace: dict[str, NDArray], count: int, rng: np.random.Generator
) -> Pairs:
    """Random sums of a routing operation in iteration t; positions, where there are any, count as images."""

    def tensor(boundary: str, axes: int) -> NDArray:
        found = trace[f"{layer.name}.{boundary}"]
        return found.reshape(-1, *found.shape[found.ndim - axes :])

    votes = tensor("votes", 3)
    n, i, j, d = (rng.integers(0, size, count) for size in votes.shape)
    if name == "weighted_sum":
        return _pairs(tensor(f"softmax.{t}", 2)[n, j], votes[n, :, j, d])
    return _pairs(tensor(f"squash.{t}", 2)[n, j], votes[n, i, j])
