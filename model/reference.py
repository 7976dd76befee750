"""The integer reference: docs/numerics.md in NumPy. Simple, slow, and what the other engines are held against."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from model.errors import RedcaneError
from model.multipliers.product_table import Table
from model.qnetwork import (
    Codes,
    Coding,
    Product,
    QAdd,
    QClassCaps,
    QConv,
    QConvCaps,
    QConvCaps3D,
    QNetwork,
    QPrimaryCaps,
    Routed,
    Squash,
    float_index,
)

Trace = dict[str, NDArray]


def products(product: Product, table: Table, a: Codes, b: Codes) -> NDArray[np.int64]:
    """The terms of operand codes `a` and `b` (broadcast against each other), before they are summed."""
    if product.format == "twos-complement":
        return table[a & 255, b & 255].astype(np.int64)
    if product.format == "affine":
        za, zb = product.a.zero_point, product.b.zero_point
        qa, qb = a.astype(np.int64), b.astype(np.int64)
        return table[a, b].astype(np.int64) - zb * qa - za * qb + za * zb
    looked_up = table[magnitude(product.a, a, product.align), magnitude(product.b, b, product.align)].astype(np.int64)
    return np.where((a < 0) != (b < 0), -looked_up, looked_up)


def magnitude(coding: Coding, codes: Codes, align: int) -> NDArray[np.int64]:
    """What the multiplier's port sees of sign-magnitude operands."""
    wide = np.abs(codes.astype(np.int64))
    return wide << align if coding.kind == "signed" else wide


def convolution(conv: QConv, table: Table, x: Codes) -> NDArray[np.int64]:
    """Accumulators (H', W', Cout) of codes x (H, W, Cin), or of capsules (H, W, types, dim)."""
    x = x.reshape(*x.shape[:2], -1) if x.ndim == 4 else x
    cout, kh, kw, cin = conv.weights.shape
    if x.ndim != 3 or x.shape[2] != cin:
        raise RedcaneError(f"convolution: an input of shape (H, W, {cin}) is wanted, got {x.shape}")
    border = (conv.padding, conv.padding)
    x = np.pad(x, (border, border, (0, 0)), constant_values=conv.mac.a.zero_point)
    windows = sliding_window_view(x, (kh, kw), axis=(0, 1))[:: conv.stride, :: conv.stride]  # (H', W', Cin, kh, kw)
    windows = windows.transpose(0, 1, 3, 4, 2)
    acc = np.empty((*windows.shape[:2], cout), np.int64)
    for channel in range(cout):
        terms = products(conv.mac, table, windows, conv.weights[channel])
        acc[:, :, channel] = terms.sum(axis=(2, 3, 4)) + int(conv.bias[channel])
    return acc


def squash(unit: Squash, q: Codes) -> Codes:
    """Squash of capsules (..., D) of `float` codes."""
    n = (q.astype(np.int64) ** 2).sum(axis=-1, keepdims=True)
    gain = unit.table[float_index(n)].astype(np.int64)
    v = (q.astype(np.int64) * gain + (1 << (unit.shift - 1))) >> unit.shift
    return np.clip(v + unit.out.zero_point, unit.out.lo, unit.out.hi).astype(np.int16)


def softmax(exp_table: NDArray[np.uint16], b: Codes, one: int) -> Codes:
    """Coupling coefficients (..., J, I) of logits (..., J, I): over the output capsules j; the code `one`
    stands for 1.
    """
    e = exp_table[b.max(axis=-2, keepdims=True) - b].astype(np.int64)
    r = (one << 16) // e.sum(axis=-2, keepdims=True)
    return ((e * r + (1 << 15)) >> 16).astype(np.int16)


