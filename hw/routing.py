"""Class capsules as steps: the votes, and the iterations of dynamic routing written out."""

from __future__ import annotations

import numpy as np

from hw.assembler import Assembler
from hw.isa import Opcode
from hw.program import Region, to_bytes
from model.qnetwork import QClassCaps


def splits(layer: QClassCaps, rows: int) -> bool:
    """Whether two input capsules fill the rows exactly and have a pair of lanes for their votes."""
    inputs, dim_in = layer.weights.shape[:2]
    return 2 * dim_in == rows and inputs % 2 == 0


def class_capsules(to: Assembler, layer: QClassCaps, u: Region) -> Region:
    """Votes of the capsules u, then routing to the output capsules."""
    inputs, _, classes, dim = layer.weights.shape
    words = -(-inputs // to.p.square) * classes * -(-dim // to.p.square)
    to.layout.reserve_votes(to.p.batch * words)
    _votes(to, layer, u)
    to.emit(f"{layer.name}.votes", Region((inputs, classes, dim), layer.votes.out, 0, to.p.batch, votes=True))
    return _route(to, layer)


def _votes(to: Assembler, layer: QClassCaps, u: Region) -> None:
    p = to.p
    inputs, dim_in, classes, dim = layer.weights.shape
    size = p.square
    capsule_blocks, dim_blocks = -(-inputs // size), -(-dim // size)
    word_row = classes * dim_blocks  # vote words of one block of input capsules
    together = 2 if p.split and splits(layer, p.rows) else 1  # input capsules in a word of weights

    chunks = -(-dim_in // p.rows)
    padded = np.zeros((inputs, chunks * p.rows, classes, dim_blocks * size), np.int16)
    padded[:, :dim_in, :, :dim] = layer.weights
    rows = p.rows // together
    words = np.zeros((inputs, word_row, chunks, rows, p.columns), np.uint8)
    words[..., :size] = to_bytes(
        layer.votes.b,
        padded[:, : chunks * rows].reshape(inputs, chunks, rows, word_row, size).transpose(0, 3, 1, 2, 4),
    )
    words = words.reshape(inputs // together, together, word_row, chunks, rows, p.columns)
    to.label = f"{layer.name}.votes"
    to.matmul(
        layer.votes,
        to.layout.weights(words.transpose(0, 2, 3, 1, 4, 5)),
        to_votes=1,
        split=int(together == 2),
        groups=inputs // together,
        blocks=word_row,
        chunks=chunks,
        images=p.batch,
        lanes=p.rows,
        last_lanes=together * dim_in - (chunks - 1) * p.rows,
        columns=size,
        last_columns=size,
        a_base=u.base,
        a_group=together * dim_in,
        a_chunk=p.rows,
        a_image=u.size,
        o_base=0,
        o_group=word_row,
        o_block=1,
        o_image=capsule_blocks * word_row,
    )


def _route(to: Assembler, layer: QClassCaps) -> Region:
    p, name = to.p, layer.name
    inputs, _, classes, dim = layer.weights.shape
    size = p.square
    capsule_blocks, dim_blocks = -(-inputs // size), -(-dim // size)
    word_row = classes * dim_blocks
    image_words = capsule_blocks * word_row

    coupling = to.layout.place((classes, inputs), layer.weighted_sum.a)
    logits = to.layout.place((classes, inputs), layer.agreement.out)
    agreement = to.layout.place((classes, inputs), layer.agreement.out)
    sums = to.layout.place((classes, dim), layer.weighted_sum.out)
    exp_table = to.layout.exp_table(layer.exp_table)
    out = to.layout.place((classes, dim), layer.squash.out)
    for t in range(1, layer.iterations + 1):
        to.label = f"{name}.softmax"
        for number in range(p.batch):
            to.step(
                Opcode.SOFTMAX,
                first=int(t == 1),
                narrow=int(layer.weighted_sum.a.hi == 127),
                table=exp_table,
                classes=classes,
                inputs=inputs,
                logits=logits.base + number * logits.size,
                agreement=agreement.base + number * agreement.size,
                coupling=coupling.base + number * coupling.size,
            )
        if t > 1:
            to.emit(f"{name}.agreement.{t - 1}", logits)
        to.emit(f"{name}.softmax.{t}", coupling)
        to.label = f"{name}.weighted_sum"
        to.matmul(
            layer.weighted_sum,
            None,
            b_votes=1,
            groups=classes,
            blocks=dim_blocks,
            chunks=capsule_blocks,
            images=p.batch,
            lanes=size,
            last_lanes=inputs - (capsule_blocks - 1) * size,
            columns=size,
            last_columns=dim - (dim_blocks - 1) * size,
            a_base=coupling.base,
            a_group=inputs,
            a_chunk=size,
            a_image=coupling.size,
            b_group=dim_blocks,
            b_block=1,
            b_chunk=word_row,
            b_image=image_words,
            o_base=sums.base,
            o_group=dim,
            o_block=size,
            o_image=sums.size,
        )
        to.emit(f"{name}.weighted_sum.{t}", sums)
        to.label = f"{name}.squash"
        to.squash(layer.squash, sums, out, classes, dim)
        to.emit(f"{name}.squash.{t}", out)
        if t < layer.iterations:
            to.label = f"{name}.agreement"
            to.matmul(
                layer.agreement,
                None,
                b_votes=1,
                transposed=1,
                groups=classes,
                blocks=capsule_blocks,
                chunks=dim_blocks,
                images=p.batch,
                lanes=size,
                last_lanes=dim - (dim_blocks - 1) * size,
                columns=size,
                last_columns=inputs - (capsule_blocks - 1) * size,
                a_base=out.base,
                a_group=dim,
                a_chunk=size,
                a_image=out.size,
                b_group=dim_blocks,
                b_block=word_row,
                b_chunk=1,
                b_image=image_words,
                o_base=agreement.base,
                o_group=inputs,
                o_block=size,
                o_image=agreement.size,
            )
    return out
