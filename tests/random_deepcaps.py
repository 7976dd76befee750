"""Small random quantised DeepCaps for hypothesis: two cells, the second one routed, of any formats and tables."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from model import reference
from model.multipliers.product_table import exact_table
from model.qnetwork import (
    FORMATS,
    Adder,
    Coding,
    Format,
    Product,
    QAdd,
    QClassCaps,
    QConv,
    QConvCaps,
    QConvCaps3D,
    QConvLayer,
    QNetwork,
    Squash,
    exp_table,
    takes_signed,
    unit_interval,
)
from tests.random_networks import EXACT, FLOAT, SIGNED, codes, requantizer, wild_table


class _Maker:
    """Makes layers whose constants fit the codes that one random image gives them, so that values spread."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw, self.rng = draw, np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        unsigned = {name: wild_table(self.rng) for name in ("wild", "wilder")} | {"exact": EXACT}
        signed = {f"signed_{name}": table.view(np.int16) for name, table in unsigned.items()}
        self.by_sign = {False: unsigned, True: signed | {"signed_exact": exact_table(True)}}
        self.tables = unsigned | self.by_sign[True]
        self.trace: reference.Trace = {}

    def format(self) -> Format:
        return self.draw(st.sampled_from(FORMATS))

    def operand(self, number_format: Format, scale: float = 1 / 127) -> Coding:
        """The coding of a tensor with negative values that a multiplier reads in this format."""
        zero = int(self.rng.choice([0, 255, *self.rng.integers(0, 256, 4)]))
        return Coding("affine", scale, zero) if number_format == "affine" else Coding("signed", scale)

    def product(self, number_format: Format, a: Coding, b: Coding, out: Coding, terms: float) -> Product:
        unit, signed = requantizer(self.rng, out, 2**15 * np.sqrt(terms)), takes_signed(number_format)
        component, align = self.draw(st.sampled_from(sorted(self.by_sign[signed]))), self.draw(st.integers(0, 1))
        return Product(number_format, a, b, out, unit, component, 0 if signed else align)

    def conv(self, x: np.ndarray, number_format: Format, a: Coding, out: Coding, cout: int, stride: int = 1,
             relu: bool = False) -> QConv:  # fmt: skip
        """A 3 x 3 convolution with padding of codes x (H, W, C)."""
        b = self.operand(number_format)
        cin = x.shape[2]
        mac = self.product(number_format, a, b, out, 9 * cin)
        conv = QConv(codes(self.rng, b, (cout, 3, 3, cin)), np.zeros(cout, np.int32), stride, mac, padding=1)
        sums = reference.convolution(conv, self.tables[mac.component], x)
        middle = np.median(sums, axis=(0, 1)) + self.rng.normal(0, sums.std() / 4 + 1, cout)
        mac = replace(mac, requantizer=requantizer(self.rng, out, float(sums.std()), relu))
        return replace(conv, bias=np.round(-middle).astype(np.int32), mac=mac)

    def squash(self, out: Coding) -> Squash:
        return Squash.for_scales(2.0 ** self.rng.uniform(-13, -3), out)


