"""What approximate multipliers do to a layer on average, made up for in the layer's own constants.

Over the operands that a term of a sum meets, a multiplier's products with the code of a weight lie about a line, with a
slope that is not the code and an offset that is not zero. Both are known, so they need not be lost accuracy:

1. A *gain* that all slopes have in common goes into the requantiser, which multiplies by a constant anyway.
2. *Weights* get the codes whose slopes are what the sums want, each one's error made up for by those that are rounded
   after it (model/rounding.py); for an exact multiplier the slopes are the codes.
3. *Offsets* go into the bias, where the accelerator adds one.

What is left is the noise about the lines. Nothing is trained, and neither formats nor scales nor the hardware change.
That weights are to suit the multiplier is from Mrazek et al., "ALWANN", ICCAD 2019, Sec. III-C: there each gets the
code of the least mean error by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.calibration import Calibration
from model.emulation.terms import term_table
from model.errors import RedcaneError
from model.multipliers.product_table import Table, exact_table, is_signed
from model.network import Network, parameters_of
from model.qnetwork import (
    Codes,
    Coding,
    Layer,
    Product,
    QClassCaps,
    QConv,
    QConvCaps3D,
    QNetwork,
    Routed,
    convolution_of,
)
from model.rounding import carried, channel_groups, compensated, second_moments, windows

SHARED = 0.01
"""How much the operands of all terms together count in one term's lines: what few windows tell is not trusted."""
LEAST_GAIN = 0.05
"""A multiplier that leaves less than this of the products is not made up for."""

Reals = NDArray[np.float64]


