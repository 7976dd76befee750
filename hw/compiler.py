"""From a quantised network to what the accelerator is loaded with: layer program, weights, biases, tables, and where
things lie.

The compiler also decides the memories' sizes, so that an accelerator fits its network (`hw/layout.py`). A tensor's
place is used again when its last reader is done: a trace sends every boundary right after it was made.
"""

from __future__ import annotations

import math
from dataclasses import replace

from hw.assembler import Assembler
from hw.convolution import convolution
from hw.layout import Layout
from hw.linker import link
from hw.mapping import NetworkMapping, map_network
from hw.parameters import MultiplierKind, Parameters, Size
from hw.program import Program, Region
from hw.routing import class_capsules, conv_capsules_3d
from model.errors import RedcaneError
from model.qnetwork import Layer, QAdd, QClassCaps, QConvCaps, QConvCaps3D, QNetwork, QPrimaryCaps, convolution_of


def compile_network(
    network: QNetwork, kinds: tuple[MultiplierKind, ...], size: Size, mapping: NetworkMapping | None = None
) -> Program:
    """Compile a network for an accelerator of this size whose PEs hold the multipliers `kinds`; it lies on the array as
    the mapping says, which is the best one unless told.

    Raises RedcaneError when the network does not fit or names a multiplier that the PEs lack.
    """
    parameters = _parameters(network, kinds, size)
    mapping = mapping or map_network(network, parameters)
    parameters = replace(parameters, split=mapping.split, row_ends=mapping.row_ends)
    to = Assembler(parameters, Layout(parameters))
    image = to.layout.place(network.image, network.input, mapping.pitches.get("input", 0))
    to.emit("input", image)
    outputs = {"input": image}  # of layers, by their boundaries
    unread = {layer.output: sources for layer, sources in network.sources()}  # of the layers to come, what they read
    for layer, sources in network.sources():
        outputs[layer.output] = _layer(to, layer, [outputs[source] for source in sources], mapping)
        to.counters()
        del unread[layer.output]
        wanted = {source for read in unread.values() for source in read} | {layer.output}
        for boundary in outputs.keys() - wanted:
            to.layout.release(outputs.pop(boundary))
    to.classify(outputs[network.layers[-1].output])
    to.counters()
    to.halt()
    return link(to, image)


def best_mapping(network: QNetwork, kinds: tuple[MultiplierKind, ...], size: Size) -> NetworkMapping:
    """The best way for a network to lie on an accelerator of this size whose PEs hold the multipliers `kinds`.

    Raises RedcaneError when the accumulators do not hold a row of a convolution's output, or the network names a
    multiplier that the PEs lack.
    """
    return map_network(network, _parameters(network, kinds, size))


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


def _layer(to: Assembler, layer: Layer, sources: list[Region], mapping: NetworkMapping) -> Region:
    """The steps of a layer that reads these tensors; where its output lies."""
    if isinstance(layer, QClassCaps):
        return class_capsules(to, layer, sources, mapping.chosen[layer.name].split)
    if isinstance(layer, QConvCaps3D):
        return conv_capsules_3d(to, layer, sources[0])
    if isinstance(layer, QAdd):
        to.label = f"{layer.name}.add"
        out = to.layout.place(sources[0].shape, layer.adder.out)
        to.add(layer.adder, sources[0], sources[1], out)
        to.emit(f"{layer.name}.add", out)
        return out
    to.label = f"{layer.name}.mac"
    pitch = mapping.pitches.get(layer.output, 0)
    maps = convolution(to, layer.conv, sources[0], mapping.convolution(layer.name), pitch)
    to.emit(f"{layer.name}.mac", maps)
    if not isinstance(layer, QPrimaryCaps):
        return maps
    to.label = f"{layer.name}.squash"
    grid = maps.shape[:2] if isinstance(layer, QConvCaps) else ()
    shape = *grid, maps.size // (math.prod(grid) * layer.capsule_dim), layer.capsule_dim
    out = replace(maps, shape=shape, coding=layer.squash.out)  # in place
    to.squash(layer.squash, replace(maps, shape=shape), out)
    to.emit(f"{layer.name}.squash", out)
    return out
