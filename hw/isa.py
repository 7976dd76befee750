"""The layer program: what each descriptor says, bit by bit. The sequencer decodes it, the compiler writes it.

A descriptor is `WORDS` 32-bit words; its lowest four bits are the opcode. Addresses are byte addresses in the
activation memory unless said otherwise; a stride is what the address grows by when that loop advances.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

from amaranth import Const, Shape, signed
from amaranth.lib import data

ADDRESS = 24
COUNT = 16
OFFSET = 20  # signed: bytes from the beginning of a row of an image
WORD_BITS = 32


class Opcode(enum.IntEnum):
    HALT = 0  # end of the program; the loader may speak again
    MATMUL = 1
    SQUASH = 2  # or, with `classify`, the class of the output capsules
    SOFTMAX = 3
    EMIT = 4  # memory to the output stream
    COUNTERS = 5  # performance counters to the output stream
    FETCH = 6  # ask for weights, and go on: they come while other descriptors run
    ADD = 7  # sums of two tensors' values
    STORE = 8  # activations to external memory; over when they are there
    LOAD = 9  # ask for activations from external memory, and go on: they come while other descriptors run
    WAIT = 10  # until everything that LOADs asked for is in the activation memory


REQUANTIZE = data.StructLayout(
    {"multiplier": 16, "shift": 6, "zero_point": 8, "lo": signed(9), "hi": signed(9), "signed_out": 1, "floats": 1}
)

# Words of the vote memory.
VOTES = data.StructLayout({"group": ADDRESS, "block": ADDRESS, "chunk": ADDRESS, "image": ADDRESS})

# Where the padded image ends: a lane reads the code of zero unless it lies 0 <= x < columns bytes from the beginning of
# its row, and the row 0 <= y < rows bytes from the beginning of the image. The bases are those of the first step; x
# grows with A's strides of window, chunk and col, y with those of segment and row.
BOUNDS = data.StructLayout({"x": signed(OFFSET), "columns": OFFSET, "y": signed(ADDRESS), "rows": ADDRESS})

# One loop nest of sums: for group, block (of columns), segment, window and chunk (of the sum), image, row and col (of
# output pixels). A sum runs over segments x windows x chunks; a chunk is one vector of lanes, the last of a window may
# be shorter. Without `b_votes` the nest takes a word of weights for every chunk and uses it for all images, rows, cols.
# With `packed` there is one segment of one window, the whole kernel: `a_window` is the length of its rows in bytes, and
# `a_segment`, a multiple of the memory's lanes, how far A jumps at the end of each.
MATMUL = data.StructLayout(
    {
        "opcode": 4,
        "kind": 4,  # multiplier within the PE
        "a_signed": 1,
        "b_signed": 1,
        "align": 1,
        "b_votes": 1,  # B comes from the vote memory, not from the weights
        "transposed": 1,  # read a vote word with lanes and columns exchanged
        "to_votes": 1,  # results go to the vote memory
        "split": 1,  # the halves of the rows make sums of their own, for two lanes of a vote word
        "by_type": 1,  # a col is an input capsule, and takes the next lane of a vote word, not a group
        "packed": 1,  # a chunk goes on in the next row of the kernel, see below
        "has_bias": 1,
        "za": 8,
        "zb": 8,
        "groups": COUNT,
        "blocks": COUNT,
        "segments": COUNT,
        "windows": COUNT,
        "chunks": COUNT,
        "images": COUNT,
        "rows": COUNT,
        "cols": COUNT,
        "lanes": 7,  # valid lanes in a chunk, and in the last of a window
        "last_lanes": 7,
        "columns": 7,  # valid columns in a block, and in the last
        "last_columns": 7,
        "a_base": ADDRESS,
        "a_group": ADDRESS,
        "a_segment": ADDRESS,
        "a_window": ADDRESS,
        "a_chunk": ADDRESS,
        "a_image": ADDRESS,
        "a_row": ADDRESS,
        "a_col": ADDRESS,
        "b": data.UnionLayout(
            {"votes": VOTES, "bounds": BOUNDS}
        ),  # with b_votes: B's strides, from word 0; without: A's
        "bias_base": ADDRESS,  # words of the bias memory, one a block
        "lane": 6,  # of a vote word, the first one written
        "o_base": ADDRESS,  # with to_votes: words of the vote memory, one lane of it (split: two) a group or col
        "o_group": ADDRESS,
        "o_block": ADDRESS,
        "o_image": ADDRESS,
        "o_row": ADDRESS,
        "o_col": ADDRESS,
        "requantize": REQUANTIZE,
    }
)

SQUASH = data.StructLayout(
    {
        "opcode": 4,
        "classify": 1,
        "in_signed": 1,
        "in_zero_point": 8,
        "table": 6,
        "dim": 7,
        "count": COUNT,
        "source": ADDRESS,
        "destination": ADDRESS,
        "shift": 4,
        "zero_point": 8,
        "lo": signed(9),
        "hi": signed(9),
        "signed_out": 1,
    }
)

SOFTMAX = data.StructLayout(
    {
        "opcode": 4,
        "first": 1,  # logits start at zero
        "narrow": 1,  # coupling coefficients of 7 bits, 127 for 1, in place of 8
        "table": 6,
        "classes": 7,
        "inputs": COUNT,
        "logits": ADDRESS,
        "agreement": ADDRESS,
        "coupling": ADDRESS,
    }
)

ADD = data.StructLayout(
    {
        "opcode": 4,
        "a_signed": 1,
        "b_signed": 1,
        "za": 8,
        "zb": 8,
        "ma": 16,
        "mb": 16,
        "a": ADDRESS,
        "b": ADDRESS,
        "destination": ADDRESS,
        "count": ADDRESS,  # bytes
        "shift": 5,
        "zero_point": 8,
        "lo": signed(9),
        "hi": signed(9),
        "signed_out": 1,
    }
)

EMIT = data.StructLayout(
    {
        "opcode": 4,
        "votes": 1,
        "tag": 8,
        "base": ADDRESS,
        "count": ADDRESS,
    }  # count in bytes, or in words of the vote memory
)

FETCH = data.StructLayout({"opcode": 4, "address": 32, "words": ADDRESS})  # bytes from the weights' base; array words

# `count` bytes between `base` in the activation memory and `address`, bytes from where the spilled activations begin.
TRANSFER = data.StructLayout({"opcode": 4, "base": ADDRESS, "count": ADDRESS, "address": 32})

LAYOUTS = {
    Opcode.HALT: data.StructLayout({"opcode": 4}),
    Opcode.MATMUL: MATMUL,
    Opcode.SQUASH: SQUASH,
    Opcode.SOFTMAX: SOFTMAX,
    Opcode.EMIT: EMIT,
    Opcode.COUNTERS: EMIT,
    Opcode.FETCH: FETCH,
    Opcode.ADD: ADD,
    Opcode.STORE: TRANSFER,
    Opcode.LOAD: TRANSFER,
    Opcode.WAIT: data.StructLayout({"opcode": 4}),
}
BITS = max(layout.size for layout in LAYOUTS.values())
WORDS = -(-BITS // WORD_BITS)


class Target(enum.IntEnum):
    """What a packet on the input stream is for: beat 0 is {target: bits 31-28, payload beats: 27-0}, beat 1 an
    address.
    """

    START = 0  # no payload; the address is the program's entry
    PROGRAM = 1  # one beat a 32-bit word
    BIAS = 2  # `columns` beats a word
    ACTIVATIONS = 3  # four bytes a beat at a byte address
    SQUASH_TABLE = 4  # one entry a beat
    EXP_TABLE = 5


COUNTERS = (
    "cycles",
    "matmul_cycles",
    "squash_cycles",
    "softmax_cycles",
    "add_cycles",
    "emit_cycles",
    "store_cycles",
    "fetch_cycles",
    "output_stalls",
    "weight_stalls",
    "load_stalls",
    "store_stalls",
    "busy_pe_cycles",
)


def encode(opcode: Opcode, fields: Mapping[str, Any]) -> list[int]:
    """A descriptor as its 32-bit words.

    Raises ValueError when a field does not hold its value: the compiler must not let a number lose bits.
    """
    layout = LAYOUTS[opcode]
    _check(layout, {"opcode": opcode, **fields})
    content: dict[int | str, Any] = {"opcode": int(opcode)}
    content.update(fields)
    value = Const.cast(layout.const(content)).value
    return [(value >> (WORD_BITS * i)) & 0xFFFFFFFF for i in range(WORDS)]


def _check(layout: data.StructLayout | data.UnionLayout, fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        shape = layout.members[name]
        if isinstance(shape, data.StructLayout | data.UnionLayout):
            _check(shape, value)
            continue
        wanted = Shape.cast(shape)
        width = wanted.width
        low, high = (-(1 << (width - 1)), (1 << (width - 1)) - 1) if wanted.signed else (0, (1 << width) - 1)
        if not low <= value <= high:
            raise ValueError(f"descriptor field {name} = {value} does not fit {width} bits")