class Fitting:
    """Fits quantised networks of one float network to their multipliers."""

    def __init__(self, network: Network, calibration: Calibration) -> None:
        """`calibration` is that of the network, by which it is quantised too."""
        self._parameters, self._calibration = parameters_of(network), calibration
        self._read: dict[tuple[str, Coding], list[_Terms]] = {}
        self._known: dict[tuple[str, Product], QConv | QClassCaps | float] = {}

    def __call__(self, quantized: QNetwork) -> QNetwork:
        """A quantised network of the float one with its weights, biases and requantisers fitted to its multipliers.

        Layers whose multipliers are exact stay what they are. Tables of one name have to be the same in all calls.
        Where a fitted sum could overflow, all stays what it is.
        """
        fitted = replace(quantized, layers=tuple(self._layer(layer, quantized.tables) for layer in quantized.layers))
        try:
            fitted.check()
        except RedcaneError:
            return quantized
        return fitted

    def _layer(self, layer: Layer, tables: Mapping[str, Table]) -> Layer:
        products = {name: p for name, p in layer.products().items() if not _is_exact(tables[p.component])}
        if isinstance(layer, QClassCaps):
            if "votes" in products:
                place = (f"{layer.name}.votes", layer.votes)
                if place not in self._known:
                    self._known[place] = self._votes(layer, tables[layer.votes.component])
                known = self._known[place]
                assert isinstance(known, QClassCaps)
                layer = replace(layer, weights=known.weights, votes=known.votes)
        else:
            name, conv = convolution_of(layer)
            if conv is not None and name in products:
                place = (f"{layer.name}.{name}", conv.mac)
                if place not in self._known:
                    self._known[place] = self._convolution(layer, conv, tables[conv.mac.component])
                known = self._known[place]
                assert isinstance(known, QConv)
                layer = replace(layer, conv=known)  # type: ignore[arg-type]  # a QAdd has none, as was asked above
        if isinstance(layer, Routed):
            for name in ("weighted_sum", "agreement"):
                if name in products:
                    layer = self._routed(layer, name, products[name], tables)
        return layer

    def _convolution(self, layer: Layer, conv: QConv, table: Table) -> QConv:
        """A convolution fitted to this product table."""
        name, _ = convolution_of(layer)
        key, product = f"{layer.name}.{name}", conv.mac
        kernel = self._parameters[f"{layer.name}.weight"] / product.b.scale
        kernel = kernel.reshape(len(conv.weights), *kernel.shape[-3:])  # of the 3D layer's capsules, their channels
        offsets = not isinstance(layer, QConvCaps3D)  # which has no bias
        groups = channel_groups(kernel.shape)
        if not groups:
            return conv
        parts = [kernel[:, channels].reshape(len(kernel), -1) for channels in groups]
        terms = self._terms(key, conv, offsets)
        lines = [of.lines(product, table, offsets) for of in terms]
        gain = _common_gain(parts, lines, product.b)
        if not gain > LEAST_GAIN:
            return conv
        codes, beside = np.empty(kernel.shape, np.int16), np.zeros(len(kernel))
        for channels, part, of, line in zip(groups, parts, terms, lines, strict=True):
            wanted = gain * part
            chosen = compensated(wanted, line, of.upper)
            codes[:, channels] = chosen.reshape(codes[:, channels].shape)
            if offsets:
                beside += line.means(chosen).sum(axis=1) - wanted @ of.means
        mac = product.divided(gain)
        real = self._parameters.get(f"{layer.name}.bias", np.zeros(len(kernel)))
        bias = np.floor(real / mac.accumulator_scale - beside * product.unit + 0.5)
        if not (np.abs(bias) < 2**31).all():
            return conv
        return replace(conv, weights=codes.transpose(0, 2, 3, 1).copy(), bias=bias.astype(np.int32), mac=mac)

    def _terms(self, key: str, conv: QConv, offsets: bool) -> list[_Terms]:
        """What the terms of each group of a convolution's channels read."""
        a = conv.mac.a
        if (key, a) not in self._read:
            read, (out, height, width, channels) = self._calibration.read(key, a), conv.weights.shape
            self._read[key, a] = [
                _Terms.of_windows(read[:, group], (height, width), conv.stride, conv.padding, a, offsets)
                for group in channel_groups((out, channels, height, width))
            ]
        return self._read[key, a]

    def _votes(self, layer: QClassCaps, table: Table) -> QClassCaps:
        """Class capsules whose votes are fitted to this product table. They have no bias."""
        product = layer.votes
        matrices = self._parameters[f"{layer.name}.weight"] / product.b.scale  # (I, D, J, E)
        read = self._calibration.read(f"{layer.name}.votes", product.a)  # (N, I, D)
        line = _Terms.together(read, product.a).lines(product, table, offsets=False)
        weights = matrices.reshape(*matrices.shape[:2], -1).transpose(0, 2, 1)  # (I, J * E, D)
        gain = _common_gain([weights.reshape(-1, weights.shape[2])], [line], product.b)
        if not gain > LEAST_GAIN:
            return layer
        codes = np.empty(weights.shape, np.int16)
        for capsule, values in enumerate(read.transpose(1, 0, 2).astype(np.float64)):  # (N, D)
            codes[capsule] = compensated(gain * weights[capsule], line, carried(values.T @ values / len(values)))
        fitted = codes.transpose(0, 2, 1).reshape(matrices.shape).copy()
        return replace(layer, weights=fitted, votes=product.divided(gain))

    def _routed(self, layer: Routed, name: str, product: Product, tables: Mapping[str, Table]) -> Routed:
        """The layer with the gain of its weighted sums or agreements taken out."""
        key = f"{layer.name}.{name}"
        if (key, product) not in self._known:
            self._known[key, product] = self._sums_gain(key, name, product, tables[product.component])
        gain = self._known[key, product]
        assert isinstance(gain, float)
        if not gain > LEAST_GAIN:
            return layer
        return layer.with_products({**layer.products(), name: product.divided(gain)})

    def _sums_gain(self, key: str, name: str, product: Product, table: Table) -> float:
        """By what a multiplier multiplies sums of products of votes, in the sense of least squares."""
        terms = term_table(product, table)
        both = power = 0.0
        for operands in self._calibration.routed[key]:
            votes, other = (x.numpy() for x in operands)  # (..., I, J, E), and (..., I, J) or (..., J, E)
            first = product.a.encode(other[..., None] if name == "weighted_sum" else other[..., None, :, :])
            second = product.b.encode(votes)
            axis = -3 if name == "weighted_sum" else -1
            values = (first.astype(np.int64) - product.a.zero_point) * (second - product.b.zero_point)
            exact = values.sum(axis=axis).astype(np.float64)
            both += float((exact * terms[first & 255, second & 255].sum(axis=axis)).sum())
            power += float((exact * exact).sum())
        return both / (power * product.unit) if power else 0.0


