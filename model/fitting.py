"""What approximate multipliers do to a layer on average, made up for in the layer's own constants.

Over the operands that a term of a sum meets, a multiplier's products with the code of a weight lie about a line, with a
slope that is not the code and an offset that is not zero. Both are known, so they need not be lost accuracy:

1. A *gain* that all slopes have in common goes into the requantiser, which multiplies by a constant anyway. Where codes
   are few and far between for most weights, as with multipliers that leave out what small operands give, weights are
   first multiplied by a number, so that they get larger codes.
2. *Weights* get the codes that leave the sums the least error, by their slopes and by the noise about their lines; what
   a slope errs by is made up for by the weights that are rounded after it (model/rounding.py). For an exact multiplier
   slopes are the codes, without noise.
3. *Noise* of many terms goes together, since what they read does: a convolution's sums are computed with the codes that
   were found, and the part of their error that follows what each channel holds is taken out of the weights, which are
   rounded anew.
4. *Offsets* go into the bias, where the accelerator adds one.

Nothing is trained, and neither formats nor scales nor the hardware change.
That weights are to suit the multiplier is from Mrazek et al., "ALWANN", ICCAD 2019, Sec. III-C: there each gets the
code of the least mean error by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.calibration import Calibration
from model.emulation import convolved
from model.emulation.terms import term_table
from model.errors import RedcaneError
from model.files import digest
from model.lines import Lines, Reals, Terms, common_gain
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
from model.rounding import DAMPING, carried, channel_groups, compensated, windows

GROWTHS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
"""What weights may be multiplied by, beyond the gain, before they get codes."""
CORRECTIONS = 2
"""How often what is wrong with the sums is taken out of the weights."""
SAMPLED, TRIED = 256, 64
"""Terms by which multipliers are compared, and growths (of the votes an eighth)."""
LEAST_GAIN = 0.05
"""A multiplier that leaves less than this of the products is not made up for."""


class Prospect(NamedTuple):
    """What fitting an operation's weights to a multiplier comes to."""

    noise: float
    """That is left of the sums, in units of codes. It is taken from the lines of some terms, as if their noise were
    independent: one multiplier is compared with another by it.
    """
    growth: float
    """By what weights are multiplied beyond the gain: how much larger than an exact multiplier's their codes are."""


