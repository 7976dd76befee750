"""From a quantised network to what the accelerator is loaded with: layer program, weights, biases, tables, and where
things lie.

The compiler also decides the memories' sizes, so that an accelerator fits its network (`hw/layout.py`). A tensor's
place is used again when its last reader is done: a trace sends every boundary right after it was made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from hw.assembler import Assembler
from hw.convolution import convolve, output_shape, place_kernel, stripes
from hw.layout import Layout, NoRoom
from hw.linker import link
from hw.mapping import NetworkMapping, map_network
from hw.parameters import MAX_ACTIVATION_BYTES, MultiplierKind, Parameters, Size
from hw.placement import Tensors, convolution_way, routing_way, sum_way
from hw.program import Program, Region
from hw.routing import class_capsules, conv_capsules_3d, routing_bytes
from hw.striping import add_pieces, convolve_striped
from model.errors import RedcaneError
from model.qnetwork import (
    Layer,
    QAdd,
    QClassCaps,
    QConvCaps,
    QConvCaps3D,
    QConvLayer,
    QNetwork,
    QPrimaryCaps,
    convolution_of,
)


def compile_network(
    network: QNetwork, kinds: tuple[MultiplierKind, ...], size: Size, mapping: NetworkMapping | None = None
) -> Program:
    """Compile a network for an accelerator of this size whose PEs hold the multipliers `kinds`; it lies on the array as
    the mapping says, which is the best one unless told.

    Raises RedcaneError when the network does not fit or names a multiplier that the PEs lack.
    """
    parameters, given = _parameters(network, kinds, size), size.activation_bytes
    mapping = mapping or best_mapping(network, kinds, size)
    try:
        return _compile(network, parameters, mapping, given)
    except NoRoom as problem:
        assert given is not None  # there is always room where nobody sets a limit
        least = next((more for more in _doubled(given) if _has_room(network, parameters, mapping, more)), None)
        raise RedcaneError(
            f"accelerator: {given / 1024:g} KiB of activations do not suffice for {problem} of {size.batch} images; "
            + (f"it takes activation_kib: {least / 1024:g} at least" if least else "take a smaller batch")
        ) from None


def _compile(network: QNetwork, parameters: Parameters, mapping: NetworkMapping, given: int | None) -> Program:
    """Compile for so many bytes of activations on the chip.

    Raises NoRoom with the name of the layer that does not fit.
    """
    parameters = replace(parameters, split=mapping.split, row_ends=mapping.row_ends)
    to = Assembler(parameters, Layout(parameters, None if given is None else given - parameters.lanes))
    tensors = Tensors(to, network)
    layer_name = "the input"
    try:
        image = to.layout.place(network.image, network.input, mapping.pitches.get("input", 0))
        tensors.put("input", image)
        to.emit("input", image)
        for layer in network.layers:
            layer_name = layer.name
            tensors.begin(layer.name)
            tensors.put(layer.output, _layer(to, layer, tensors, mapping))
            to.counters()
            tensors.end()
        to.classify(tensors.last())
    except NoRoom:
        raise NoRoom(layer_name) from None
    to.counters()
    to.halt()
    return link(to, image, tensors.inputs)


def _doubled(given: int) -> Iterator[int]:
    while (given := 2 * given) <= MAX_ACTIVATION_BYTES:
        yield given


def _has_room(network: QNetwork, parameters: Parameters, mapping: NetworkMapping, given: int) -> bool:
    try:
        _compile(network, parameters, mapping, given)
    except NoRoom:
        return False
    return True


def best_mapping(network: QNetwork, kinds: tuple[MultiplierKind, ...], size: Size) -> NetworkMapping:
    """The best way for a network to lie on an accelerator of this size whose PEs hold the multipliers `kinds`. Where
    its activation memory is too small for rows that lie apart, none do.

    Raises RedcaneError when the accumulators do not hold a row of a convolution's output, or the network names a
    multiplier that the PEs lack.
    """
    parameters, given = _parameters(network, kinds, size), size.activation_bytes
    mapping = map_network(network, parameters)
    if mapping.pitches and given is not None and not _has_room(network, parameters, mapping, given):
        return map_network(network, parameters, gaps=False)
    return mapping


def _parameters(network: QNetwork, kinds: tuple[MultiplierKind, ...], size: Size) -> Parameters:
    """What the network needs of an accelerator, but for the memories, and what depends on how it lies on the array."""
    held = {kind.component for kind in kinds}
    for key, product, _ in network.products():
        if product.component not in held:
            raise RedcaneError(
                f"{key}: its multiplier {product.component!r} is not in the PEs ({', '.join(sorted(held))})"
            )
    convolutions = [conv for _, conv in map(convolution_of, network.layers) if conv]
    return Parameters(
        kinds,
        size.rows,
        size.columns,
        affine=any(p.format == "affine" for _, p, _ in network.products()),
        padding=any(conv.padding for conv in convolutions),
        shared_kernels=any(isinstance(layer, QConvCaps3D) for layer in network.layers),
        adder=any(isinstance(layer, QAdd) for layer in network.layers),
        batch=size.batch,
        bus_bits=min(size.bus_bits, 8 * size.rows * size.columns),
        weight_words=size.weight_words,
    )


def _layer(to: Assembler, layer: Layer, tensors: Tensors, mapping: NetworkMapping) -> Region:
    """The steps of the next layer; where its output lies."""
    if isinstance(layer, QClassCaps | QConvCaps3D):
        way = routing_way(tensors, routing_bytes(layer, to.p.batch, [region.shape for region in tensors.sources()]))
        tensors.evict(way.evicted)
        sources, copies = tensors.fetched()
        if isinstance(layer, QClassCaps):
            out = class_capsules(to, layer, sources, mapping.chosen[layer.name].split)
        else:
            out = conv_capsules_3d(to, layer, sources[0], mapping.convolution(layer.name))
        to.layout.release(*copies)
        return out
    if isinstance(layer, QAdd):
        return _sum(to, layer, tensors)
    return _convolution(to, layer, tensors, mapping)


def _sum(to: Assembler, layer: QAdd, tensors: Tensors) -> Region:
    out = Region(tensors.sources()[0].shape, layer.adder.out, 0, to.p.batch)
    way = sum_way(tensors, out, to.p.lanes)
    tensors.evict(way.evicted)
    out = to.layout.put(out, way.external)
    a, b = tensors.sources()
    if way.piece:
        add_pieces(to, layer, way.piece, a, b, out)
    else:
        to.label = f"{layer.name}.add"
        to.add(layer.adder, a, b, out)
    if not way.external:
        to.emit(f"{layer.name}.add", out)
    return out


def _convolution(
    to: Assembler, layer: QConvLayer | QPrimaryCaps, tensors: Tensors, mapping: NetworkMapping
) -> Region:
    """A convolution, and the squash of what it makes where that is capsules."""
    conv = layer.conv
    [here] = tensors.sources()
    chosen = mapping.convolution(layer.name)
    kernel = place_kernel(to, conv, chosen.packed)
    pitch = mapping.pitches.get(layer.output, 0)
    maps = Region(output_shape(conv, here.shape), conv.mac.out, 0, to.p.batch, pitch=pitch)
    whole = stripes(chosen, to.p.batch, maps.shape[0])
    way = convolution_way(tensors, conv, maps, kernel.weights[1] * to.p.word_bits // 8, len(whole))
    tensors.evict(way.evicted)
    [here] = tensors.sources()
    maps = to.layout.put(maps, way.external)
    made = {"mac": maps}
    if isinstance(layer, QPrimaryCaps):
        grid = maps.shape[:2] if isinstance(layer, QConvCaps) else ()
        shape = *grid, maps.size // (math.prod(grid) * layer.capsule_dim), layer.capsule_dim
        made["squash"] = replace(maps, shape=shape, coding=layer.squash.out)  # in place
    if way.striping:
        convolve_striped(to, layer, kernel, way.striping, here, maps, made)
    else:
        to.label = f"{layer.name}.mac"
        for stripe in whole:
            convolve(to, conv, kernel, stripe, here, maps)
    if not way.external:
        to.emit(f"{layer.name}.mac", maps)
        if isinstance(layer, QPrimaryCaps):
            to.label = f"{layer.name}.squash"
            to.squash(layer.squash, replace(maps, shape=made["squash"].shape), made["squash"])
            to.emit(f"{layer.name}.squash", made["squash"])
    return made.get("squash", maps)
