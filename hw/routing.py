"""Votes and dynamic routing as steps: of class capsules, and of 3D capsules at every position of their grid."""

from __future__ import annotations

import math

import numpy as np

from hw.assembler import Assembler
from hw.convolution import Kernel, Mapping, bounds, kernel_words, output_shape, stripes
from hw.isa import ADDRESS, Opcode
from hw.parameters import Parameters
from hw.program import Region, to_bytes, vote_words
from model.qnetwork import Product, QClassCaps, QConvCaps3D, Routed


def splits(layer: QClassCaps, rows: int) -> bool:
    """Whether votes can be split: two input capsules fill the rows exactly, and there is a pair of lanes for the votes
    of any two.
    """
    inputs, dim_in = layer.weights.shape[:2]
    return 2 * dim_in == rows and inputs % 2 == 0


def class_capsules(to: Assembler, layer: QClassCaps, sources: list[Region], split: bool) -> Region:
    """Votes of the capsules of all sources, one after the other, then routing to the output capsules (J, D)."""
    inputs, dim_in, classes, dim = layer.weights.shape
    to.label = f"{layer.name}.votes"
    first = 0
    for u in sources:
        count = u.size // dim_in
        weights = to.layout.weights(_vote_weights(to, layer, first, count, _together(layer, u, split)))
        make_votes(to, layer, u, first, split, weights)
        first += count
    return _route(to, layer, Region((inputs, classes, dim), layer.votes.out, 0, to.p.batch, votes=True))


def _together(layer: QClassCaps, u: Region, split: bool) -> int:
    """Input capsules of a source that share a word of weights."""
    return 2 if split and u.size // layer.weights.shape[1] % 2 == 0 else 1


