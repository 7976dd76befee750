"""A compiled network: what the host sends to the accelerator, and how to read what comes back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hw.isa import COUNTERS, Opcode, Target
from hw.parameters import Parameters
from model.qnetwork import Codes, Coding, float_index, float_intervals


@dataclass(frozen=True)
class Region:
    """Where a boundary of docs/numerics.md lies while it can be read, and how its bytes are to be understood."""

    shape: tuple[int, ...]
    coding: Coding
    base: int
    images: int = 1  # one behind the other, `size` bytes each
    votes: bool = False  # in the vote memory: padded words, see VoteMemory
    pitch: int = 0  # bytes from a row (of the first axis) to the next, where there are more than the row has values
    apart: int = 0  # bytes from an image to the next where they are not `size`, as only some rows are there
    external: bool = False  # in external memory: `base` counts from where the spilled activations begin

    @property
    def row_values(self) -> int:
        """Values of a row, one behind the other."""
        return math.prod(self.shape[1:])

    @property
    def row_bytes(self) -> int:
        """Bytes from a row to the next."""
        return self.pitch or self.row_values

    @property
    def size(self) -> int:
        """Bytes of one image."""
        return max(1, math.prod(self.shape[:1]) * self.row_bytes)

    @property
    def image_bytes(self) -> int:
        """Bytes from an image to the next."""
        return self.apart or self.size

    @property
    def total(self) -> int:
        """Bytes of all images."""
        return self.images * self.size


@dataclass(frozen=True)
class Emission:
    """The packets with this tag on the output stream carry this boundary: each of them some stretches (begin, end) of
    its bytes, counted through all images of the batch. One packet carries all, unless the boundary is made in pieces.
    """

    boundary: str
    region: Region
    packets: list[list[tuple[int, int]]]


@dataclass(frozen=True)
class Packet:
    """Words for one target of the input stream."""

    target: Target
    address: int
    words: NDArray[np.uint32]

    def beats(self) -> list[int]:
        """The packet as it goes over the stream."""
        return [(int(self.target) << 28) | len(self.words), self.address, *self.words.tolist()]


@dataclass(frozen=True)
class Step:
    """A descriptor: what it is for ("layer.operation"), its opcode and fields, and the array words of weights (the
    first, and how many) that it takes.
    """

    label: str
    opcode: Opcode
    fields: dict[str, Any]
    weights: tuple[int, int] | None = None


@dataclass(frozen=True)
class Program:
    """A compiled network. `setup` is loaded once and `weights` lie in external memory; then each batch of images is one
    packet and one START at an entry. Counters follow every layer and the class.
    """

    parameters: Parameters
    setup: list[Packet]
    weights: NDArray[np.uint8] = field(repr=False)  # the bytes that FETCH addresses
    plain: list[Step] = field(repr=False)
    traced: list[Step] = field(repr=False)
    entry: int  # images to classes, nothing else emitted
    traced_entry: int  # the same with every boundary emitted
    image: Region
    inputs: dict[str, list[Region]] = field(repr=False)  # of each layer: where they lie when it begins
    spill_bytes: int  # of external memory, for activations
    emissions: dict[int, Emission]  # by tag; all but CLASS_TAG and COUNTERS_TAG belong to the traced entry

    CLASS_TAG = 0
    COUNTERS_TAG = 255

    def image_packet(self, codes: Codes) -> Packet:
        """The packet that puts a batch of images (N, H, W, C) into its place; what is missing is zeros."""
        return self.region_packet(self.image, codes)

    @staticmethod
    def region_packet(region: Region, codes: Codes) -> Packet:
        """The packet that puts a batch of codes (N, ...) into a region of activations; what is missing is zeros."""
        return Packet(Target.ACTIVATIONS, region.base, words32(region_bytes(region, codes)))

    def start_packet(self, traced: bool) -> Packet:
        return Packet(Target.START, self.traced_entry if traced else self.entry, np.zeros(0, np.uint32))

    def packet_tags(self, traced: bool) -> list[int]:
        """The tags of the packets that an inference sends, in order."""
        steps = self.traced if traced else self.plain
        return [s.fields["tag"] for s in steps if s.opcode in (Opcode.EMIT, Opcode.COUNTERS)]

    def results_bytes(self, traced: bool) -> int:
        """Bytes of all packets that an inference sends, headers included."""
        tags = self.packet_tags(traced)
        sizes = [stretches_bytes(packet) for tag in set(tags) - {self.COUNTERS_TAG} for packet in
                 self.emissions[tag].packets] + [8 * len(COUNTERS)] * tags.count(self.COUNTERS_TAG)  # fmt: skip
        return sum(4 + -(-size // 4) * 4 for size in sizes)

    def decode(self, emission: Emission, payloads: Sequence[bytes]) -> Codes:
        """The codes of a boundary (N, ...) of all images of the batch out of the bytes of its packets, in order."""
        region = emission.region
        whole = np.zeros(sum(map(stretches_bytes, emission.packets)), np.uint8)
        for packet, sent in zip(emission.packets, payloads, strict=True):
            payload = np.frombuffer(sent, np.uint8)
            for begin, end in packet:
                whole[begin:end], payload = payload[: end - begin], payload[end - begin :]
        if not region.votes:
            rows = whole.reshape(region.images, -1, region.row_bytes)
            raw = rows[..., : region.row_values].reshape(region.images, *region.shape)
        else:
            *places, inputs, classes, dim = region.shape
            size = self.parameters.square
            words = whole.reshape(
                region.images, *places, -1, classes, -(-dim // size), size, size
            )  # ..., block, j, d block, lane i, d
            votes = np.moveaxis(words, -2, -4).reshape(region.images, *places, -1, classes, words.shape[-3] * size)
            raw = votes[..., :inputs, :, :dim]
        return from_bytes(region.coding, raw)


def to_bytes(coding: Coding, codes: Codes) -> NDArray[np.uint8]:
    """Codes as the hardware stores them: a signed or float code is sign (bit 7) and magnitude, that of a float its
    index.
    """
    wide = codes.astype(np.int64)
    if coding.kind in ("unsigned", "affine"):
        return wide.astype(np.uint8)
    magnitude = float_index(np.abs(wide)) if coding.kind == "float" else np.abs(wide)
    return (magnitude + np.where(wide < 0, 128, 0)).astype(np.uint8)


def from_bytes(coding: Coding, raw: NDArray[np.uint8]) -> Codes:
    """The inverse of `to_bytes`."""
    wide = raw.astype(np.int16)
    if coding.kind in ("unsigned", "affine"):
        return wide
    magnitude = wide & 127
    if coding.kind == "float":
        magnitude = float_intervals()[0][magnitude].astype(np.int16)
    return np.where(wide > 127, -magnitude, magnitude).astype(np.int16)


def region_bytes(region: Region, codes: Codes) -> NDArray[np.uint8]:
    """A batch of codes (N, ...) as its bytes lie in a region of activations; what is missing is zeros."""
    filled = np.zeros((region.images, region.size // region.row_bytes, region.row_bytes), np.uint8)
    rows = to_bytes(region.coding, codes).reshape(len(codes), -1, region.row_values)
    filled[: len(codes), :, : region.row_values] = rows
    return filled.reshape(-1)


def stretches_bytes(stretches: Iterable[tuple[int, int]]) -> int:
    """The bytes in these stretches (begin, end) together."""
    return sum(end - begin for begin, end in stretches)


def vote_words(shape: tuple[int, ...], size: int) -> int:
    """Words of size x size bytes that votes (..., I, J, D) take, for each of the places ...: blocks of capsules i,
    output capsules j, blocks of dims d.
    """
    *places, inputs, classes, dim = shape
    return math.prod(places) * -(-inputs // size) * classes * -(-dim // size)


def words32(raw: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Bytes as 32-bit beats of the stream, the lowest byte first, filled up with zeros."""
    flat = raw.reshape(-1)
    return np.pad(flat, (0, -len(flat) % 4)).view("<u4").astype(np.uint32)
