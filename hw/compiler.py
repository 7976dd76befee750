"""From a quantised network to what the accelerator is loaded with: layer program, weights, biases, tables, and where
things lie.

The compiler also decides the memories' sizes, so that an accelerator fits its network (`hw/layout.py`). Nothing is
overwritten that a later comparison could want, except by the next routing iteration.
"""

from __future__ import annotations

import numpy as np

from hw.assembler import MAX_PIXELS, Assembler
from hw.layout import Layout
from hw.linker import link
from hw.parameters import MultiplierKind, Parameters, Size
from hw.program import Program, Region, to_bytes
from hw.routing import class_capsules, splits
from model.errors import RedcaneError
from model.qnetwork import QAdd, QClassCaps, QConv, QConvCaps, QConvCaps3D, QConvLayer, QNetwork, QPrimaryCaps


def compile_network(network: QNetwork, kinds: tuple[MultiplierKind, ...], size: Size) -> Program:
    """Compile a network for an accelerator of this size whose PEs hold the multipliers `kinds`.

    Raises RedcaneError when the network does not fit or names a multiplier that the PEs lack.
    """
    held = {kind.component for kind in kinds}
    for key, product, _ in network.products():
        if product.component not in held:
            raise RedcaneError(
                f"{key}: its multiplier {product.component!r} is not in the PEs ({', '.join(sorted(held))})"
            )
    affine = any(p.format == "affine" for _, p, _ in network.products())
    split = any(isinstance(layer, QClassCaps) and splits(layer, size.rows) for layer in network.layers)
    bus = min(size.bus_bits, 8 * size.rows * size.columns)
    parameters = Parameters(
        kinds, size.rows, size.columns, affine, split, size.batch, bus, weight_words=size.weight_words
    )
    to = Assembler(parameters, Layout(parameters))
    chain: list[QConvLayer | QPrimaryCaps | QClassCaps] = []
    for layer in network.layers:
        if isinstance(layer, QAdd | QConvCaps | QConvCaps3D) or layer.reads:
            raise RedcaneError(
                f"{layer.name}: the accelerator computes convolutions, primary and class capsules, one after the "
                "other; of a DeepCaps there is no hardware yet, its stages go up to quantize"
            )
        chain.append(layer)
    borders = [0 if isinstance(layer, QClassCaps) else layer.conv.padding for layer in chain]
    image = to.layout.place(network.image, network.input, borders[0])
    to.emit("input", image)
    here = image
    for layer, border in zip(chain, [*borders[1:], 0], strict=True):
        if isinstance(layer, QClassCaps):
            here = class_capsules(to, layer, here)
        else:
            to.label = f"{layer.name}.mac"
            here = _convolution(to, layer.conv, here, border)
            to.emit(f"{layer.name}.mac", here)
        if isinstance(layer, QPrimaryCaps):
            to.label = f"{layer.name}.squash"
            maps, capsules = here, int(np.prod(here.shape)) // layer.capsule_dim
            here = to.layout.place((capsules, layer.capsule_dim), layer.squash.out)
            to.squash(layer.squash, maps, here, capsules, layer.capsule_dim)
            to.emit(f"{layer.name}.squash", here)
        to.counters()
    to.classify(here)
    to.counters()
    to.halt()
    return link(to, image)


def _convolution(to: Assembler, conv: QConv, here: Region, border: int) -> Region:
    """A convolution of the region `here`, whose border is the convolution's padding, into a new region with
    `border`.
    """
    p = to.p
    cout, kh, kw, cin = conv.weights.shape
    height, width = ((size - k) // conv.stride + 1 for size, k in zip(here.stored[:2], (kh, kw), strict=True))
    out = to.layout.place((height, width, cout), conv.mac.out, border)
    segment = kw * cin  # contiguous in memory: channels last
    chunks, blocks = -(-segment // p.rows), -(-cout // p.columns)
    flat = np.zeros((blocks * p.columns, kh, chunks * p.rows), np.int16)
    flat[:cout, :, :segment] = conv.weights.reshape(cout, kh, segment)
    words = flat.reshape(blocks, p.columns, kh, chunks, p.rows).transpose(0, 2, 3, 4, 1)
    weights = to.layout.weights(to_bytes(conv.mac.b, words))
    bias = np.zeros(blocks * p.columns, np.int32)
    bias[:cout] = conv.bias
    bias_base = to.layout.biases(bias.reshape(blocks, p.columns))
    stripe = min(height, MAX_PIXELS // (width * p.batch))
    if stripe == 0:
        raise RedcaneError(
            f"a row of {width} pixels of {p.batch} images does not fit the {MAX_PIXELS} accumulators of a column"
        )
    row_bytes, out_row_bytes = here.stored[1] * cin, out.stored[1] * cout
    for top in range(0, height, stripe):
        to.matmul(
            conv.mac,
            weights,
            has_bias=1,
            blocks=blocks,
            segments=kh,
            chunks=chunks,
            images=p.batch,
            rows=min(stripe, height - top),
            cols=width,
            lanes=p.rows,
            last_lanes=segment - (chunks - 1) * p.rows,
            columns=p.columns,
            last_columns=cout - (blocks - 1) * p.columns,
            a_base=here.base + top * conv.stride * row_bytes,
            a_segment=row_bytes,
            a_chunk=p.rows,
            a_image=here.size,
            a_row=conv.stride * row_bytes,
            a_col=conv.stride * cin,
            bias_base=bias_base,
            o_base=out.inner + top * out_row_bytes,
            o_block=p.columns,
            o_image=out.size,
            o_row=out_row_bytes,
            o_col=cout,
        )
    return out
