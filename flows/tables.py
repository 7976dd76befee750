"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from hw.mapping import NetworkMapping
    from hw.program import Program
    from model.network import Shape
    from sim.verify import LayerResult


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


def layers_table(results: Mapping[str, LayerResult], pes: int) -> str:
    """What layers alone came to, cycles for one image."""
    rows = [
        [
            layer,
            result.images,
            f"{result.values:,}",
            result.mismatches,
            f"{result.cycles / result.images:,.0f}",
            f"{result.predicted / result.images:,.0f}",
            f"{result.busy_pe_cycles / (result.cycles * pes):.1%}",
        ]
        for layer, result in results.items()
    ]
    return table(["layer", "images", "values", "differ", "cycles", "predicted", "use"], rows)


_BYTES = {"weight_bytes": "weight bytes", "spill_bytes": "activation bytes"}  # over the bus


def mapping_table(program: Program) -> str:
    """How the operations of a compiled network lie on the array, with the cycle model's figures for one image."""
    from hw.cycles import predict
    from hw.isa import Opcode

    p = program.parameters
    jobs = {step.label: step.fields for step in program.plain if step.opcode == Opcode.MATMUL}
    costs = predict(program)
    pes = p.rows * p.columns

    moved = ("weight_bytes", "spill_bytes") if p.spill else ("weight_bytes",)  # over the bus

    def figures(cycles: int, stalls: int, products: int, *bytes_moved: int) -> list[str]:
        use = f"{products / (cycles * pes):.1%}" if products else ""
        bytes_an_image = [f"{count / p.batch:,.0f}" for count in bytes_moved]
        return [f"{cycles / p.batch:,.0f}", f"{stalls / p.batch:,.0f}", use, *bytes_an_image]

    names = "cycles", "stalls", "products", *moved
    rows: list[list[object]] = []
    for label, cost in costs.items():
        shape = [""] * 5
        if label in jobs:
            job = jobs[label]
            lanes = job["lanes"] if job["chunks"] * job["segments"] > 1 else job["last_lanes"]
            shape = [
                f"{cost.jobs:,}", f"{job['groups'] * job['blocks']:,}", f"{job['segments'] * job['chunks']:,}",
                f"{job['images'] * job['rows'] * job['cols']:,}", f"{lanes} x {job['columns']}",
            ]  # fmt: skip
            shape[4] += " split" * job.get("split", 0) + " packed" * job.get("packed", 0)
        rows.append([label, *shape, *figures(*(getattr(cost, name) for name in names))])
    sums = [sum(getattr(cost, name) for cost in costs.values()) for name in names]
    rows.append(["in all", *[""] * 5, *figures(*sums)])
    shape = ["jobs", "blocks", "words a sum", "sums a word", "lanes"]
    head = ["operation", *shape, "cycles", "stalls", "use", *(_BYTES[name] for name in moved)]
    size = f"{p.rows} x {p.columns} PEs, batch {p.batch}, bus of {p.bus_bits} bits; cycles, stalls and bytes an image"
    activations, votes, ring = (f"{count:,}" for count in p.memories)
    memories = f"memories: {activations} bytes of activations, {votes} of votes, {ring} of weights on their way"
    if p.spill:
        memories += f"; {program.spill_bytes:,} of activations outside"
    return f"{size}\n{memories}\n\n{table(head, rows)}"


def candidates_table(mapping: NetworkMapping, batch: int) -> str:
    """The ways in which each layer could lie on the array, what was chosen first; figures for one image."""
    rows = []
    for layer, chosen in mapping.chosen.items():
        for candidate in (chosen, *mapping.lost[layer]):
            way, cost = candidate.way, candidate.cost
            of_batch = cost.cycles, cost.stalls, cost.weight_bytes, candidate.activation_bytes
            rows.append([
                layer if candidate is chosen else "", way["sums"], f"{candidate.stripes:,}", way.get("images", ""),
                way.get("rows", ""), candidate.pitch or "", *(f"{figure / batch:,.0f}" for figure in of_batch),
            ])  # fmt: skip
    head = ["layer", "sums", "stripes", "images", "rows", "pitch", "cycles", "stalls", "weight bytes", "activations"]
    told = "the chosen way of every layer, and below it those that lost; cycles, stalls and bytes an image"
    return f"{told}\n\n{table(head, rows, left=(0, 1))}"