class Fitting:
    """Fits quantised networks of one float network to their multipliers."""

    def __init__(self, network: Network, calibration: Calibration, growths: Sequence[float] = GROWTHS) -> None:
        """`calibration` is that of the network, by which it is quantised too; `growths` are what weights may be
        multiplied by, in ascending order from 1.
        """
        self._parameters, self._calibration, self._growths = parameters_of(network), calibration, growths
        self._read: dict[tuple[str, Coding, Coding], _Reads] = {}
        self._read_by_votes: dict[tuple[str, Coding], Terms] = {}
        self._known: dict[tuple[str, Product], QConv | QClassCaps | float] = {}
        self._prospects: dict[tuple[str, Product, str], Prospect | None] = {}

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

    def prospect(self, quantized: QNetwork, key: str, table: Table) -> Prospect | None:
        """What fitting an operation ("layer.operation") to a multiplier comes to; None of one without weights."""
        name, _, operation = key.rpartition(".")  # a layer's name may have a point, and begin with another's
        (layer,) = (layer for layer in quantized.layers if layer.name == name)
        return self._prospect(layer, operation, table)

    def _prospect(self, layer: Layer, operation: str, table: Table) -> Prospect | None:
        product = replace(layer.products()[operation], component="")
        place = (f"{layer.name}.{operation}", product, digest(np.ascontiguousarray(table).tobytes()))
        if place not in self._prospects:
            name, conv = convolution_of(layer)
            found = None
            if isinstance(layer, QClassCaps) and operation == "votes":
                found = self._votes_prospect(layer, table)
            elif conv is not None and operation == name and (reads := self._reads(layer)) is not None:
                found = reads.prospect(conv.mac, table, self._growths)
            self._prospects[place] = found
        return self._prospects[place]

    def _growth(self, layer: Layer, operation: str, table: Table) -> float:
        prospect = self._prospect(layer, operation, table)
        return prospect.growth if prospect else 1.0

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
        reads, product = self._reads(layer), conv.mac
        if reads is None:
            return conv
        offsets = reads.offsets
        lines = [terms.lines(product, table, offsets) for terms in reads.terms]
        gain = common_gain(reads.weights, lines, product.b)
        if not gain > LEAST_GAIN:
            return conv
        gain *= self._growth(layer, convolution_of(layer)[0], table)

        def rounded(wanted: list[Reals]) -> list[Codes]:
            return [compensated(part, of, terms.upper)
                    for part, of, terms in zip(wanted, lines, reads.terms, strict=True)]  # fmt: skip

        wanted = [gain * part for part in reads.weights]
        chosen = rounded(wanted)
        for _ in range(CORRECTIONS):
            more = reads.explained(reads.errors(product, table, chosen, gain))
            wanted = [part - of for part, of in zip(wanted, more, strict=True)]
            chosen = rounded(wanted)
        out, height, width, channels_in = conv.weights.shape
        codes, beside = np.empty((out, channels_in, height, width), np.int16), np.zeros(out)
        for channels, part, line in zip(reads.groups, chosen, lines, strict=True):
            codes[:, channels] = part.reshape(codes[:, channels].shape)
            beside += line.means(part).sum(axis=1)
        beside -= sum(gain * part @ terms.means for part, terms in zip(reads.weights, reads.terms, strict=True))
        mac = product.divided(gain)
        real = self._parameters.get(f"{layer.name}.bias", np.zeros(out))
        bias = np.floor(real / mac.accumulator_scale - beside * product.unit * offsets + 0.5)
        if not (np.abs(bias) < 2**31).all():
            return conv
        return replace(conv, weights=codes.transpose(0, 2, 3, 1).copy(), bias=bias.astype(np.int32), mac=mac)

    def _reads(self, layer: Layer) -> _Reads | None:
        """What the convolution in a layer reads with the codings that it has; None of kernels that are too large."""
        name, conv = convolution_of(layer)
        assert conv is not None, f"{layer.name} has no convolution"
        key, mac = f"{layer.name}.{name}", conv.mac
        kernel = self._parameters[f"{layer.name}.weight"] / mac.b.scale
        kernel = kernel.reshape(len(conv.weights), *kernel.shape[-3:])  # of the 3D layer's capsules, their channels
        if not channel_groups(kernel.shape):
            return None
        place = (key, mac.a, mac.b)
        if place not in self._read:
            offsets = not isinstance(layer, QConvCaps3D)  # which has no bias
            self._read[place] = _Reads(self._calibration.read(key, mac.a), kernel, conv, offsets)
        return self._read[place]

    def _matrices(self, layer: QClassCaps) -> Reals:
        """The weights (I, J * E, D) of class capsules, in units of codes."""
        matrices = self._parameters[f"{layer.name}.weight"] / layer.votes.b.scale  # (I, D, J, E)
        return matrices.reshape(*matrices.shape[:2], -1).transpose(0, 2, 1)

    def _of_votes(self, layer: QClassCaps) -> Terms:
        """What the votes' terms read, all of them together."""
        place = (f"{layer.name}.votes", layer.votes.a)
        if place not in self._read_by_votes:
            self._read_by_votes[place] = Terms.together(self._calibration.read(*place), layer.votes.a)
        return self._read_by_votes[place]

    def _votes_prospect(self, layer: QClassCaps, table: Table) -> Prospect:
        weights, lines = self._matrices(layer), self._of_votes(layer).lines(layer.votes, table, offsets=False)
        some = np.random.default_rng(0).integers(0, weights.shape[:2], (8 * SAMPLED, 2)).T
        left = np.repeat(lines.spread, weights.shape[2])
        return _prospect(lines, weights[some[0], some[1]], left, layer.votes.b, self._growths)

    def _votes(self, layer: QClassCaps, table: Table) -> QClassCaps:
        """Class capsules whose votes are fitted to this product table. They have no bias."""
        product, growth = layer.votes, self._growth(layer, "votes", table)
        read = self._calibration.read(f"{layer.name}.votes", product.a)  # (N, I, D)
        line = self._of_votes(layer).lines(product, table, offsets=False)
        weights = self._matrices(layer)
        gain = common_gain([weights.reshape(-1, weights.shape[2])], [line], product.b)
        if not gain > LEAST_GAIN:
            return layer
        gain *= growth
        codes = np.empty(weights.shape, np.int16)
        for capsule, values in enumerate(read.transpose(1, 0, 2).astype(np.float64)):  # (N, D)
            codes[capsule] = compensated(gain * weights[capsule], line, carried(values.T @ values / len(values)))
        fitted = codes.transpose(0, 2, 1).reshape(layer.weights.shape).copy()
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


