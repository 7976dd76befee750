"""The integer reference: docs/numerics.md in NumPy. Simple, slow, and what the other engines are held against."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from model.errors import RedcaneError
from model.qnetwork import (
    COUPLING_ONE,
    Codes,
    Coding,
    Product,
    QClassCaps,
    QConv,
    QNetwork,
    QPrimaryCaps,
    Squash,
    Table,
    squash_index,
)

Trace = dict[str, NDArray]


def products(product: Product, table: Table, a: Codes, b: Codes) -> NDArray[np.int64]:
    """The terms of operand codes `a` and `b` (broadcast against each other), before they are summed."""
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
    """Accumulators (H', W', Cout) of codes x (H, W, Cin)."""
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
    """Squash of capsules (..., D) of signed codes."""
    n = (q.astype(np.int64) ** 2).sum(axis=-1, keepdims=True)
    gain = unit.table[squash_index(n)].astype(np.int64)
    v = (q.astype(np.int64) * gain + (1 << (unit.shift - 1))) >> unit.shift
    return np.clip(v + unit.out.zero_point, unit.out.lo, unit.out.hi).astype(np.int16)


def softmax(exp_table: NDArray[np.uint16], b: Codes) -> Codes:
    """Coupling coefficients (J, I) of logits (J, I): over the output capsules j, axis 0."""
    e = exp_table[b.max(axis=0, keepdims=True) - b].astype(np.int64)
    r = (COUPLING_ONE << 16) // e.sum(axis=0, keepdims=True)
    return ((e * r + (1 << 15)) >> 16).astype(np.int16)


def routing(layer: QClassCaps, tables: dict[str, Table], votes: Codes, trace: Trace) -> Codes:
    """Dynamic routing of votes (I, J, D) to output capsules (J, D); every step is put into `trace`."""
    inputs, classes, _ = votes.shape
    b = np.zeros((classes, inputs), np.int16)
    v = np.zeros(0, np.int16)
    for t in range(1, layer.iterations + 1):
        k = softmax(layer.exp_table, b)
        terms = products(layer.weighted_sum, tables[layer.weighted_sum.component], k.T[:, :, None], votes)
        s = layer.weighted_sum.requantizer(terms.sum(axis=0))
        v = squash(layer.squash, s)
        trace |= {f"{layer.name}.softmax.{t}": k, f"{layer.name}.weighted_sum.{t}": s, f"{layer.name}.squash.{t}": v}
        if t < layer.iterations:
            terms = products(layer.agreement, tables[layer.agreement.component], v[None], votes)
            agreement = layer.agreement.requantizer(terms.sum(axis=2)).T
            b = np.clip(b + agreement, -127, 127).astype(np.int16)
            trace[f"{layer.name}.agreement.{t}"] = b
    return v


def class_capsules(layer: QClassCaps, tables: dict[str, Table], u: Codes, trace: Trace) -> Codes:
    """Votes of capsules u (I, Din), however they are laid out, then routing: (J, D)."""
    u = u.reshape(layer.weights.shape[:2])
    terms = products(layer.votes, tables[layer.votes.component], u[:, :, None, None], layer.weights)
    votes = layer.votes.requantizer(terms.sum(axis=1))
    trace[f"{layer.name}.votes"] = votes
    return routing(layer, tables, votes, trace)


def run(network: QNetwork, image: Codes) -> Trace:
    """One inference: image codes (H, W, C) to every boundary of docs/numerics.md, the last being "class".

    Raises RedcaneError when the image has another shape than the network's.
    """
    if image.shape != network.image:
        raise RedcaneError(f"the network takes images of {network.image} (height, width, channels), got {image.shape}")
    trace: Trace = {"input": image}
    x, coding = image, network.input
    for layer in network.layers:
        if isinstance(layer, QClassCaps):
            x, coding = class_capsules(layer, network.tables, x, trace), layer.squash.out
            continue
        conv = layer.conv
        x, coding = conv.mac.requantizer(convolution(conv, network.tables[conv.mac.component], x)), conv.mac.out
        trace[f"{layer.name}.mac"] = x
        if isinstance(layer, QPrimaryCaps):
            x, coding = squash(layer.squash, x.reshape(-1, layer.capsule_dim)), layer.squash.out
            trace[f"{layer.name}.squash"] = x
    lengths = ((x.astype(np.int64) - coding.zero_point) ** 2).sum(axis=-1)
    trace["class"] = np.array(lengths.argmax())
    return trace