@dataclass(frozen=True)
class _Lines:
    """The lines of a multiplier: slope and mean product, in units of codes, of each term (K) and code (W); the grid of
    slopes on which weights are rounded.
    """

    slopes: Reals  # (K, W), or (1, W) for all terms
    products: Reals  # likewise
    spread: Reals  # (K,): of what is read, by which an error of a slope counts
    lowest: int  # of the codes

    def nearest(self, term: int, weights: Reals) -> tuple[Codes, Reals]:
        """See model.rounding.Grid; of codes of one slope, the smallest in magnitude."""
        slopes = self.slopes[min(term, len(self.slopes) - 1)]
        order = np.lexsort((np.abs(np.arange(len(slopes)) + self.lowest), slopes))
        order = order[np.concatenate([[True], np.diff(slopes[order]) > 0])]
        found = slopes[order]
        at = np.searchsorted((found[1:] + found[:-1]) / 2, weights, side="right")
        return (order[at] + self.lowest).astype(np.int16), found[at]

    def means(self, codes: Codes) -> Reals:
        """The mean products (O, K) with weights of these codes (O, K)."""
        return self.products[np.arange(codes.shape[1]), codes - self.lowest]


class _Terms:
    """What K terms of a sum read, in N windows: values are codes less the zero point."""

    def __init__(self, counts: NDArray[np.int64], a: Coding, upper: Reals | None = None) -> None:
        """`counts` (K, V) tells how often each value is read, from the lowest code's; `upper` is that of
        model.rounding.compensated.
        """
        self._counts, self.upper = counts, upper
        self._values = np.arange(a.lo, a.hi + 1, dtype=np.float64) - a.zero_point
        self.means: Reals = counts @ self._values / counts.sum(axis=1)

    @classmethod
    def of_windows(
        cls, read: Codes, kernel: tuple[int, ...], stride: int, padding: int, a: Coding, offsets: bool
    ) -> _Terms:
        """Of the windows of a kernel on maps (N, C, H, W); with `offsets` what they have in common makes no error."""
        lowest, count = a.lo - a.zero_point, a.hi - a.lo + 1
        terms = read.shape[1] * kernel[0] * kernel[1]
        counts = np.zeros(terms * count, np.int64)

        def counted() -> Iterator[Tensor]:
            for some in windows(read, kernel, stride, padding):
                places = some.numpy().astype(np.int64) - lowest + np.arange(terms) * count
                counts[:] += np.bincount(places.reshape(-1), minlength=terms * count)
                yield some

        moments = second_moments(counted())
        found = cls(counts.reshape(terms, count), a)
        found.upper = carried(moments - np.outer(found.means, found.means) if offsets else moments)
        return found

    @classmethod
    def together(cls, read: Codes, a: Coding) -> _Terms:
        """Of terms that all read these codes, less the zero point."""
        values = read.reshape(-1).astype(np.int64) - (a.lo - a.zero_point)
        return cls(np.bincount(values, minlength=a.hi - a.lo + 1)[None], a)

    def lines(self, product: Product, table: Table, offsets: bool) -> _Lines:
        """The lines of a multiplier in a product; without `offsets`, through zero."""
        a, b = product.a, product.b
        codes = np.arange(b.lo, b.hi + 1)
        terms = term_table(product, table)[np.ix_(np.arange(a.lo, a.hi + 1) & 255, codes & 255)] / product.unit
        own, every = self._counts / self._counts.sum(axis=1, keepdims=True), self._counts.sum(axis=0)
        shares = (own + SHARED * every / every.sum()) / (1 + SHARED)  # how often each value is read (K, V)
        both, spread = (shares * self._values) @ terms, shares @ self._values**2
        if offsets:
            first = shares @ self._values
            both, spread = both - first[:, None] * (shares @ terms), spread - first**2
        slopes = both / np.where(spread > 0, spread, np.inf)[:, None]
        return _Lines(slopes, own @ terms, spread, b.lo)


def _common_gain(weights: list[Reals], lines: list[_Lines], b: Coding) -> float:
    """What slopes have in common: by what they multiply weights (O, K), in units of codes, in the sense of least
    squares.
    """
    both = power = 0.0
    for part, of in zip(weights, lines, strict=True):
        values = np.clip(np.floor(part + 0.5).astype(np.int64), b.lo - b.zero_point, b.hi - b.zero_point)
        terms = np.minimum(np.arange(part.shape[1]), len(of.slopes) - 1)
        slopes = of.slopes[terms, values + b.zero_point - of.lowest]
        both += float((of.spread[terms] * values * slopes).sum())
        power += float((of.spread[terms] * values * values).sum())
    return both / power if power else 0.0


def _is_exact(table: Table) -> bool:
    return np.array_equal(table, exact_table(is_signed(table)))