def vote_weight_words(p: Parameters, layer: QClassCaps, u: Region, split: bool) -> int:
    """Array words of weights for the votes of a source's capsules."""
    _, dim_in, classes, dim = layer.weights.shape
    groups = u.size // dim_in // _together(layer, u, split)
    return groups * vote_words((1, classes, dim), p.square) * -(-dim_in // p.rows)


def make_votes(
    to: Assembler, layer: QClassCaps, u: Region, first: int, split: bool, weights: tuple[int, int]
) -> None:
    """The job that makes the votes of the capsules u, which are those from the `first` on."""
    p = to.p
    inputs, dim_in, classes, dim = layer.weights.shape
    together = _together(layer, u, split)
    word_row = vote_words((1, classes, dim), p.square)  # of one block of input capsules
    chunks = -(-dim_in // p.rows)
    to.matmul(
        layer.votes,
        weights,
        to_votes=1,
        split=together - 1,
        groups=u.size // dim_in // together,
        blocks=word_row,
        chunks=chunks,
        images=p.batch,
        lanes=p.rows,
        last_lanes=together * dim_in - (chunks - 1) * p.rows,
        columns=p.square,
        last_columns=p.square,
        a_base=u.base,
        a_group=together * dim_in,
        a_chunk=p.rows,
        a_image=u.size,
        b=bounds(columns=together * dim_in),
        lane=first % p.square,
        o_base=first // p.square * word_row,
        o_group=word_row,
        o_block=1,
        o_image=vote_words((inputs, classes, dim), p.square),
    )


def _vote_weights(to: Assembler, layer: QClassCaps, first: int, count: int, together: int) -> np.ndarray:
    """Words for `count` input capsules from the `first` on: (capsules, vote words, chunks, rows, columns)."""
    p, size = to.p, to.p.square
    _, dim_in, classes, dim = layer.weights.shape
    chunks, dim_blocks = -(-dim_in // p.rows), -(-dim // size)
    word_row = classes * dim_blocks
    padded = np.zeros((count, chunks * p.rows, classes, dim_blocks * size), np.int16)
    padded[:, :dim_in, :, :dim] = layer.weights[first : first + count]
    rows = p.rows // together
    words = np.zeros((count, word_row, chunks, rows, p.columns), np.uint8)
    words[..., :size] = to_bytes(
        layer.votes.b,
        padded[:, : chunks * rows].reshape(count, chunks, rows, word_row, size).transpose(0, 3, 1, 2, 4),
    )
    words = words.reshape(count // together, together, word_row, chunks, rows, p.columns)
    return words.transpose(0, 2, 3, 1, 4, 5)


def conv_capsules_3d(to: Assembler, layer: QConvCaps3D, u: Region, mapping: Mapping) -> Region:
    """Votes of the capsules u (H, W, I, Din) by the kernel that all types share, then routing at every position, to
    capsules (P, J, D).
    """
    p, conv = to.p, layer.conv
    to.label = f"{layer.name}.votes"
    cout, kh, kw, dim_in = conv.weights.shape
    classes, dim_blocks = cout // layer.capsule_dim, -(-layer.capsule_dim // p.square)
    # Columns are the dims of one output capsule, or a block of them, as in a vote word.
    kernel = np.zeros((classes, dim_blocks, p.columns, kh, kw, dim_in), np.int16)
    bias = np.zeros((classes, dim_blocks, p.columns), np.int32)
    for block in range(dim_blocks):
        dims = slice(block * p.square, (block + 1) * p.square)
        some = conv.weights.reshape(classes, layer.capsule_dim, kh, kw, dim_in)[:, dims]
        kernel[:, block, : some.shape[1]] = some
        bias[:, block, : some.shape[1]] = conv.bias.reshape(classes, layer.capsule_dim)[:, dims]
    words = to.layout.weights(kernel_words(p, conv.mac.b, kernel.reshape(-1, kh * kw, dim_in)))
    return _route(to, layer, make_votes_3d(to, layer, u, mapping, Kernel(False, words, to.layout.biases(bias))))


def vote_kernel_words(p: Parameters, layer: QConvCaps3D) -> int:
    """Array words of weights for the votes of 3D capsules."""
    cout, kh, kw, dim_in = layer.conv.weights.shape
    blocks = cout // layer.capsule_dim * -(-layer.capsule_dim // p.square)
    return blocks * kh * kw * -(-dim_in // p.rows)


def make_votes_3d(to: Assembler, layer: QConvCaps3D, u: Region, mapping: Mapping, kernel: Kernel) -> Region:
    """The jobs that make the votes of the capsules u (H, W, I, Din), and where these lie.

    A job makes those of one column of positions, or of a stripe of it. Types and rows share its words of weights; the
    pixels of a window are apart in memory, as only the capsules of one type count.
    """
    p, conv = to.p, layer.conv
    dim_in = conv.weights.shape[3]
    height, width, cout = output_shape(conv, u.shape)
    classes, dim_blocks = cout // layer.capsule_dim, -(-layer.capsule_dim // p.square)
    votes = Region((height * width, layer.in_types, classes, layer.capsule_dim), conv.mac.out, 0, p.batch, votes=True)
    pixel_bytes = layer.in_types * dim_in
    row_bytes = u.shape[1] * pixel_bytes
    chunks = -(-dim_in // p.rows)
    position = vote_words(votes.shape[1:], p.square)
    for left in range(width):
        for stripe in stripes(mapping, p.batch, height):
            x = (left * conv.stride - conv.padding) * pixel_bytes
            y = (stripe.top * conv.stride - conv.padding) * row_bytes
            to.matmul(
                conv.mac,
                kernel.weights,
                to_votes=1,
                by_type=1,
                blocks=classes * dim_blocks,
                segments=conv.weights.shape[1],
                windows=conv.weights.shape[2],
                chunks=chunks,
                images=stripe.images,
                rows=stripe.rows,
                cols=layer.in_types,
                lanes=p.rows,
                last_lanes=dim_in - (chunks - 1) * p.rows,
                columns=p.square,
                last_columns=p.square,
                a_base=(u.base + stripe.image * u.size + x + y) % (1 << ADDRESS),
                a_segment=row_bytes,
                a_window=pixel_bytes,
                a_chunk=p.rows,
                a_image=u.size,
                a_row=conv.stride * row_bytes,
                a_col=dim_in,
                b=bounds(x, row_bytes, y, u.size),
                o_base=((stripe.image * height + stripe.top) * width + left) * position,
                o_block=1,
                o_image=height * width * position,
                o_row=width * position,
                o_col=classes * dim_blocks,
                **kernel.bias,
            )
    return votes


def routing_bytes(layer: Routed, batch: int, shapes: list[tuple[int, ...]]) -> list[int]:
    """The bytes of each place that a layer takes besides its inputs, of these shapes, in the order of their taking."""
    if isinstance(layer, QClassCaps):
        inputs, _, classes, dim = layer.weights.shape
        places = batch
    else:
        height, width, cout = output_shape(layer.conv, shapes[0])
        inputs, classes, dim = layer.in_types, cout // layer.capsule_dim, layer.capsule_dim
        places = batch * height * width
    return [places * classes * inputs] * 3 + [places * classes * dim] * 2


def _route(to: Assembler, layer: Routed, votes: Region) -> Region:
    """The iterations of routing of the votes (..., I, J, D), which are in their memory, to capsules (..., J, D)."""
    p, name = to.p, layer.name
    to.layout.reserve_votes(p.batch * vote_words(votes.shape, p.square))
    to.emit(f"{name}.votes", votes)
    *places, inputs, classes, dim = votes.shape
    coupling = to.layout.place((*places, classes, inputs), layer.weighted_sum.a)
    logits = to.layout.place((*places, classes, inputs), layer.agreement.out)
    agreement = to.layout.place((*places, classes, inputs), layer.agreement.out)
    sums = to.layout.place((*places, classes, dim), layer.weighted_sum.out)
    out = to.layout.place((*places, classes, dim), layer.squash.out)
    for t in range(1, layer.iterations + 1):
        to.label = f"{name}.softmax"
        for number in range(p.batch * math.prod(places)):
            array = number * classes * inputs
            to.step(
                Opcode.SOFTMAX,
                first=int(t == 1),
                narrow=int(layer.weighted_sum.a.hi == 127),
                table=to.layout.exp_table(layer.exp_table),
                classes=classes,
                inputs=inputs,
                logits=logits.base + array,
                agreement=agreement.base + array,
                coupling=coupling.base + array,
            )
        if t > 1:
            to.emit(f"{name}.agreement.{t - 1}", logits)
        to.emit(f"{name}.softmax.{t}", coupling)
        to.label = f"{name}.weighted_sum"
        _sums(to, layer.weighted_sum, votes, coupling, sums, transposed=False)
        to.emit(f"{name}.weighted_sum.{t}", sums)
        to.label = f"{name}.squash"
        to.squash(layer.squash, sums, out)
        to.emit(f"{name}.squash.{t}", out)
        if t < layer.iterations:
            to.label = f"{name}.agreement"
            _sums(to, layer.agreement, votes, out, agreement, transposed=True)
    to.layout.release(coupling, logits, agreement, sums)
    return out


def _sums(to: Assembler, product: Product, votes: Region, a: Region, out: Region, transposed: bool) -> None:
    """For each output capsule of each place and image, the products of a row of `a` and its votes: over the input
    capsules, or, `transposed`, over the dims.
    """
    size = to.p.square
    *places, inputs, classes, dim = votes.shape
    capsule_blocks, dim_blocks = -(-inputs // size), -(-dim // size)
    (summed, chunks, chunk), (made, blocks, block) = (
        (inputs, capsule_blocks, classes * dim_blocks),
        (dim, dim_blocks, 1),
    )[:: -1 if transposed else 1]
    to.matmul(
        product,
        None,
        b_votes=1,
        transposed=int(transposed),
        groups=classes,
        blocks=blocks,
        chunks=chunks,
        images=to.p.batch * math.prod(places),
        lanes=size,
        last_lanes=summed - (chunks - 1) * size,
        columns=size,
        last_columns=made - (blocks - 1) * size,
        a_base=a.base,
        a_group=summed,
        a_chunk=size,
        a_image=classes * summed,
        b={
            "votes": {
                "group": dim_blocks,
                "block": block,
                "chunk": chunk,
                "image": vote_words((inputs, classes, dim), size),
            }
        },
        o_base=out.base,
        o_group=made,
        o_block=size,
        o_image=classes * made,
    )
