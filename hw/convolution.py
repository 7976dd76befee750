"""Convolutions as steps: their kernels as words of weights, their output pixels in stripes of rows."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hw.assembler import Assembler
from hw.isa import ADDRESS
from hw.parameters import Parameters
from hw.program import Region, to_bytes
from model.qnetwork import Codes, Coding, QConv


def bounds(x: int = 0, columns: int = 0, y: int = 0, rows: int = 1) -> dict[str, Any]:
    """Field `b` of a job that takes weights: where its image ends, see hw.isa.BOUNDS."""
    return {"bounds": {"x": x, "columns": columns, "y": y, "rows": rows}}


def kernel_words(p: Parameters, coding: Coding, kernel: Codes) -> NDArray[np.uint8]:
    """Array words (blocks, segments, chunks, rows, columns) of weights (outputs, segments, elements)."""
    outputs, segments, elements = kernel.shape
    chunks, blocks = -(-elements // p.rows), -(-outputs // p.columns)
    flat = np.zeros((blocks * p.columns, segments, chunks * p.rows), np.int16)
    flat[:outputs, :, :elements] = kernel
    return to_bytes(coding, flat.reshape(blocks, p.columns, segments, chunks, p.rows).transpose(0, 2, 3, 4, 1))


@dataclass(frozen=True)
class Stripe:
    """Output pixels that one job computes: some images of the batch, and of these some rows of the output."""

    image: int  # the first one
    images: int
    top: int  # the first row
    rows: int


@dataclass(frozen=True)
class Mapping:
    """How a convolution lies on the array."""

    packed: bool  # its sums are packed, see hw.packing; else a word of weights is a stretch of one row of the kernel
    images: int  # of a stripe, at most
    rows: int  # of the output, at most


def stripes(mapping: Mapping, batch: int, height: int) -> list[Stripe]:
    """All output pixels of a batch in as few stripes as the mapping allows, as equal as they can be."""
    return [
        Stripe(image, images, top, rows)
        for image, images in _shares(batch, mapping.images)
        for top, rows in _shares(height, mapping.rows)
    ]


def share(count: int, most: int) -> int:
    """The largest of the fewest equal shares of so many that have at most `most` each."""
    return -(-count // -(-count // most))


def _shares(count: int, most: int) -> list[tuple[int, int]]:
    """Where each of these shares begins, and its size."""
    shares = -(-count // most)
    begins = [number * count // shares for number in range(shares + 1)]
    return [(begin, end - begin) for begin, end in pairwise(begins)]


def output_shape(conv: QConv, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The maps (H', W', Cout) that a convolution makes of maps or capsules (H, W, ...)."""
    cout, *kernel, _ = conv.weights.shape
    height, width = ((size + 2 * conv.padding - k) // conv.stride + 1
                     for size, k in zip(shape[:2], kernel, strict=True))  # fmt: skip
    return height, width, cout


@dataclass(frozen=True)
class Kernel:
    """Where the weights and the bias of a convolution lie."""

    packed: bool
    weights: tuple[int, int]  # array words: the first, and how many
    bias: dict[str, int]  # fields of a job


def segments(conv: QConv, packed: bool) -> tuple[int, int]:
    """Into how many segments, and of how many terms, its words divide a kernel."""
    _, kh, kw, cin = conv.weights.shape
    return (1, kh * kw * cin) if packed else (kh, kw * cin)


def place_kernel(to: Assembler, conv: QConv, packed: bool) -> Kernel:
    """Lay out the weights in the order of their use: block by block of columns, then row by row of the kernel."""
    p, cout = to.p, len(conv.weights)
    weights = to.layout.weights(kernel_words(p, conv.mac.b, conv.weights.reshape(cout, *segments(conv, packed))))
    bias = np.zeros((-(-cout // p.columns), p.columns), np.int32)
    bias.reshape(-1)[:cout] = conv.bias
    return Kernel(packed, weights, to.layout.biases(bias))


def convolve(to: Assembler, conv: QConv, kernel: Kernel, stripe: Stripe, here: Region, out: Region) -> None:
    """The job that computes one stripe of the output `out` from the input `here`."""
    p = to.p
    cout, _, kw, cin = conv.weights.shape
    count, segment = segments(conv, kernel.packed)
    chunks, blocks = -(-segment // p.rows), -(-cout // p.columns)
    row_bytes, run = here.row_bytes, kw * cin  # contiguous in memory: channels last
    x, y = -conv.padding * cin, (stripe.top * conv.stride - conv.padding) * row_bytes
    to.matmul(
        conv.mac,
        kernel.weights,
        packed=int(kernel.packed),
        blocks=blocks,
        segments=count,
        chunks=chunks,
        images=stripe.images,
        rows=stripe.rows,
        cols=out.shape[1],
        lanes=p.rows,
        last_lanes=segment - (chunks - 1) * p.rows,
        columns=p.columns,
        last_columns=cout - (blocks - 1) * p.columns,
        a_base=(here.base + stripe.image * here.image_bytes + x + y) % (1 << ADDRESS),
        a_segment=(row_bytes - run * kernel.packed) % (1 << ADDRESS),
        a_window=run * kernel.packed,
        a_chunk=p.rows,
        a_image=here.image_bytes,
        a_row=conv.stride * row_bytes,
        a_col=conv.stride * cin,
        b=bounds(x, here.row_values, y, here.size),
        o_base=out.base + stripe.image * out.image_bytes + stripe.top * out.row_bytes,
        o_block=p.columns,
        o_image=out.image_bytes,
        o_row=out.row_bytes,
        o_col=cout,
        **kernel.bias,
    )
