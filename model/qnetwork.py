"""The quantised network: its layers in the units of model/qunits.py, which this file passes on. NumPy only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from model.errors import RedcaneError
from model.multipliers.product_table import Table, check_table, is_signed, kind_of_operands
from model.qunits import (
    EXP_ENTRIES,
    EXP_ONE,
    FLOAT_BITS,
    FLOAT_LIMIT,
    FORMATS,
    MAX_CAPSULE_DIM,
    MAX_CLASSES,
    SQUASH_ENTRIES,
    Adder,
    Codes,
    Coding,
    Format,
    Kind,
    Product,
    Requantizer,
    Squash,
    exp_table,
    float_index,
    float_intervals,
    port_values,
    significant,
    takes_signed,
    unit_interval,
)

__all__ = [
    "EXP_ENTRIES",
    "EXP_ONE",
    "FLOAT_BITS",
    "FLOAT_LIMIT",
    "FORMATS",
    "MAX_CAPSULE_DIM",
    "MAX_CLASSES",
    "SQUASH_ENTRIES",
    "Adder",
    "Codes",
    "Coding",
    "Format",
    "Kind",
    "Layer",
    "Product",
    "QAdd",
    "QClassCaps",
    "QConv",
    "QConvCaps",
    "QConvCaps3D",
    "QConvLayer",
    "QNetwork",
    "QPrimaryCaps",
    "Requantizer",
    "Routed",
    "Squash",
    "convolution_of",
    "exp_table",
    "float_index",
    "float_intervals",
    "port_values",
    "significant",
    "takes_signed",
    "terms",
    "unit_interval",
]


@dataclass(frozen=True)
class QConv:
    """A convolution with bias: `conv1` with its ReLU in the requantiser, or the one inside PrimaryCaps."""

    weights: Codes  # (Cout, Kh, Kw, Cin)
    bias: NDArray[np.int32]  # (Cout,), in units of the accumulator
    stride: int
    mac: Product
    padding: int = 0


@dataclass(frozen=True)
class QConvLayer:
    name: str
    conv: QConv
    reads: tuple[str, ...] = ()  # of every layer: names of the layers whose outputs it reads; none for the one before

    @property
    def output(self) -> str:
        """Of every layer: the boundary (docs/numerics.md) that is its output."""
        return f"{self.name}.mac"

    def products(self) -> dict[str, Product]:
        return {"mac": self.conv.mac}

    def with_products(self, products: dict[str, Product]) -> QConvLayer:
        return replace(self, conv=replace(self.conv, mac=products["mac"]))


@dataclass(frozen=True)
class QPrimaryCaps:
    """A convolution whose channels are (type, dim), then squash."""

    name: str
    conv: QConv
    capsule_dim: int
    squash: Squash
    reads: tuple[str, ...] = ()

    @property
    def output(self) -> str:
        return f"{self.name}.squash"

    def products(self) -> dict[str, Product]:
        return {"mac": self.conv.mac}

    def with_products(self, products: dict[str, Product]) -> QPrimaryCaps:
        return replace(self, conv=replace(self.conv, mac=products["mac"]))


@dataclass(frozen=True)
class QConvCaps(QPrimaryCaps):
    """The same, of DeepCaps: the capsules stay on their grid (H, W, types, dim), for other layers of that kind."""


@dataclass(frozen=True)
class QConvCaps3D:
    """Capsules on a grid whose types vote with one shared kernel, and dynamic routing at every position."""

    name: str
    conv: QConv  # of one input type's capsules: Cin = Din, Cout = J * D; no bias; its product is that of the votes
    in_types: int  # I
    capsule_dim: int  # D
    weighted_sum: Product
    agreement: Product
    exp_table: NDArray[np.uint16]  # (256,)
    squash: Squash
    iterations: int
    reads: tuple[str, ...] = ()

    @property
    def output(self) -> str:
        return f"{self.name}.squash.{self.iterations}"

    def products(self) -> dict[str, Product]:
        return {"votes": self.conv.mac, "weighted_sum": self.weighted_sum, "agreement": self.agreement}

    def with_products(self, products: dict[str, Product]) -> QConvCaps3D:
        return replace(
            self,
            conv=replace(self.conv, mac=products["votes"]),
            weighted_sum=products["weighted_sum"],
            agreement=products["agreement"],
        )


@dataclass(frozen=True)
class QAdd:
    """The sum of two tensors on a grid, each with a scale of its own; it needs no multiplier of the array."""

    name: str
    adder: Adder
    reads: tuple[str, ...]  # two

    @property
    def output(self) -> str:
        return f"{self.name}.add"

    def products(self) -> dict[str, Product]:
        return {}

    def with_products(self, products: dict[str, Product]) -> QAdd:
        return self


@dataclass(frozen=True)
class QClassCaps:
    """Votes and dynamic routing. Logits, coupling coefficients and capsules as docs/numerics.md says."""

    name: str
    weights: Codes  # (I, Din, J, D)
    votes: Product
    weighted_sum: Product
    agreement: Product  # its `out` is the coding of the logits
    exp_table: NDArray[np.uint16]  # (256,)
    squash: Squash
    iterations: int
    reads: tuple[str, ...] = ()

    @property
    def output(self) -> str:
        return f"{self.name}.squash.{self.iterations}"

    def products(self) -> dict[str, Product]:
        return {"votes": self.votes, "weighted_sum": self.weighted_sum, "agreement": self.agreement}

    def with_products(self, products: dict[str, Product]) -> QClassCaps:
        return replace(
            self,
            votes=products["votes"],
            weighted_sum=products["weighted_sum"],
            agreement=products["agreement"],
        )


Layer = QConvLayer | QPrimaryCaps | QConvCaps3D | QAdd | QClassCaps
Routed = QConvCaps3D | QClassCaps


@dataclass(frozen=True)
class QNetwork:
    """A whole quantised network: image (H, W, C) -> class. `tables` holds the product table of every component in
    use.
    """

    image: tuple[int, int, int]
    input: Coding
    layers: tuple[Layer, ...]
    tables: dict[str, Table] = field(repr=False)

    def sources(self) -> Iterator[tuple[Layer, tuple[str, ...]]]:
        """Every layer, in the order of execution, with the boundaries that it reads."""
        before, outputs = "input", dict[str, str]()
        for layer in self.layers:
            yield layer, tuple(outputs[name] for name in layer.reads) or (before,)
            before = outputs[layer.name] = layer.output

    def products(self) -> Iterator[tuple[str, Product, int]]:
        """Every (key "layer.operation", product, number of terms of one sum)."""
        for layer in self.layers:
            for name, product in layer.products().items():
                yield f"{layer.name}.{name}", product, terms(layer, name)

    def with_components(self, assignment: Mapping[str, str], tables: Mapping[str, Table]) -> QNetwork:
        """The same network with other multipliers: assignment maps "layer.operation" to a component's name.

        Raises RedcaneError for an unknown or a missing operation, a component without a table, and where `check` does.
        """
        known = {key for key, _, _ in self.products()}
        for key in assignment.keys() - known:
            raise RedcaneError(f"assignment: no operation {key!r} in this network; it has {', '.join(sorted(known))}")
        for key in known - assignment.keys():
            raise RedcaneError(f"assignment: operation {key!r} has no multiplier")
        for key, component in assignment.items():
            if component not in tables:
                raise RedcaneError(f"assignment: {key}: unknown component {component!r}")
        layers = tuple(
            layer.with_products(
                {name: replace(p, component=assignment[f"{layer.name}.{name}"]) for name, p in layer.products().items()}
            )
            for layer in self.layers
        )
        used = {name: tables[name] for name in sorted(set(assignment.values()))}
        network = replace(self, layers=layers, tables=used)
        network.check()
        return network

    def check(self) -> None:
        """Refuse a network whose sums could leave 32 bits, whose operations disagree about a tensor, or in which a
        multiplier of signed operands stands where one of unsigned ones should, or the other way round.
        """
        for layer in self.layers:
            _, conv = convolution_of(layer)
            bias = int(np.abs(conv.bias.astype(np.int64)).max()) if conv else 0
            for name, product in layer.products().items():
                table = self.tables[product.component]
                check_table(product.component, table)
                if is_signed(table) != takes_signed(product.format):
                    raise RedcaneError(
                        f"{layer.name}.{name}: {product.component} multiplies {kind_of_operands(is_signed(table))} "
                        f"operands, and the {product.format} format has {kind_of_operands(not is_signed(table))} ones; "
                        "choose another multiplier or another format"
                    )
                bound = bias + terms(layer, name) * product.term_bound(table)
                if bound >= 2**31:
                    raise RedcaneError(
                        f"{layer.name}.{name}: {terms(layer, name)} products of {product.component} can overflow the "
                        "32-bit accumulator; split the sum or choose a multiplier with smaller products"
                    )
            if isinstance(layer, QPrimaryCaps | Routed):
                name = "mac" if isinstance(layer, QPrimaryCaps) else "weighted_sum"
                kind = layer.products()[name].out.kind
                if kind != "float":
                    raise RedcaneError(f"{layer.name}.{name}: a squash reads float codes, not {kind} ones")
            if isinstance(layer, Routed) and layer.weighted_sum.format != layer.agreement.format:
                raise RedcaneError(
                    f"{layer.name}: weighted_sum and agreement read the same votes and must share a format"
                )


def convolution_of(layer: Layer) -> tuple[str, QConv | None]:
    """The convolution in a layer, if there is one, and the name of its operation."""
    if isinstance(layer, QConvCaps3D):
        return "votes", layer.conv
    return "mac", None if isinstance(layer, QAdd | QClassCaps) else layer.conv


def terms(layer: Layer, operation: str) -> int:
    """How many products one sum of the operation has."""
    if isinstance(layer, QClassCaps):
        inputs, dim_in, _, dim_out = layer.weights.shape
        return {"votes": dim_in, "weighted_sum": inputs, "agreement": dim_out}[operation]
    if isinstance(layer, QConvCaps3D) and operation != "votes":
        return {"weighted_sum": layer.in_types, "agreement": layer.capsule_dim}[operation]
    _, conv = convolution_of(layer)
    assert conv is not None, f"{layer.name} multiplies nothing"
    return int(np.prod(conv.weights.shape[1:]))
