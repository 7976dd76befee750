"""The integer reference against docs/numerics.md, once more in plain Python integers and loops."""

from __future__ import annotations

import subprocess
import sys
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import image_codes, networks

from model import reference
from model.errors import RedcaneError
from model.qnetwork import Product, QClassCaps, QNetwork, QPrimaryCaps, Squash


def term(p: Product, table: np.ndarray, a: int, b: int) -> int:
    if p.format == "affine":
        za, zb = p.a.zero_point, p.b.zero_point
        return int(table[a, b]) - zb * a - za * b + za * zb
    if p.format == "twos-complement":
        return int(table[a % 256, b % 256])
    ma = abs(a) << p.align if p.a.kind == "signed" else a
    mb = abs(b) << p.align if p.b.kind == "signed" else b
    return int(table[ma, mb]) * (-1 if (a < 0) ^ (b < 0) else 1)


def requantize(p: Product, acc: int) -> int:
    r = p.requantizer
    q = min(max(((acc * r.multiplier + 2 ** (r.shift - 1)) >> r.shift) + r.zero_point, r.lo), r.hi)
    if p.out.kind != "float":
        return q
    step = 2 ** max(0, abs(q).bit_length() - 5)
    return (abs(q) + step // 2) // step * step * (-1 if q < 0 else 1)


def squash(unit: Squash, q: list[int]) -> list[int]:
    n = sum(x * x for x in q)
    e = n.bit_length() - 1
    gain = int(unit.table[n if n < 16 else (e - 3) * 16 + ((n >> (e - 4)) & 15)])
    out = unit.out
    return [min(max(((x * gain + 2 ** (unit.shift - 1)) >> unit.shift) + out.zero_point, out.lo), out.hi) for x in q]


def by_the_page(network: QNetwork, image: np.ndarray) -> dict[str, object]:
    """Every boundary, as nested lists."""
    trace: dict[str, object] = {}
    x, zero = image.tolist(), 0
    for layer in network.layers:
        if isinstance(layer, QClassCaps):
            v = class_capsules(layer, network, x, trace)
            zero = layer.squash.out.zero_point
            lengths = [sum((q - zero) ** 2 for q in capsule) for capsule in v]
            trace["class"] = min(range(len(v)), key=lambda j: (-lengths[j], j))
            continue
        conv, p = layer.conv, layer.conv.mac
        table = network.tables[p.component]
        cout, kh, kw, cin = conv.weights.shape
        height, width = len(x), len(x[0])

        def pixel(y: int, xx: int, c: int, x=x, height=height, width=width, zero=p.a.zero_point) -> int:  # type: ignore[no-untyped-def]
            return x[y][xx][c] if 0 <= y < height and 0 <= xx < width else zero

        out = []
        for top in range(-conv.padding, height + conv.padding - kh + 1, conv.stride):
            out.append([])
            for left in range(-conv.padding, width + conv.padding - kw + 1, conv.stride):
                sums = conv.bias.tolist()
                for o, ky, kx, c in product(range(cout), range(kh), range(kw), range(cin)):
                    sums[o] += term(p, table, pixel(top + ky, left + kx, c), int(conv.weights[o, ky, kx, c]))
                out[-1].append([requantize(p, acc) for acc in sums])
        x = out
        trace[f"{layer.name}.mac"] = x
        if isinstance(layer, QPrimaryCaps):
            d = layer.capsule_dim  # channel = type * dim + d
            x = [squash(layer.squash, c[t : t + d]) for row in x for c in row for t in range(0, len(c), d)]
            trace[f"{layer.name}.squash"] = x
    return trace


def class_capsules(layer: QClassCaps, network: QNetwork, u: list, trace: dict[str, object]) -> list[list[int]]:
    inputs, dim_in, classes, dim = layer.weights.shape
    name, tables = layer.name, network.tables
    weights = layer.weights.tolist()

    def dot(p: Product, a: list[int], b: list[int]) -> int:
        return requantize(p, sum(term(p, tables[p.component], x, y) for x, y in zip(a, b, strict=True)))

    matrix = [[[[w[k][j][d] for k in range(dim_in)] for d in range(dim)] for j in range(classes)] for w in weights]
    votes = [[[dot(layer.votes, u[i], vector) for vector in m] for m in matrix[i]] for i in range(inputs)]
    trace[f"{name}.votes"] = votes
    b = [[0] * inputs for _ in range(classes)]
    v: list[list[int]] = []
    for t in range(1, layer.iterations + 1):
        k = [[0] * inputs for _ in range(classes)]
        for i in range(inputs):
            most = max(b[j][i] for j in range(classes))
            e = [int(layer.exp_table[most - b[j][i]]) for j in range(classes)]
            r = (127 if layer.weighted_sum.format == "twos-complement" else 255) * 2**16 // sum(e)
            for j in range(classes):
                k[j][i] = (e[j] * r + 2**15) >> 16
        column = [[[votes[i][j][d] for i in range(inputs)] for d in range(dim)] for j in range(classes)]
        s = [[dot(layer.weighted_sum, k[j], column[j][d]) for d in range(dim)] for j in range(classes)]
        v = [squash(layer.squash, capsule) for capsule in s]
        trace |= {f"{name}.softmax.{t}": k, f"{name}.weighted_sum.{t}": s, f"{name}.squash.{t}": v}
        if t < layer.iterations:
            a = [[dot(layer.agreement, v[j], votes[i][j]) for i in range(inputs)] for j in range(classes)]
            b = [[min(max(b[j][i] + a[j][i], -127), 127) for i in range(inputs)] for j in range(classes)]
            trace[f"{name}.agreement.{t}"] = b
    return v


@given(networks(), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_reference_is_the_page(network: QNetwork, seed: int) -> None:
    image = image_codes(np.random.default_rng(seed), network, 1)[0]
    trace = reference.run(network, image)
    wanted = by_the_page(network, image)
    assert list(trace) == ["input", *wanted]
    for name, value in wanted.items():
        np.testing.assert_array_equal(trace[name], np.array(value), err_msg=name)


@pytest.mark.parametrize("one", [255, 127])
@given(st.integers(1, 64), st.integers(1, 8), st.floats(0.001, 0.5), st.integers(0, 2**32 - 1))
@settings(max_examples=70, deadline=None)
def test_softmax_is_close_to_the_real_one(one: int, classes: int, inputs: int, scale: float, seed: int) -> None:
    """Exponentials rounded to 10 bits, a truncated reciprocal, and half a code for rounding k: nothing else is lost."""
    from model.qnetwork import exp_table

    b = np.random.default_rng(seed).integers(-127, 128, (classes, inputs)).astype(np.int16)
    e = np.exp(scale * (b - b.max(axis=0, keepdims=True)))
    k = reference.softmax(exp_table(scale), b, one)
    assert k.min() >= 0 and k.max() <= one
    # e is off by 1/2046 at most, so is every term of the sum (64 of them: 3 % of it); the reciprocal by 1023 / 2^16
    slack = 0.5 + 1.04 * one * (classes + 1) / 2046 / e.sum(axis=0) + 1 / 64
    assert (np.abs(k - one * e / e.sum(axis=0)) <= slack).all()


@given(networks())
@settings(max_examples=5, deadline=None)
def test_wrong_image(network: QNetwork) -> None:
    with pytest.raises(RedcaneError, match="takes images of"):
        reference.run(network, np.zeros((1, *network.image), np.int16))


def test_loads_without_torch() -> None:
    code = "import sys, model.reference, model.qfile; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
