"""Small quantised networks with random shapes, formats, codes and constants and wild product tables, for tests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from model import reference
from model.multipliers.product_table import exact_table
from model.qnetwork import (
    FORMATS,
    Coding,
    Product,
    QClassCaps,
    QConv,
    QConvLayer,
    QNetwork,
    QPrimaryCaps,
    Requantizer,
    Squash,
    exp_table,
    unit_interval,
)

UNSIGNED, SIGNED, FLOAT = Coding("unsigned", 1 / 255), Coding("signed", 1 / 127), Coding("float", 1 / 127)
EXACT = np.outer(np.arange(256), np.arange(256)).astype(np.uint16)


def wild_table(rng: np.random.Generator) -> np.ndarray:
    """No multiplier at all: does not commute, T[0, 0] is not zero, the extremes of 16 bits occur."""
    table = rng.integers(0, 65536, (256, 256)).astype(np.uint16)
    table[rng.integers(0, 256, 64), rng.integers(0, 256, 64)] = 65535
    table[0, 0] = rng.integers(1, 65536)
    return table


def codes(rng: np.random.Generator, coding: Coding, shape: tuple[int, ...]) -> np.ndarray:
    """Random codes, a fifth of them at the ends and at zero."""
    drawn = rng.integers(coding.lo, coding.hi + 1, shape)
    special = rng.choice([coding.lo, coding.hi, coding.zero_point], shape)
    return np.where(rng.random(shape) < 0.2, special, drawn).astype(np.int16)


def image_codes(rng: np.random.Generator, network: QNetwork, count: int) -> np.ndarray:
    """(count, H, W, C)"""
    return codes(rng, network.input, (count, *network.image))


def requantizer(rng: np.random.Generator, out: Coding, spread: float, relu: bool = False) -> Requantizer:
    """One that sends sums of this standard deviation to codes that use the range, some of them saturating."""
    wanted = 60 * 2.0 ** rng.uniform(-1, 5 if out.kind == "float" else 1)
    return Requantizer.for_scale(wanted / max(spread, 1.0), out, relu)


@st.composite
def networks(draw: st.DrawFn, wide: bool = False) -> QNetwork:
    """A convolution, primary capsules and class capsules of random shapes and constants; with `wide`, most values are
    between the convolutions.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size, side = st.integers(1, 3), st.integers(1, 5)
    edge = st.integers(6, 12) if wide else st.integers(4, 7)
    image = (draw(edge), draw(edge), draw(size))
    formats = {name: draw(st.sampled_from(FORMATS)) for name in ("conv1", "primary", "votes", "routing")}
    tables = {name: wild_table(rng) for name in ("wild", "wilder")} | {"exact": EXACT}
    signed_tables = {f"signed_{name}": table.view(np.int16) for name, table in tables.items()}
    signed_tables["signed_exact"] = exact_table(True)

    def operand(format: str) -> Coding:
        zero = int(rng.choice([0, 255, *rng.integers(0, 256, 4)]))
        return Coding("affine", 1 / 255, zero) if format == "affine" else SIGNED

    def product(format: str, a: Coding, b: Coding, out: Coding, terms: float, relu: bool = False) -> Product:
        signed = format == "twos-complement"
        component, align = draw(st.sampled_from(sorted(signed_tables if signed else tables))), draw(st.integers(0, 1))
        unit = requantizer(rng, out, 2**15 * np.sqrt(terms), relu)  # terms of wild tables are some 2**15
        return Product(format, a, b, out, unit, component, 0 if signed else align)  # type: ignore[arg-type]  # drawn

    def conv(name: str, x: np.ndarray, a: Coding, out: Coding, cout: int, relu: bool) -> tuple[QConv, np.ndarray]:
        """A convolution whose bias and requantiser make codes of x (H, W, C) spread, and the codes that they become."""
        padding, kh, kw = draw(st.integers(0, 1)), draw(side), draw(side)
        stride = 2 if wide and name == "primary" else draw(st.integers(1, 2))
        kh, kw = min(kh, x.shape[0]), min(kw, x.shape[1])
        b = operand(formats[name])
        weights = codes(rng, b, (cout, kh, kw, x.shape[2]))
        mac = product(formats[name], a, b, out, kh * kw * x.shape[2], relu)
        table = (tables | signed_tables)[mac.component]
        plain = QConv(weights, np.zeros(cout, np.int32), stride, mac, padding)
        sums = reference.convolution(plain, table, x)
        middle = np.median(sums, axis=(0, 1)) + rng.normal(0, sums.std() / 4 + 1, cout)
        mac = replace(mac, requantizer=requantizer(rng, out, float(sums.std()), relu))
        made = replace(plain, bias=np.round(-middle).astype(np.int32), mac=mac)
        return made, mac.requantizer(reference.convolution(made, table, x))

    input_, between, coupling = (unit_interval(formats[name]) for name in ("conv1", "primary", "routing"))
    channels = draw(st.integers(3, 9) if wide else size)
    conv1, x = conv("conv1", codes(rng, input_, image), input_, between, channels, relu=True)
    types, dim = draw(size), draw(st.integers(1, 8))
    primary, x = conv("primary", x, between, FLOAT, types * dim, relu=False)
    u = operand(formats["votes"])
    inputs = x.shape[0] * x.shape[1] * types
    classes = draw(st.sampled_from((1, 2) if wide else (3, 2, 5, 1)))
    class_dim = draw(st.sampled_from((3, 2, 5, 1)))
    weight, vote, v = operand(formats["votes"]), operand(formats["routing"]), operand(formats["routing"])
    routing = formats["routing"]
    layers = (
        QConvLayer("conv1", conv1),
        QPrimaryCaps("primary", primary, dim, Squash.for_scales(2.0 ** rng.uniform(-13, -3), u)),
        QClassCaps(
            "classcaps",
            codes(rng, weight, (inputs, dim, classes, class_dim)),
            product(formats["votes"], u, weight, vote, dim),
            product(routing, coupling, vote, FLOAT, inputs),
            product(routing, v, vote, SIGNED, class_dim / 16),  # as if of few terms: logits that saturate
            exp_table(2.0 ** rng.uniform(-8, -1)),
            Squash.for_scales(2.0 ** rng.uniform(-13, -3), v),
            draw(st.sampled_from((3, 2, 1))),
        ),
    )
    used = {p.component for layer in layers for p in layer.products().values()}
    return QNetwork(image, input_, layers, {name: (tables | signed_tables)[name] for name in sorted(used)})
