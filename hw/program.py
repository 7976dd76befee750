"""A compiled network: what the host sends to the accelerator, and how to read what comes back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hw.isa import Target
from hw.parameters import Parameters
from model.qnetwork import Codes, Coding


@dataclass(frozen=True)
class Region:
    """Where a boundary of docs/numerics.md lies while it can be read, and how its bytes are to be understood."""

    shape: tuple[int, ...]
    coding: Coding
    base: int
    votes: bool = False  # in the vote memory: padded words, see VoteMemory
    border: int = 0  # pixels of padding around (H, W, C), which hold the code of zero from the start

    @property
    def stored(self) -> tuple[int, ...]:
        """The shape with its border, as it lies in memory."""
        return (*(size + 2 * self.border for size in self.shape[:2]), *self.shape[2:]) if self.border else self.shape

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return max(1, int(np.prod(self.stored)))

    @property
    def inner(self) -> int:
        """Address of the first element inside the border."""
        return self.base + self.border * (int(np.prod(self.stored[1:])) + int(np.prod(self.stored[2:])))

    def without_border(self, stored: NDArray) -> NDArray:
        edge = slice(self.border, -self.border or None)
        return stored[edge, edge] if self.border else stored


@dataclass(frozen=True)
class Emission:
    """The packet with this tag on the output stream carries this boundary."""

    boundary: str
    region: Region


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
class Program:
    """A compiled network. `setup` is loaded once; then each image is one packet and one START at an entry."""

    parameters: Parameters
    setup: list[Packet]
    entry: int  # image to class, nothing else emitted
    traced_entry: int  # the same with every boundary emitted
    image: Region
    emissions: dict[int, Emission]  # by tag; all but CLASS_TAG and COUNTERS_TAG belong to the traced entry

    CLASS_TAG = 0
    COUNTERS_TAG = 255

    def image_packet(self, codes: Codes) -> Packet:
        """The packet that puts one image (H, W, C) into its place."""
        edge = (self.image.border, self.image.border)
        padded = np.pad(codes, (edge, edge, (0, 0)), constant_values=self.image.coding.zero_point)
        return Packet(Target.ACTIVATIONS, self.image.base, words32(to_bytes(self.image.coding, padded)))

    def start_packet(self, traced: bool) -> Packet:
        return Packet(Target.START, self.traced_entry if traced else self.entry, np.zeros(0, np.uint32))

    def payload_bytes(self, emission: Emission) -> int:
        """How many bytes the packet of a boundary carries."""
        region, size = emission.region, self.parameters.square
        return vote_words(region.shape, size) * size * size if region.votes else region.size

    def decode(self, emission: Emission, payload: bytes) -> Codes:
        """The codes of a boundary out of the bytes of its packet."""
        region = emission.region
        if not region.votes:
            stored = np.frombuffer(payload[: region.size], np.uint8).reshape(region.stored)
            raw = region.without_border(stored)
        else:
            inputs, classes, dim = region.shape
            size = self.parameters.square
            words = np.frombuffer(payload, np.uint8).reshape(
                -1, classes, -(-dim // size), size, size
            )  # block, j, d block, lane i, d
            raw = words.transpose(0, 3, 1, 2, 4).reshape(words.shape[0] * size, classes, -1)[:inputs, :, :dim]
        return from_bytes(region.coding, raw)


def to_bytes(coding: Coding, codes: Codes) -> NDArray[np.uint8]:
    """Codes as the hardware stores them: a signed code is sign (bit 7) and magnitude."""
    wide = codes.astype(np.int64)
    return np.where(wide < 0, 128 - wide, wide).astype(np.uint8) if coding.kind == "signed" else wide.astype(np.uint8)


def from_bytes(coding: Coding, raw: NDArray[np.uint8]) -> Codes:
    """The inverse of `to_bytes`."""
    wide = raw.astype(np.int16)
    return np.where(wide > 127, 128 - wide, wide).astype(np.int16) if coding.kind == "signed" else wide


def vote_words(shape: tuple[int, ...], size: int) -> int:
    """Words of size x size bytes that votes (I, J, D) take: blocks of capsules i, output capsules j, blocks of dims
    d.
    """
    inputs, classes, dim = shape
    return -(-inputs // size) * classes * -(-dim // size)


def words32(raw: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Bytes as 32-bit beats of the stream, the lowest byte first, filled up with zeros."""
    flat = raw.reshape(-1)
    return np.pad(flat, (0, -len(flat) % 4)).view("<u4").astype(np.uint32)
