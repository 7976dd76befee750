"""The size of an accelerator and the multipliers in its PEs: everything that elaboration needs to know."""

from __future__ import annotations

from dataclasses import dataclass

from model.errors import RedcaneError

MAX_ACTIVATION_BYTES = 1 << 24  # what descriptors can address


@dataclass(frozen=True)
class MultiplierKind:
    """A multiplier as a PE instantiates it: Verilog module and the names of its ports (8, 8 and 16 bits).

    The operands and the product of one that is `signed` are two's complement.
    """

    component: str
    module: str
    a: str = "A"
    b: str = "B"
    out: str = "O"
    signed: bool = False


@dataclass(frozen=True)
class Size:
    """What a user chooses of an accelerator; the rest of its `Parameters` follows from the network."""

    rows: int = 4
    columns: int = 4
    batch: int = 1  # images that are computed together and share every fetch of weights
    bus_bits: int = 512  # of the stream of weights, at most an array word
    weight_words: int = 256  # array words that are fetched ahead
    activation_bytes: int | None = None  # of the activation memory; else as many as the network needs

    def __post_init__(self) -> None:
        limit = self.activation_bytes
        if limit is not None and (not 128 <= limit <= MAX_ACTIVATION_BYTES or limit & (limit - 1)):
            raise RedcaneError(f"accelerator: {limit:,} bytes of activations; take a power of two of up to 16 MiB")
        for name, low, high in (("batch", 1, 64), ("weight_words", 2, 65536)):
            if not low <= getattr(self, name) <= high:
                raise RedcaneError(f"accelerator: {name} is {getattr(self, name)}; it should be {low} to {high}")
        if self.bus_bits not in (32, 64, 128, 256, 512, 1024):
            raise RedcaneError(f"accelerator: bus_bits is {self.bus_bits}; AXI has 32, 64, 128, 256, 512 and 1024")


@dataclass(frozen=True)
class Parameters:
    """An R x C array and its memories.

    `rows` are the lanes of a sum (the reduction), `columns` the outputs computed at once; both are powers of two from
    4 to 64. `kinds` are the multipliers that every PE holds; a layer program selects one per operation. `affine` adds
    the exact zero-point corrections of the affine format (docs/numerics.md) to every column. `split` lets the upper and
    the lower half of the rows make sums of their own, for votes of capsules half as long as a column. `batch` images
    share every fetch of weights. With `spill`, activations can be stored in external memory and loaded again.
    """

    kinds: tuple[MultiplierKind, ...]
    rows: int = 4
    columns: int = 4
    affine: bool = False
    split: bool = False
    padding: bool = False
    shared_kernels: bool = False
    adder: bool = False
    spill: bool = False
    row_ends: int = 0  # of a kernel, that packed sums find within a vector (hw.packing); none: no sums are packed
    batch: int = 1
    bus_bits: int = 128  # of the stream of weights; a divisor of an array word
    activation_bytes: int = 8192  # activations, logits, coupling coefficients, capsules
    weight_words: int = 256  # of rows * columns bytes, fetched ahead of their use
    vote_words: int = 1024  # of lanes * columns bytes, lanes = min(rows, columns)
    bias_words: int = 64  # of `columns` 32-bit numbers
    pixels: int = 64  # accumulators a column: output positions that share one fetch of weights
    program_words: int = 1024  # 32-bit words
    squash_tables: int = 4  # of 512 entries
    exp_tables: int = 4  # of 256 entries, in every lane of the softmax unit

    def __post_init__(self) -> None:
        for name in ("rows", "columns"):
            size = getattr(self, name)
            if size not in (4, 8, 16, 32, 64):
                raise RedcaneError(f"accelerator: {name} is {size}; the array takes 4, 8, 16, 32 or 64")
        if not self.kinds:
            raise RedcaneError("accelerator: a PE needs at least one multiplier")
        if self.bus_bits < 32 or self.word_bits % self.bus_bits:
            raise RedcaneError(
                f"accelerator: a bus of {self.bus_bits} bits does not divide an array word of {self.word_bits} bits"
            )

    @property
    def word_bits(self) -> int:
        """An array word: a weight for every PE."""
        return 8 * self.rows * self.columns

    @property
    def word_beats(self) -> int:
        """Beats of the weight stream that make an array word."""
        return self.word_bits // self.bus_bits

    @property
    def lanes(self) -> int:
        """Bytes that the activation memory moves at once."""
        return max(self.rows, self.columns)

    @property
    def square(self) -> int:
        """Edge of the sub-array that routing uses: its operand word is read straight and transposed."""
        return min(self.rows, self.columns)

    @property
    def memories(self) -> tuple[int, int, int]:
        """Bytes on chip of activations, of votes, and of weights on their way."""
        return self.activation_bytes, self.vote_words * self.square**2, self.weight_words * self.word_bits // 8
