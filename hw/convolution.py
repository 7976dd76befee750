"""Convolutions as steps: their kernels as words of weights, their output pixels in stripes of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hw.assembler import MAX_PIXELS, Assembler
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


def convolution(to: Assembler, conv: QConv, here: Region) -> Region:
    """A convolution of maps (H, W, C), or of capsules (H, W, types, dim) taken as such, into a new region of maps."""
    p = to.p
    cout, kh, kw, cin = conv.weights.shape
    height, width = ((size + 2 * conv.padding - k) // conv.stride + 1
                     for size, k in zip(here.shape[:2], (kh, kw), strict=True))  # fmt: skip
    out = to.layout.place((height, width, cout), conv.mac.out)
    segment = kw * cin  # contiguous in memory: channels last
    chunks, blocks = -(-segment // p.rows), -(-cout // p.columns)
    weights = to.layout.weights(kernel_words(p, conv.mac.b, conv.weights.reshape(cout, kh, segment)))
    bias = np.zeros((blocks, p.columns), np.int32)
    bias.reshape(-1)[:cout] = conv.bias
    biased = to.layout.biases(bias)
    row_bytes = here.shape[1] * cin
    stripe = max(1, min(height, MAX_PIXELS // (width * p.batch)))
    for top in range(0, height, stripe):
        x, y = -conv.padding * cin, (top * conv.stride - conv.padding) * row_bytes
        to.matmul(
            conv.mac,
            weights,
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
            a_base=(here.base + x + y) % (1 << ADDRESS),
            a_segment=row_bytes,
            a_chunk=p.rows,
            a_image=here.size,
            a_row=conv.stride * row_bytes,
            a_col=conv.stride * cin,
            b=bounds(x, row_bytes, y, here.size),
            o_base=out.base + top * width * cout,
            o_block=p.columns,
            o_image=out.size,
            o_row=width * cout,
            o_col=cout,
            **biased,
        )
    return out