class _Reads:
    """What a convolution with weights (O, C, Kh, Kw), in units of codes, reads in N windows: groups of its channels,
    with the terms and the weights (O, K) of each.
    """

    def __init__(self, values: Codes, kernel: Reals, conv: QConv, offsets: bool) -> None:
        """`values` (N, C, H, W) are codes less the zero point; with `offsets` what all windows have in common makes no
        error.
        """
        self._values, self._size, self._conv, self.offsets = values, kernel.shape[2:], conv, offsets
        self.groups = channel_groups(kernel.shape)
        self.weights = [kernel[:, channels].reshape(len(kernel), -1) for channels in self.groups]
        self.terms = [Terms.of_windows(self._windows(channels), conv.mac.a, offsets) for channels in self.groups]

    def prospect(self, product: Product, table: Table, growths: Sequence[float]) -> Prospect:
        """What fitting to a multiplier comes to, by the group in the middle."""
        middle = len(self.groups) // 2
        terms, parts = self.terms[middle], self.weights[middle]
        lines = terms.lines(product, table, self.offsets)
        left = lines.spread if terms.upper is None else 1 / terms.upper.diagonal() ** 2
        return _prospect(lines, parts, left, product.b, growths)

    def _windows(self, channels: slice) -> Iterator[Tensor]:
        return windows(self._values[:, channels], self._size, self._conv.stride, self._conv.padding)

    @cached_property
    def _sums(self) -> Reals:
        """What the float network would sum (N, O), but for its bias."""
        return sum(
            np.concatenate([some.numpy() @ part.T.astype(np.float32) for some in self._windows(channels)])
            for channels, part in zip(self.groups, self.weights, strict=True)
        )  # type: ignore[return-value]  # there is a group

    @cached_property
    def _channels(self) -> Reals:
        """What each channel holds in all its terms together (N, C)."""
        apart = (-1, math.prod(self._size))
        each = [[some.unflatten(1, apart).sum(dim=2) for some in self._windows(group)] for group in self.groups]
        return self._apart(torch.cat([torch.cat(parts) for parts in each], dim=1).numpy()).astype(np.float64)

    @cached_property
    def _moments(self) -> Reals:
        """Of these, damped (C, C)."""
        moments = self._channels.T @ self._channels
        damping = DAMPING * moments.diagonal().mean() or 1.0
        damped: Reals = moments + damping * np.eye(len(moments))
        return damped

    def _apart(self, of: Reals) -> Reals:
        """Without what all windows have in common, where that makes no error."""
        return of - of.mean(axis=0) if self.offsets else of

    def errors(self, product: Product, table: Table, chosen: list[Codes], gain: float) -> Reals:
        """What is wrong with the sums (N, O), in units of codes, of a multiplier with these codes (O, K) of each group
        for the weights times a gain.
        """
        found = -gain * self._sums
        for channels, codes in zip(self.groups, chosen, strict=True):
            kernel = codes.reshape(len(codes), -1, *self._size).transpose(0, 2, 3, 1)
            conv = QConv(np.ascontiguousarray(kernel), np.zeros(len(codes), np.int32), 1, product)
            read = torch.cat(list(self._windows(channels))).numpy().astype(np.int16) + np.int16(product.a.zero_point)
            maps = read.reshape(len(read), -1, *self._size).transpose(0, 2, 3, 1)
            found += convolved(conv, table, np.ascontiguousarray(maps))[:, 0, 0] / product.unit
        return self._apart(found)

    def explained(self, errors: Reals) -> list[Reals]:
        """The weights (O, K) of each group, the same for all terms of a channel, whose sums come nearest to errors
        (N, O) in the sense of least squares.
        """
        weights = np.linalg.solve(self._moments, self._channels.T @ errors).T  # (O, C)
        return [np.repeat(weights[:, channels], math.prod(self._size), axis=1) for channels in self.groups]


def _prospect(lines: Lines, weights: Reals, left: Reals, b: Coding, growths: Sequence[float]) -> Prospect:
    """Of weights (O, K), in units of codes, whose errors leave `left` (K,) of the sums' squared error."""
    gain = common_gain([weights], [lines], b)
    if not gain > LEAST_GAIN:
        return Prospect(float(np.sqrt((weights**2).mean(axis=0) @ np.broadcast_to(lines.spread, left.shape))), 1.0)

    def noise(growth: float, terms: int) -> float:
        chosen = range(0, len(left), -(-len(left) // terms))
        found = sum(lines.least(k, growth * gain * weights[:, k], left[k]) for k in chosen) / len(chosen)
        return math.sqrt(found * len(left)) / (growth * gain)

    nearest = np.floor(weights + 0.5).clip(b.lo - b.zero_point, b.hi - b.zero_point)
    rounding = math.sqrt(((weights - nearest) ** 2).mean(axis=0) @ left)  # an exact multiplier's: less is not worth it
    noises = {growth: max(noise(growth, TRIED), rounding) for growth in growths}
    growth = min(noises, key=lambda growth: (noises[growth], growth))
    return Prospect(noise(growth, SAMPLED), growth)


def _is_exact(table: Table) -> bool:
    return np.array_equal(table, exact_table(is_signed(table)))

