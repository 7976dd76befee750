"""The size of an accelerator and the multipliers in its PEs: everything that elaboration needs to know."""

from __future__ import annotations

from dataclasses import dataclass

from model.errors import RedcaneError


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
class Parameters:
    """An R x C array and its memories.

    `rows` are the lanes of a sum (the reduction), `columns` the outputs computed at once; both are powers of two from
    4 to 64. `kinds` are the multipliers that every PE holds; a layer program selects one per operation. `affine` adds
    the exact zero-point corrections of the affine format (docs/numerics.md) to every column.
    """

    kinds: tuple[MultiplierKind, ...]
    rows: int = 4
    columns: int = 4
    affine: bool = False
    activation_bytes: int = 8192  # activations, logits, coupling coefficients, capsules
    weight_words: int = 4096  # of rows * columns bytes
    vote_words: int = 1024  # of lanes * columns bytes, lanes = min(rows, columns)
    bias_words: int = 64  # of `columns` 32-bit numbers
    pixels: int = 64  # accumulators a column: output positions that share one fetch of weights
    program_words: int = 1024  # 32-bit words
    tables: int = 4  # squash tables (512 entries), and as many softmax tables (256 entries)

    def __post_init__(self) -> None:
        for name in ("rows", "columns"):
            size = getattr(self, name)
            if size not in (4, 8, 16, 32, 64):
                raise RedcaneError(f"accelerator: {name} is {size}; the array takes 4, 8, 16, 32 or 64")
        if not self.kinds:
            raise RedcaneError("accelerator: a PE needs at least one multiplier")

    @property
    def lanes(self) -> int:
        """Bytes that the activation memory moves at once."""
        return max(self.rows, self.columns)

    @property
    def square(self) -> int:
        """Edge of the sub-array that routing uses: its operand word is read straight and transposed."""
        return min(self.rows, self.columns)
