"""The quantised network as files, `qmodel/`: network.json with all constants, tensors.safetensors with the arrays.

Reading trusts nothing: sizes are bounded, every key, type, shape, code and constant is checked against
docs/numerics.md, and no pickle is involved. Loads without torch.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError

from model.errors import RedcaneError
from model.files import read_bounded, replace_folder
from model.qnetwork import (
    EXP_ENTRIES,
    MAX_CAPSULE_DIM,
    MAX_CLASSES,
    SQUASH_ENTRIES,
    Adder,
    Coding,
    Layer,
    Product,
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
    Squash,
    convolution_of,
    takes_signed,
    unit_interval,
)

SCHEMA = 2
OPERANDS = {
    "sign-magnitude": ("unsigned", "signed"),
    "affine": ("unsigned", "affine"),
    "twos-complement": ("signed",),
}
"""The codings that a multiplier's operands may have, by format."""
JSON_LIMIT, TENSORS_LIMIT = 2**20, 2**30  # bytes

Tensors = dict[str, NDArray]
Size = Annotated[int, Field(ge=1, le=2**16)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.]{0,63}$")]
Component = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


class _Strict(BaseModel):
    """Unknown keys and wrong types are errors, also in the dataclasses within."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Squash(_Strict):
    shift: Annotated[int, Field(ge=1, le=15)]
    out: Coding


class _Layer(_Strict):
    name: Name
    reads: Annotated[list[Name], Field(max_length=2)] = []


class _Conv(_Layer):
    kind: Literal["conv"] = "conv"
    stride: Size
    padding: Annotated[int, Field(ge=0, le=2**10)]
    mac: Product


class _Primary(_Layer):
    kind: Literal["primary", "convcaps"] = "primary"
    stride: Size
    padding: Annotated[int, Field(ge=0, le=2**10)]
    mac: Product
    capsule_dim: Annotated[int, Field(ge=1, le=MAX_CAPSULE_DIM)]
    squash: _Squash


class _Routed(_Layer):
    votes: Product
    weighted_sum: Product
    agreement: Product
    squash: _Squash
    iterations: Annotated[int, Field(ge=1, le=64)]


class _ConvCaps3D(_Routed):
    kind: Literal["convcaps3d"] = "convcaps3d"
    stride: Size
    padding: Annotated[int, Field(ge=0, le=2**10)]
    capsule_dim: Annotated[int, Field(ge=1, le=MAX_CAPSULE_DIM)]


class _ClassCaps(_Routed):
    kind: Literal["classcaps"] = "classcaps"


class _Add(_Layer):
    kind: Literal["add"] = "add"
    adder: Adder


_AnyLayer = Annotated[_Conv | _Primary | _ConvCaps3D | _Add | _ClassCaps, Field(discriminator="kind")]


class _Network(_Strict):
    version: Literal[2] = Field(alias="schema")
    image: Annotated[list[Size], Field(min_length=3, max_length=3)]
    input: Coding
    layers: Annotated[list[_AnyLayer], Field(min_length=1)]
    components: list[Component]


def save(network: QNetwork, folder: Path) -> None:
    """Write the network into a folder, which is replaced as a whole."""
    tensors: Tensors = {f"tables.{name}": table for name, table in network.tables.items()}
    layers: list[dict[str, Any]] = []
    for layer in network.layers:
        record: dict[str, Any] = {"name": layer.name}
        record |= {"reads": list(layer.reads)} if layer.reads else {}
        record |= {name: asdict(product) for name, product in layer.products().items()}
        _, conv = convolution_of(layer)
        if conv is not None:
            record |= {"kind": "conv", "stride": conv.stride, "padding": conv.padding}
            tensors |= {f"{layer.name}.weights": conv.weights, f"{layer.name}.bias": conv.bias}
        if isinstance(layer, QPrimaryCaps):
            record |= {"kind": "convcaps" if isinstance(layer, QConvCaps) else "primary"}
        if isinstance(layer, QConvCaps3D):
            record |= {"kind": "convcaps3d"}
        if isinstance(layer, QPrimaryCaps | QConvCaps3D):
            record |= {"capsule_dim": layer.capsule_dim}
        if isinstance(layer, QClassCaps):
            record |= {"kind": "classcaps"}
            tensors[f"{layer.name}.weights"] = layer.weights
        if isinstance(layer, Routed):
            record |= {"iterations": layer.iterations}
            tensors[f"{layer.name}.exp"] = layer.exp_table
        if isinstance(layer, QAdd):
            record |= {"kind": "add", "adder": asdict(layer.adder)}
        elif not isinstance(layer, QConvLayer):
            record["squash"] = {"shift": layer.squash.shift, "out": asdict(layer.squash.out)}
            tensors[f"{layer.name}.squash"] = layer.squash.table
        layers.append(record)
    record = {
        "schema": SCHEMA,
        "image": list(network.image),
        "input": asdict(network.input),
        "layers": layers,
        "components": sorted(network.tables),
    }
    with replace_folder(folder) as new:
        (new / "network.json").write_text(json.dumps(record, indent=1) + "\n")
        (new / "tensors.safetensors").write_bytes(
            safetensors.numpy.save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})
        )


def load(folder: Path) -> QNetwork:
    """The network that `save` wrote. Raises RedcaneError for whatever it could not have written."""
    path = folder / "network.json"
    try:
        record = _Network.model_validate_json(read_bounded(path, JSON_LIMIT))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise RedcaneError(f"{path}: {where}: {first['msg']}; quantise the network again") from None
    tensors_path = folder / "tensors.safetensors"
    content = read_bounded(tensors_path, TENSORS_LIMIT)
    try:
        tensors = safetensors.numpy.load(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RedcaneError(f"{tensors_path}: not a whole safetensors file ({error}); quantise again") from None
    try:
        return _assemble(record, tensors)
    except RedcaneError as error:
        raise RedcaneError(f"{folder}: {error}; quantise the network again") from None


def _assemble(record: _Network, tensors: Tensors) -> QNetwork:
    """Put the network together, following the shapes and codings from the image to the classes."""
    left = dict(tensors)

    def take(name: str, dtype: type, shape: tuple[int | None, ...]) -> NDArray:
        tensor = left.pop(name, None)
        if tensor is None:
            raise RedcaneError(f"tensor {name} is missing")
        same = len(tensor.shape) == len(shape) and all(w in (None, s) for s, w in zip(tensor.shape, shape, strict=True))
        if tensor.dtype != dtype or not same or tensor.size == 0:
            wanted = f"{dtype.__name__} {['any' if size is None else size for size in shape]}"
            raise RedcaneError(f"tensor {name} is {tensor.dtype} {list(tensor.shape)} instead of {wanted}")
        return tensor

    def codes(name: str, coding: Coding, shape: tuple[int | None, ...]) -> NDArray[np.int16]:
        tensor = take(name, np.int16, shape)
        if tensor.min() < coding.lo or tensor.max() > coding.hi:
            raise RedcaneError(f"tensor {name} holds values that are no {coding.kind} codes")
        return tensor

    def squash(name: str, raw: _Squash) -> Squash:
        _check_coding(f"{name}.squash", raw.out)
        return Squash(take(f"{name}.squash", np.uint16, (SQUASH_ENTRIES,)), raw.shift, raw.out)

    def table(name: str) -> NDArray:
        found = left.get(name)
        return take(name, np.int16 if found is not None and found.dtype == np.int16 else np.uint16, (256, 256))

    tables = {name: table(f"tables.{name}") for name in record.components}
    _check_coding("input", record.input)
    layers: list[Layer] = []
    # what the layers make: (H, W, C), (I, D) of primary capsules or (H, W, types, dim) of those on a grid
    made: dict[str, tuple[tuple[int, ...], Coding]] = {}
    here: tuple[tuple[int, ...], Coding] = tuple(record.image), record.input

    def convolution(
        raw: _Conv | _Primary | _ConvCaps3D, mac: Product, shape: tuple[int, ...], channels: int
    ) -> tuple[QConv, int, int]:
        """The convolution of so many channels of (H, W, ...), and the height and width of its output."""
        weights = codes(f"{raw.name}.weights", mac.b, (None, None, None, channels))
        conv = QConv(weights, take(f"{raw.name}.bias", np.int32, (len(weights),)), raw.stride, mac, raw.padding)
        rows, columns = (
            (size + 2 * raw.padding - kernel) // raw.stride + 1
            for size, kernel in zip(shape, weights.shape[1:3], strict=False)
        )
        if rows < 1 or columns < 1:
            raise RedcaneError(f"{raw.name}: an input of {shape[0]}x{shape[1]} is too small for its kernel")
        return conv, rows, columns

    def routing(raw: _Routed, coding: Coding, classes: int, dim: int) -> tuple[NDArray[np.uint16], Squash]:
        """Checks of votes (..., classes, dim) by capsules of this coding and their routing; its tables."""
        unit = squash(raw.name, raw.squash)
        _check_product(f"{raw.name}.votes", raw.votes, coding, raw.weighted_sum.b, tables)
        coupling = unit_interval(raw.weighted_sum.format)
        _check_product(f"{raw.name}.weighted_sum", raw.weighted_sum, coupling, None, tables, squashed=True)
        _check_product(f"{raw.name}.agreement", raw.agreement, unit.out, None, tables)
        if raw.agreement.b != raw.votes.out:
            raise RedcaneError(f"{raw.name}: agreement reads the votes in another coding than they have")
        if classes > MAX_CLASSES or dim > MAX_CAPSULE_DIM:
            raise RedcaneError(f"{raw.name}: more than {MAX_CLASSES} classes or {MAX_CAPSULE_DIM} dimensions")
        exponentials = take(f"{raw.name}.exp", np.uint16, (EXP_ENTRIES,))
        if exponentials.max() > 1023 or exponentials[0] != 1023:
            raise RedcaneError(f"tensor {raw.name}.exp is no table of exponentials: 1023 first, none larger")
        return exponentials, unit

    for raw in record.layers:
        name, reads = raw.name, tuple(raw.reads)
        if name in made:
            raise RedcaneError(f"there are two layers {name}")
        unknown = [other for other in reads if other not in made]
        if unknown:
            raise RedcaneError(f"{name}: reads {unknown[0]}, which no layer before it is called")
        sources = [made[other] for other in reads] or [here]
        shape, coding = sources[0]
        if len(sources) > 1 and not isinstance(raw, _Add | _ClassCaps):
            raise RedcaneError(f"{name}: reads two layers, which only sums and class capsules do")
        if isinstance(raw, _ClassCaps):
            if any(len(s) not in (2, 4) or s[-1] != shape[-1] or c != coding for s, c in sources):
                raise RedcaneError(f"{name}: class capsules stand behind primary or other capsules of one coding")
            if raw is not record.layers[-1]:
                raise RedcaneError(f"{name}: class capsules come last")
            inputs = sum(math.prod(s) for s, _ in sources) // shape[-1]
            matrices = codes(f"{name}.weights", raw.votes.b, (inputs, shape[-1], None, None))
            exponentials, unit = routing(raw, coding, *matrices.shape[2:])
            layers.append(QClassCaps(name, matrices, raw.votes, raw.weighted_sum, raw.agreement, exponentials, unit,
                                     raw.iterations, reads))  # fmt: skip
            shape, coding = matrices.shape[2:], unit.out
        elif isinstance(raw, _Add):
            if len(sources) != 2 or any(len(s) != 4 or s != shape for s, _ in sources):
                raise RedcaneError(f"{name}: a sum reads two layers of capsules on one grid")
            _check_adder(name, raw.adder, coding, sources[1][1])
            layers.append(QAdd(name, raw.adder, reads))
            coding = raw.adder.out
        elif isinstance(raw, _ConvCaps3D):
            if len(shape) != 4:
                raise RedcaneError(f"{name}: its input is not capsules on a grid")
            conv, rows, columns = convolution(raw, raw.votes, shape, shape[3])
            out_types, rest = divmod(len(conv.weights), raw.capsule_dim)
            if rest:
                raise RedcaneError(f"{name}: votes are whole capsules of {raw.capsule_dim} channels")
            exponentials, unit = routing(raw, coding, out_types, raw.capsule_dim)
            layers.append(QConvCaps3D(name, conv, shape[2], raw.capsule_dim, raw.weighted_sum, raw.agreement,
                                      exponentials, unit, raw.iterations, reads))  # fmt: skip
            shape, coding = (rows, columns, out_types, raw.capsule_dim), unit.out
        else:
            if len(shape) == 2:
                raise RedcaneError(f"{name}: a convolution cannot follow capsules that are on no grid")
            plain = isinstance(raw, _Conv)
            _check_product(f"{name}.mac", raw.mac, coding, None, tables, relu=plain, squashed=not plain)
            conv, rows, columns = convolution(raw, raw.mac, shape, math.prod(shape[2:]))
            shape, coding = (rows, columns, len(conv.weights)), raw.mac.out
            if isinstance(raw, _Conv):
                layers.append(QConvLayer(name, conv, reads))
            else:
                types, rest = divmod(len(conv.weights), raw.capsule_dim)
                if rest:
                    raise RedcaneError(f"{name}: squash takes whole capsules of {raw.capsule_dim}")
                grid = raw.kind == "convcaps"
                layers.append((QConvCaps if grid else QPrimaryCaps)(
                    name, conv, raw.capsule_dim, squash(name, raw.squash), reads))  # fmt: skip
                shape = (rows, columns, types, raw.capsule_dim) if grid else (rows * columns * types, raw.capsule_dim)
                coding = raw.squash.out
        here = made[name] = shape, coding
    if not isinstance(layers[-1], QClassCaps):
        raise RedcaneError("the last layer should be class capsules")
    if left:
        raise RedcaneError(f"tensor {min(left)} belongs to nothing")
    height, width, channels = record.image
    network = QNetwork((height, width, channels), record.input, tuple(layers), tables)
    network.check()
    return network


def _check_coding(where: str, coding: Coding, squashed: bool = False) -> None:
    """Of a tensor; `squashed` says whether a squash reads it."""
    if not (0 < coding.scale < 2**64 and 0 <= coding.zero_point <= 255):
        raise RedcaneError(f"{where}: a scale of {coding.scale:g} or a zero point of {coding.zero_point} cannot be")
    if coding.kind != "affine" and coding.zero_point:
        raise RedcaneError(f"{where}: {coding.kind} codes have no zero point")
    if (coding.kind == "float") != squashed:
        raise RedcaneError(f"{where}: float codes are what squash reads, and nothing else, not {coding.kind} ones")


def _check_adder(name: str, adder: Adder, a: Coding, b: Coding) -> None:
    for coding in (adder.a, adder.b, adder.out):
        _check_coding(name, coding)
    if (adder.a, adder.b) != (a, b):
        raise RedcaneError(f"{name}: its codings and those of its neighbours differ")
    if not all(0 <= m < 2**16 for m in adder.multipliers) or not 1 <= adder.shift <= 16:
        raise RedcaneError(f"{name}: an adder of {adder.multipliers} >> {adder.shift} is out of range")


def _check_product(
    where: str,
    product: Product,
    a: Coding,
    out: Coding | None,
    tables: Tensors,
    relu: bool = False,
    squashed: bool = False,
) -> None:
    """One operation: `a` is the coding of what it reads, `out` that of what is read of it, if a multiplier does; what
    it makes goes through a ReLU, or is what a squash reads.
    """
    _check_coding(where, product.out, squashed)
    for coding in (product.a, product.b):
        _check_coding(where, coding)
        if coding.kind not in OPERANDS[product.format]:
            raise RedcaneError(f"{where}: {coding.kind} operands do not go with the {product.format} format")
    if product.a != a or (out is not None and product.out != out):
        raise RedcaneError(f"{where}: its codings and those of its neighbours differ")
    if out is None and not relu and not squashed and product.out.kind != "signed":
        raise RedcaneError(f"{where}: what no multiplier reads is signed, not {product.out.kind}")
    aligns = (0,) if takes_signed(product.format) else (0, 1)
    if product.align not in aligns:
        raise RedcaneError(f"{where}: align is {product.align} instead of {' or '.join(map(str, aligns))}")
    if product.component not in tables:
        raise RedcaneError(f"{where}: the table of {product.component} is not in the file")
    unit = product.requantizer
    lo = max(product.out.lo, product.out.zero_point) if relu else product.out.lo
    if not (2**15 <= unit.multiplier < 2**16 and 1 <= unit.shift <= 47):
        raise RedcaneError(f"{where}: a requantiser of {unit.multiplier} >> {unit.shift} is out of range")
    if unit != Requantizer(unit.multiplier, unit.shift, product.out.zero_point, lo, product.out.hi, squashed):
        raise RedcaneError(f"{where}: the requantiser's limits are not those of its output's coding")