@st.composite
def deepcaps(draw: st.DrawFn) -> QNetwork:
    """conv1, two cells and class capsules that read both cells' sums."""
    make = _Maker(draw)
    size = st.integers(1, 3)
    capsules = st.sampled_from((2, 3, 1, 5))  # types and dims: five are more than the rows of a small array
    image = (draw(st.integers(2, 5)), draw(st.integers(2, 5)), draw(size))
    form = make.format()
    positive = unit_interval(form)  # of the image and of conv1's output
    x = codes(make.rng, positive, image)
    layers: list = [QConvLayer("conv1", make.conv(x, form, positive, positive, draw(size), relu=True))]
    x, coding = reference_of(layers[-1], make, x), positive
    votes_format = make.format()
    shared = make.operand(votes_format, 2.0 ** make.rng.uniform(-8, -6))  # of both sums: the class capsules read them
    dim = draw(capsules)
    for cell, routed in (("cell1", False), ("cell2", True)):
        types, form = draw(capsules), votes_format if cell == "cell2" else form
        reads: tuple[str, ...] = ("cell1",) if cell == "cell2" else ()
        inner, last = make.format(), make.format()

        def convcaps(  # type: ignore[no-untyped-def]
            name, x, form, coding, out, stride=1, reads=(), cell=cell, types=types
        ):
            conv = make.conv(x.reshape(*x.shape[:2], -1), form, coding, FLOAT, types * dim, stride)
            layers.append(QConvCaps(f"{cell}.{name}", conv, dim, make.squash(out), reads))
            return reference_of(layers[-1], make, x)

        first = make.operand(inner)
        u = convcaps("conv1", x, form, coding, first, 2, reads)
        deep = make.operand(last)
        v = convcaps("conv2", u, inner, first, deep)
        a = Coding("signed", 2.0 ** make.rng.uniform(-9, -6))
        convcaps("conv3", v, last, deep, a)
        if routed:
            routing = make.format()
            vote, b = make.operand(routing), make.operand(routing, 2.0 ** make.rng.uniform(-9, -6))
            layers.append(
                QConvCaps3D(
                    f"{cell}.skip",
                    make.conv(u[:, :, 0], inner, first, vote, types * dim),
                    types,
                    dim,
                    make.product(routing, unit_interval(routing), vote, FLOAT, types),
                    make.product(routing, b, vote, SIGNED, dim / 16),
                    exp_table(2.0 ** make.rng.uniform(-8, -1)),
                    make.squash(b),
                    draw(st.sampled_from((3, 2, 1))),
                    (f"{cell}.conv1",),
                )
            )
        else:
            b = Coding("signed", 2.0 ** make.rng.uniform(-9, -6))
            convcaps("skip", u, inner, first, b, reads=(f"{cell}.conv1",))
        layers.append(QAdd(cell, Adder.for_codings(a, b, shared), (f"{cell}.conv3", f"{cell}.skip")))
        x, coding = codes(make.rng, shared, (*u.shape[:2], types, dim)), shared

    routing, weight = make.format(), make.operand(votes_format)
    vote, v = make.operand(routing), make.operand(routing)
    grids = [[-(-edge // 2**n) for edge in image[:2]] for n in (1, 2)]
    kinds = [layer.conv.weights.shape[0] // dim for layer in layers if layer.name.endswith("conv3")]
    inputs = sum(h * w * types for (h, w), types in zip(grids, kinds, strict=True))
    classes, class_dim = draw(size), draw(size)
    layers.append(
        QClassCaps(
            "classcaps",
            codes(make.rng, weight, (inputs, dim, classes, class_dim)),
            make.product(votes_format, shared, weight, vote, dim),
            make.product(routing, unit_interval(routing), vote, FLOAT, inputs),
            make.product(routing, v, vote, SIGNED, class_dim / 16),
            exp_table(2.0 ** make.rng.uniform(-8, -1)),
            make.squash(v),
            draw(st.sampled_from((3, 2, 1))),
            ("cell2", "cell1"),
        )
    )
    used = {p.component for layer in layers for p in layer.products().values()}
    network = QNetwork(image, positive, tuple(layers), {name: make.tables[name] for name in sorted(used)})
    network.check()
    return network


def reference_of(layer: QConvLayer | QConvCaps, make: _Maker, x: np.ndarray) -> np.ndarray:
    """The codes that a layer makes of codes x."""
    table = make.tables[layer.conv.mac.component]
    maps = layer.conv.mac.requantizer(reference.convolution(layer.conv, table, x))
    if isinstance(layer, QConvLayer):
        return maps
    return reference.squash(layer.squash, maps.reshape(*maps.shape[:2], -1, layer.capsule_dim))