def routing(layer: Routed, tables: dict[str, Table], votes: Codes, trace: Trace) -> Codes:
    """Dynamic routing of votes (..., I, J, D) to output capsules (..., J, D); every step is put into `trace`."""
    *places, inputs, classes, _ = votes.shape
    b = np.zeros((*places, classes, inputs), np.int16)
    v = np.zeros(0, np.int16)
    for t in range(1, layer.iterations + 1):
        k = softmax(layer.exp_table, b, layer.weighted_sum.a.hi)
        terms = products(layer.weighted_sum, tables[layer.weighted_sum.component], k.swapaxes(-1, -2)[..., None], votes)
        s = layer.weighted_sum.requantizer(terms.sum(axis=-3))
        v = squash(layer.squash, s)
        trace |= {f"{layer.name}.softmax.{t}": k, f"{layer.name}.weighted_sum.{t}": s, f"{layer.name}.squash.{t}": v}
        if t < layer.iterations:
            terms = products(layer.agreement, tables[layer.agreement.component], v[..., None, :, :], votes)
            agreement = layer.agreement.requantizer(terms.sum(axis=-1)).swapaxes(-1, -2)
            b = np.clip(b + agreement, -127, 127).astype(np.int16)
            trace[f"{layer.name}.agreement.{t}"] = b
    return v


def conv_capsules_3d(layer: QConvCaps3D, tables: dict[str, Table], u: Codes, trace: Trace) -> None:
    """Votes of capsules u (H, W, I, Din), type by type, then routing at each of the H * W positions."""
    table = tables[layer.conv.mac.component]
    sums = np.stack([convolution(layer.conv, table, u[:, :, i]) for i in range(layer.in_types)], axis=2)
    out_types = len(layer.conv.weights) // layer.capsule_dim
    votes = layer.conv.mac.requantizer(sums).reshape(-1, layer.in_types, out_types, layer.capsule_dim)
    trace[f"{layer.name}.votes"] = votes
    routing(layer, tables, votes, trace)


def class_capsules(layer: QClassCaps, tables: dict[str, Table], tensors: list[Codes], trace: Trace) -> None:
    """Votes of capsules, however they are laid out, those of one tensor after those of the other, then routing."""
    u = np.concatenate([u.reshape(-1) for u in tensors]).reshape(layer.weights.shape[:2])
    terms = products(layer.votes, tables[layer.votes.component], u[:, :, None, None], layer.weights)
    votes = layer.votes.requantizer(terms.sum(axis=1))
    trace[f"{layer.name}.votes"] = votes
    routing(layer, tables, votes, trace)


def run(network: QNetwork, image: Codes) -> Trace:
    """One inference: image codes (H, W, C) to every boundary of docs/numerics.md, the last being "class".

    Raises RedcaneError when the image has another shape than the network's.
    """
    if image.shape != network.image:
        raise RedcaneError(f"the network takes images of {network.image} (height, width, channels), got {image.shape}")
    trace: Trace = {"input": image}
    for layer, sources in network.sources():
        x = [trace[source] for source in sources]
        if isinstance(layer, QClassCaps):
            class_capsules(layer, network.tables, x, trace)
        elif isinstance(layer, QConvCaps3D):
            conv_capsules_3d(layer, network.tables, x[0], trace)
        elif isinstance(layer, QAdd):
            trace[f"{layer.name}.add"] = layer.adder(x[0], x[1].reshape(x[0].shape))
        else:
            conv = layer.conv
            maps = conv.mac.requantizer(convolution(conv, network.tables[conv.mac.component], x[0]))
            trace[f"{layer.name}.mac"] = maps
            if isinstance(layer, QPrimaryCaps):
                grid = maps.shape[:2] if isinstance(layer, QConvCaps) else ()
                trace[f"{layer.name}.squash"] = squash(layer.squash, maps.reshape(*grid, -1, layer.capsule_dim))
    last = network.layers[-1]
    assert isinstance(last, QClassCaps)  # nothing else makes classes
    lengths = ((trace[last.output].astype(np.int64) - last.squash.out.zero_point) ** 2).sum(axis=-1)
    trace["class"] = np.array(lengths.argmax())
    return trace
