"""Descriptors one after the other: what all layers share in their way from a layer to steps of a program."""

from __future__ import annotations

from typing import Any

from hw.isa import COUNT, Opcode
from hw.layout import Layout
from hw.loops import LEVELS
from hw.parameters import Parameters
from hw.program import Emission, Program, Region, Step, stretches_bytes, vote_words
from model.errors import RedcaneError
from model.qnetwork import Adder, Coding, Product, Requantizer, Squash

MAX_PIXELS = 1024  # accumulators a column
MAX_CAPSULES = (1 << COUNT) - 1  # that one descriptor squashes


class Assembler:
    """The steps of a program as they are written, and what is emitted. `label` ("layer.operation") says what the next
    steps are for.
    """

    def __init__(self, parameters: Parameters, layout: Layout) -> None:
        self.p, self.layout = parameters, layout
        self.label = ""
        self.steps: list[Step] = []
        self.emissions: dict[int, Emission] = {}
        self.pixels = 2  # accumulators a column that the jobs so far need
        self._kind = {kind.component: index for index, kind in enumerate(parameters.kinds)}

    def step(self, opcode: Opcode, weights: tuple[int, int] | None = None, **fields: Any) -> None:
        """A descriptor, and the words of weights (the first, and how many) that it takes."""
        self.steps.append(Step(self.label, opcode, fields, weights))

    def matmul(self, product: Product, weights: tuple[int, int] | None, **fields: Any) -> None:
        """A job of the array. Loops that are not told run once.

        Raises RedcaneError when its sums are more than a column has accumulators.
        """
        job = {**dict.fromkeys((f"{level}s" for level in LEVELS), 1), **fields}
        pixels = job["images"] * job["rows"] * job["cols"]
        if pixels > MAX_PIXELS:
            raise RedcaneError(
                f"{self.label}: {pixels} sums of {self.p.batch} images do not fit the {MAX_PIXELS} accumulators of a "
                "column; take a smaller batch"
            )
        self.pixels = max(self.pixels, pixels)
        affine = product.format == "affine"
        self.step(
            Opcode.MATMUL,
            weights,
            **job,
            kind=self._kind[product.component],
            a_signed=int(product.a.kind == "signed"),
            b_signed=int(product.b.kind == "signed"),
            align=product.align,
            za=product.a.zero_point if affine else 0,
            zb=product.b.zero_point if affine else 0,
            requantize=_requantize(product.requantizer, product.out),
        )

    def squash(self, unit: Squash, source: Region, destination: Region) -> None:
        """The squash of all capsules of a region (..., D) into another one, or in place."""
        dim = source.shape[-1]
        total = source.total // dim
        for first in range(0, total, MAX_CAPSULES):
            self.step(
                Opcode.SQUASH,
                table=self.layout.squash_table(unit.table),
                count=min(MAX_CAPSULES, total - first),
                dim=dim,
                source=source.base + first * dim,
                destination=destination.base + first * dim,
                shift=unit.shift,
                zero_point=unit.out.zero_point,
                lo=unit.out.lo,
                hi=unit.out.hi,
                signed_out=int(unit.out.kind == "signed"),
            )

    def add(self, unit: Adder, a: Region, b: Region, destination: Region) -> None:
        """The sums of two tensors."""
        self.step(
            Opcode.ADD,
            a_signed=int(unit.a.kind == "signed"),
            b_signed=int(unit.b.kind == "signed"),
            za=unit.a.zero_point,
            zb=unit.b.zero_point,
            ma=unit.multipliers[0],
            mb=unit.multipliers[1],
            a=a.base,
            b=b.base,
            destination=destination.base,
            count=destination.total,
            shift=unit.shift,
            zero_point=unit.out.zero_point,
            lo=unit.out.lo,
            hi=unit.out.hi,
            signed_out=int(unit.out.kind == "signed"),
        )

    def classify(self, capsules: Region) -> None:
        """The classes of output capsules, and their packet."""
        self.label = "class"
        result = self.layout.place((), Coding("unsigned", 1.0))
        for number in range(self.p.batch):
            self.step(
                Opcode.SQUASH,
                classify=1,
                in_signed=int(capsules.coding.kind == "signed"),
                in_zero_point=capsules.coding.zero_point,
                count=capsules.shape[0],
                dim=capsules.shape[1],
                source=capsules.base + number * capsules.size,
                destination=result.base + number,
            )
        self.emissions[Program.CLASS_TAG] = Emission("class", result, [[(0, result.total)]])
        self.step(Opcode.EMIT, tag=Program.CLASS_TAG, base=result.base, count=result.total)

    def emit(self, boundary: str, region: Region) -> None:
        """The packet of a boundary, in the traced program only."""
        count = region.images * vote_words(region.shape, self.p.square) if region.votes else region.total
        total = count * self.p.square**2 if region.votes else count
        self._packet(boundary, region, region.base, count, [(0, total)])

    def emit_piece(self, boundary: str, region: Region, base: int, stretches: list[tuple[int, int]]) -> None:
        """The packet of a piece of a boundary, which lies at `base`: these stretches (begin, end) of its bytes."""
        self._packet(boundary, region, base, stretches_bytes(stretches), stretches)

    def _packet(
        self, boundary: str, region: Region, base: int, count: int, stretches: list[tuple[int, int]]
    ) -> None:
        known = [tag for tag, emission in self.emissions.items() if emission.boundary == boundary]
        tag = known[0] if known else len(self.emissions) + 1
        if tag >= Program.COUNTERS_TAG:
            raise RedcaneError("the network has more boundaries than the 254 that a trace can tell apart")
        self.emissions.setdefault(tag, Emission(boundary, region, [])).packets.append(stretches)
        self.step(Opcode.EMIT, votes=int(region.votes), tag=tag, base=base, count=count)

    def load(self, outside: int, base: int, count: int) -> None:
        """Ask for bytes of external memory, `outside` from where the spilled activations begin; `wait` for them."""
        self.step(Opcode.LOAD, address=outside, base=base, count=count)

    def wait(self) -> None:
        """Until all that was asked for has come."""
        self.step(Opcode.WAIT)

    def store(self, base: int, outside: int, count: int) -> None:
        """Put bytes into external memory."""
        self.step(Opcode.STORE, address=outside, base=base, count=count)

    def counters(self) -> None:
        """The counters as they stand."""
        self.step(Opcode.COUNTERS, tag=Program.COUNTERS_TAG)

    def halt(self) -> None:
        """The end of the program."""
        self.step(Opcode.HALT)


def _requantize(unit: Requantizer, out: Coding) -> dict[str, int]:
    limits = {} if unit.floats else {"zero_point": unit.zero_point, "lo": unit.lo, "hi": unit.hi}
    coded = {"signed_out": int(out.kind == "signed"), "floats": int(unit.floats)}
    return {"multiplier": unit.multiplier, "shift": unit.shift, **limits, **coded}
