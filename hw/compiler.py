"""From a quantised network to what the accelerator is loaded with: layer program, weights, biases, tables, and where
things lie.

The compiler also decides the memories' sizes, so that an accelerator fits its network. Tensors get fixed places in
the activation memory, one after the other, each with the images of the batch one behind the other; nothing is
overwritten that a later comparison could want, except by the next routing iteration. Weights lie in external memory in
the order of their use.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hw import isa
from hw.isa import Opcode, Target
from hw.parameters import MultiplierKind, Parameters, Size
from hw.program import Emission, Packet, Program, Region, Step, to_bytes, vote_words, words32
from model.errors import RedcaneError
from model.qnetwork import (
    Coding,
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
    Squash,
)

MAX_PIXELS = 1024  # accumulators a column; larger outputs are computed in stripes of rows


class Compiler:
    """Lays a network out on an array; `program()` gives the result."""

    def __init__(self, network: QNetwork, kinds: tuple[MultiplierKind, ...], size: Size) -> None:
        affine = any(p.format == "affine" for _, p, _ in network.products())
        split = any(isinstance(layer, QClassCaps) and _splits(layer, size.rows) for layer in network.layers)
        bus = min(size.bus_bits, 8 * size.rows * size.columns)
        self._p = Parameters(
            kinds, size.rows, size.columns, affine, split, size.batch, bus, weight_words=size.weight_words
        )
        self._kind = {kind.component: index for index, kind in enumerate(kinds)}
        self._network = network
        self._steps: list[Step] = []
        self._label = ""
        self._emissions: dict[int, Emission] = {}
        self._weights: list[NDArray[np.uint8]] = []  # words (rows, columns)
        self._biases: list[NDArray[np.int32]] = []  # words (columns,)
        self._squash_tables: list[NDArray[np.uint16]] = []
        self._exp_tables: list[NDArray[np.uint16]] = []
        self._borders: list[Packet] = []
        self._bytes = 0
        self._vote_words = 1
        self._pixels = 1

    def program(self) -> Program:
        """Compile. Raises RedcaneError for a network that this accelerator cannot hold."""
        network = self._network
        chain: list[QConvLayer | QPrimaryCaps | QClassCaps] = []
        for layer in network.layers:
            if isinstance(layer, QAdd | QConvCaps | QConvCaps3D) or layer.reads:
                raise RedcaneError(
                    f"{layer.name}: the accelerator computes convolutions, primary and class capsules, one after the "
                    "other; of a DeepCaps there is no hardware yet, its stages go up to quantize"
                )
            chain.append(layer)
        borders = [0 if isinstance(layer, QClassCaps) else layer.conv.padding for layer in chain]
        image = self._place(network.image, network.input, borders[0])
        self._emit("input", image)
        here = image
        for layer, border in zip(chain, [*borders[1:], 0], strict=True):
            if isinstance(layer, QClassCaps):
                here = self._class_caps(layer, here)
            else:
                self._label = f"{layer.name}.mac"
                here = self._conv(layer.conv, here, border)
                self._emit(f"{layer.name}.mac", here)
            if isinstance(layer, QPrimaryCaps):
                self._label = f"{layer.name}.squash"
                capsules = int(np.prod(here.shape)) // layer.capsule_dim
                here = self._squash(layer.squash, here, (capsules, layer.capsule_dim))
                self._emit(f"{layer.name}.squash", here)
            self._step(Opcode.COUNTERS, tag=Program.COUNTERS_TAG)
        self._label = "class"
        result = self._place((), Coding("unsigned", 1.0))
        for number in range(self._p.batch):
            self._step(Opcode.SQUASH, **_classify(here, result, number))
        self._emissions[Program.CLASS_TAG] = Emission("class", result)
        self._step(Opcode.EMIT, tag=Program.CLASS_TAG, base=result.base, count=result.total)
        self._step(Opcode.COUNTERS, tag=Program.COUNTERS_TAG)
        self._step(Opcode.HALT)
        return self._link(image)

    # The layers.

    def _conv(self, conv: QConv, here: Region, border: int) -> Region:
        """A convolution of the region `here`, whose border is the convolution's padding, into a new region with
        `border`.
        """
        p = self._p
        cout, kh, kw, cin = conv.weights.shape
        height, width = ((size - k) // conv.stride + 1 for size, k in zip(here.stored[:2], (kh, kw), strict=True))
        out = self._place((height, width, cout), conv.mac.out, border)
        segment = kw * cin  # contiguous in memory: channels last
        chunks, blocks = -(-segment // p.rows), -(-cout // p.columns)
        flat = np.zeros((blocks * p.columns, kh, chunks * p.rows), np.int16)
        flat[:cout, :, :segment] = conv.weights.reshape(cout, kh, segment)
        words = flat.reshape(blocks, p.columns, kh, chunks, p.rows).transpose(0, 2, 3, 4, 1)
        weights = self._load_weights(to_bytes(conv.mac.b, words))
        bias = np.zeros(blocks * p.columns, np.int32)
        bias[:cout] = conv.bias
        bias_base = len(self._biases)
        self._biases.extend(bias.reshape(blocks, p.columns))
        stripe = min(height, MAX_PIXELS // (width * p.batch))
        if stripe == 0:
            raise RedcaneError(
                f"a row of {width} pixels of {p.batch} images does not fit the {MAX_PIXELS} accumulators of a column"
            )
        self._pixels = max(self._pixels, stripe * width * p.batch)
        row_bytes, out_row_bytes = here.stored[1] * cin, out.stored[1] * cout
        for top in range(0, height, stripe):
            self._matmul(
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

    def _class_caps(self, layer: QClassCaps, u: Region) -> Region:
        p, name = self._p, layer.name
        inputs, dim_in, classes, dim = layer.weights.shape
        size = p.square
        capsule_blocks, dim_blocks = -(-inputs // size), -(-dim // size)
        word_row = classes * dim_blocks  # vote words of one block of input capsules
        image_words = capsule_blocks * word_row
        self._vote_words = max(self._vote_words, p.batch * image_words)
        together = 2 if p.split and _splits(layer, p.rows) else 1  # input capsules in a word of weights

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
        self._label = f"{name}.votes"
        self._matmul(
            layer.votes,
            self._load_weights(words.transpose(0, 2, 3, 1, 4, 5)),
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
            o_image=image_words,
        )
        self._emit(f"{name}.votes", Region((inputs, classes, dim), layer.votes.out, 0, p.batch, votes=True))

        coupling = self._place((classes, inputs), layer.weighted_sum.a)
        logits = self._place((classes, inputs), layer.agreement.out)
        agreement = self._place((classes, inputs), layer.agreement.out)
        sums = self._place((classes, dim), layer.weighted_sum.out)
        exp_table = self._load_table(self._exp_tables, layer.exp_table)
        out = self._place((classes, dim), layer.squash.out)
        for t in range(1, layer.iterations + 1):
            self._label = f"{name}.softmax"
            for number in range(p.batch):
                self._step(
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
                self._emit(f"{name}.agreement.{t - 1}", logits)
            self._emit(f"{name}.softmax.{t}", coupling)
            self._label = f"{name}.weighted_sum"
            self._matmul(
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
            self._emit(f"{name}.weighted_sum.{t}", sums)
            self._label = f"{name}.squash"
            self._squash(layer.squash, sums, (classes, dim), out)
            self._emit(f"{name}.squash.{t}", out)
            if t < layer.iterations:
                self._label = f"{name}.agreement"
                self._matmul(
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

    def _squash(self, unit: Squash, source: Region, shape: tuple[int, int], out: Region | None = None) -> Region:
        out = out or self._place(shape, unit.out)
        table = self._load_table(self._squash_tables, unit.table)
        self._step(
            Opcode.SQUASH,
            in_signed=1,
            table=table,
            count=shape[0] * self._p.batch,
            dim=shape[1],
            source=source.base,
            destination=out.base,
            shift=unit.shift,
            zero_point=unit.out.zero_point,
            lo=unit.out.lo,
            hi=unit.out.hi,
            signed_out=int(unit.out.kind == "signed"),
        )
        return out

    # Descriptors, places, contents.

    def _step(self, opcode: Opcode, weights: tuple[int, int] | None = None, **fields: Any) -> None:
        self._steps.append(Step(self._label, opcode, fields, weights))

    def _matmul(self, product: Product, weights: tuple[int, int] | None, **fields: int) -> None:
        ones = dict.fromkeys(("groups", "blocks", "segments", "chunks", "images", "rows", "cols"), 1)
        affine = product.format == "affine"
        self._pixels = max(self._pixels, fields["images"])
        self._step(
            Opcode.MATMUL,
            weights,
            **{**ones, **fields},
            kind=self._kind[product.component],
            a_signed=int(product.a.kind == "signed"),
            b_signed=int(product.b.kind == "signed"),
            align=product.align,
            za=product.a.zero_point if affine else 0,
            zb=product.b.zero_point if affine else 0,
            requantize=_requantize(product.requantizer, product.out),
        )

    def _emit(self, boundary: str, region: Region) -> None:
        tag = len(self._emissions) + 1
        if tag >= Program.COUNTERS_TAG:
            raise RedcaneError("the network has more boundaries than the 254 that a trace can tell apart")
        self._emissions[tag] = Emission(boundary, region)
        count = region.images * vote_words(region.shape, self._p.square) if region.votes else region.total
        self._step(Opcode.EMIT, votes=int(region.votes), tag=tag, base=region.base, count=count)

    def _place(self, shape: tuple[int, ...], coding: Coding, border: int = 0) -> Region:
        region = Region(shape, coding, self._bytes, self._p.batch, border=border)
        self._bytes += -(-region.total // 4) * 4
        if border:
            zero = to_bytes(coding, np.full(region.total, coding.zero_point, np.int16))
            self._borders.append(Packet(Target.ACTIVATIONS, region.base, words32(zero)))
        return region

    def _load_weights(self, words: NDArray[np.uint8]) -> tuple[int, int]:
        """Put array words behind those that are there; the first one's number and how many they are."""
        base = sum(len(w) for w in self._weights)
        self._weights.append(words.reshape(-1, self._p.rows, self._p.columns))
        return base, len(self._weights[-1])

    @staticmethod
    def _load_table(tables: list[NDArray[np.uint16]], table: NDArray[np.uint16]) -> int:
        for index, known in enumerate(tables):
            if np.array_equal(known, table):
                return index
        tables.append(table)
        return len(tables) - 1

    def _link(self, image: Region) -> Program:
        traced = self._with_fetches()
        plain = [s for s in traced if s.opcode != Opcode.EMIT or s.fields["tag"] == Program.CLASS_TAG]
        code = np.array([word for s in plain + traced for word in isa.encode(s.opcode, s.fields)], np.uint32)
        weights = np.concatenate(self._weights)
        biases = np.array(self._biases, np.int32).reshape(-1, self._p.columns)
        tables = max(len(self._squash_tables), len(self._exp_tables))
        parameters = replace(
            self._p,
            activation_bytes=_power_of_two(self._bytes + self._p.lanes),
            vote_words=self._vote_words,
            bias_words=max(2, len(biases)),
            pixels=max(2, self._pixels),
            program_words=len(code) + isa.WORDS,  # the fetch may look past the end
            tables=_power_of_two(tables),
        )
        setup = [
            Packet(Target.PROGRAM, 0, code),
            Packet(Target.BIAS, 0, biases.reshape(-1).view(np.uint32)),
            *self._borders,
            *(Packet(Target.SQUASH_TABLE, 512 * i, t.astype(np.uint32)) for i, t in enumerate(self._squash_tables)),
            *(Packet(Target.EXP_TABLE, 256 * i, t.astype(np.uint32)) for i, t in enumerate(self._exp_tables)),
        ]
        return Program(
            parameters, setup, weights.reshape(-1), plain, traced, 0, len(plain) * isa.WORDS, image, self._emissions
        )

    def _with_fetches(self) -> list[Step]:
        """The program with its FETCH descriptors.

        Weights that lie and are used one after the other are asked for at once. A request goes out before the first
        job of the request before it: early enough to load ahead, and never so many that the sequencer, waiting to hand
        one over, keeps the job from starting that would make room.
        """
        word_bytes = self._p.word_bits // 8
        runs: list[tuple[Step, int, int]] = []  # first job, first word, words
        for step in self._steps:
            if step.weights is None:
                continue
            first, words = step.weights
            if runs and runs[-1][1] + runs[-1][2] == first:
                job, start, known = runs[-1]
                runs[-1] = job, start, known + words
            else:
                runs.append((step, first, words))
        before: dict[int, list[Step]] = {id(job): [] for job, _, _ in runs}
        for number, (job, first, words) in enumerate(runs):
            fetch = Step(job.label, Opcode.FETCH, {"address": first * word_bytes, "words": words})
            before[id(runs[max(0, number - 1)][0])].append(fetch)
        return [s for step in self._steps for s in (*before.get(id(step), ()), step)]


def _splits(layer: QClassCaps, rows: int) -> bool:
    """Whether two input capsules fill the rows exactly and have a pair of lanes for their votes."""
    inputs, dim_in = layer.weights.shape[:2]
    return 2 * dim_in == rows and inputs % 2 == 0


def _classify(capsules: Region, result: Region, number: int) -> dict[str, Any]:
    return {
        "classify": 1,
        "in_signed": int(capsules.coding.kind == "signed"),
        "in_zero_point": capsules.coding.zero_point,
        "count": capsules.shape[0],
        "dim": capsules.shape[1],
        "source": capsules.base + number * capsules.size,
        "destination": result.base + number,
    }


def _requantize(unit: Requantizer, out: Coding) -> dict[str, int]:
    return {
        "multiplier": unit.multiplier,
        "shift": unit.shift,
        "zero_point": unit.zero_point,
        "lo": unit.lo,
        "hi": unit.hi,
        "signed_out": int(out.kind == "signed"),
    }


def _power_of_two(least: int) -> int:
    return 1 << max(1, (least - 1).bit_length())


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
    return Compiler(network, kinds, size).program()
