"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from model.network import Shape


def table(header: Sequence[str], rows: Iterable[Sequence[object]], left: Collection[int] = (0,)) -> str:
    """Aligned columns: those in `left`, being words, to the left, the others, being numbers, to the right."""
    lines = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            c.ljust(w) if k in left else c.rjust(w) for k, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def operations_table(shape: Shape) -> str:
    """Step 1: the operations that a network of this shape executes, with their counts per inference."""
    from model.network import build
    from model.operations import GROUPS, operations, total

    found = operations(build(shape))
    rows: list[list[object]] = [
        [
            operation.layer,
            operation.name,
            GROUPS.get(operation.group, ""),
            operation.iterations,
            *_counts(operation.counts),
        ]
        for operation in found
    ]
    rows.append(["total", "", "", "", *_counts(total(found))])
    header = [
        "layer",
        "operation",
        "group",
        "times",
        "multiplications",
        "additions",
        "divisions",
        "exponentials",
        "roots",
    ]
    return table(header, rows, left=(0, 1, 2))


def _counts(counts: object) -> list[str]:
    names = ("multiplications", "additions", "divisions", "exponentials", "square_roots")
    return [f"{getattr(counts, name):,}" for name in names]
