"""Layers of which a tensor lies in external memory: in stripes or pieces, which are loaded, computed and stored.

While one stripe is computed, the next one is loaded into the other of two buffers; or, where there is no room for two,
while its output is squashed and stored. It is squashed in place, and the next stripe waits until it is stored: that
takes a cycle a vector, where computing it takes many.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hw.assembler import MAX_PIXELS, Assembler
from hw.convolution import Kernel, Stripe, convolve, output_shape
from hw.layout import NoRoom, Space
from hw.program import Region
from model.qnetwork import QAdd, QConv, QConvLayer, QPrimaryCaps

Stretch = tuple[int, int]  # the first of some bytes, and the first behind them


@dataclass(frozen=True)
class Striping:
    """The stripes of a convolution, and how many bytes its buffers have: `ahead` for the input, one for the output; or
    none where that tensor is on the chip.
    """

    stripes: list[Stripe]
    input_bytes: int
    output_bytes: int
    ahead: int

    @property
    def hidden(self) -> bool:
        """Whether the next stripe's input comes while one is computed."""
        return self.ahead > 1 or len(self.stripes) == 1 or not self.input_bytes

    @property
    def buffers(self) -> list[int]:
        """The bytes of each buffer."""
        inputs = [self.input_bytes] * self.ahead if self.input_bytes else []
        return inputs + ([self.output_bytes] if self.output_bytes else [])


def input_rows(conv: QConv, height: int, stripe: Stripe) -> Stretch:
    """The rows of the input (of `height` rows) that a stripe reads."""
    top = stripe.top * conv.stride - conv.padding
    end = top + (stripe.rows - 1) * conv.stride + conv.weights.shape[1]
    first = min(max(top, 0), height)
    return first, min(max(end, first), height)


def stripings(conv: QConv, here: Region, out: Region) -> Iterator[Striping]:
    """All ways to compute `out` from `here`, one of which is external at least: whole rows, as many of all images as
    the accumulators hold or fewer; then of fewer images at once.
    """
    height, width, _ = output_shape(conv, here.shape)
    for images in sorted({-(-out.images // groups) for groups in range(1, out.images + 1)}, reverse=True):
        most = MAX_PIXELS // (width * images)  # rows
        for count in range(-(-height // most), height + 1) if most else ():
            rows = -(-height // count)
            if -(-height // rows) != count:
                continue  # as with fewer stripes
            found = [
                Stripe(image, min(images, out.images - image), top, min(rows, height - top))
                for image in range(0, out.images, images)
                for top in range(0, height, rows)
            ]
            read = [_length(input_rows(conv, here.shape[0], stripe)) for stripe in found]
            sizes = (
                images * max(1, *read) * here.row_bytes if here.external else 0,
                images * rows * out.row_bytes if out.external else 0,
            )
            for ahead in range(min(2, len(found)), 0, -1):
                yield Striping(found, *sizes, ahead)


def bytes_moved(conv: QConv, striping: Striping, here: Region, kernel_bytes: int) -> int:
    """What a convolution in these stripes takes from external memory: its input, some rows twice, and its kernel for
    each stripe.
    """
    read = sum(stripe.images * _length(input_rows(conv, here.shape[0], stripe)) for stripe in striping.stripes)
    return len(striping.stripes) * kernel_bytes + (read * here.row_bytes if here.external else 0)


def fits(space: Space, sizes: list[int]) -> bool:
    """Whether there is room for places of these sizes, one after the other."""
    trial = space.copy()
    try:
        for size in sizes:
            trial.take(size)
    except NoRoom:
        return False
    return True


def convolve_striped(
    to: Assembler, layer: QConvLayer | QPrimaryCaps, kernel: Kernel, striping: Striping, here: Region, maps: Region,
    made: dict[str, Region],
) -> None:  # fmt: skip
    """A convolution into `maps`, one of which and `here` is external at least, and the squash of what is external then.

    `made` are the boundaries that come of it, by their operations: the maps, and of capsules the same bytes squashed.
    """
    conv, space = layer.conv, to.layout.chip
    places = [space.take(size) for size in striping.buffers]
    ahead = striping.ahead
    inputs = [_window(conv, stripe, here, places[number % ahead]) if here.external else here
              for number, stripe in enumerate(striping.stripes)]  # fmt: skip

    def load(number: int) -> None:
        if here.external and number < len(inputs):
            stripe = striping.stripes[number]
            rows = input_rows(conv, here.shape[0], stripe)
            to.label = f"{layer.name}.spill"
            for outside, inside, count in _transfers(here, stripe, rows):
                to.load(outside, places[number % ahead] + inside, count)

    load(0)
    for number, (stripe, source) in enumerate(zip(striping.stripes, inputs, strict=True)):
        if here.external:
            to.label = f"{layer.name}.spill"
            to.wait()
        if ahead > 1:
            load(number + 1)
        target = maps
        if maps.external:
            apart = stripe.rows * maps.row_bytes
            base = places[-1] - stripe.image * apart - stripe.top * maps.row_bytes
            target = replace(maps, base=base, apart=apart, external=False)
        to.label = f"{layer.name}.mac"
        convolve(to, conv, kernel, stripe, source, target)
        if ahead == 1:
            load(number + 1)
        if maps.external:
            _finish(to, layer, made, places[-1], maps, stripe)
            to.label = f"{layer.name}.spill"
            for outside, inside, count in _transfers(maps, stripe, (stripe.top, stripe.top + stripe.rows)):
                to.store(places[-1] + inside, outside, count)
    for place in places:
        space.give_back(place)


def _finish(
    to: Assembler, layer: QConvLayer | QPrimaryCaps, made: dict[str, Region], result: int, maps: Region, stripe: Stripe
) -> None:
    """Emit a stripe of maps at `result`; squash it and emit that, if there are capsules."""
    stretches = [(begin - maps.base, begin - maps.base + count) for begin, _, count in
                 _transfers(maps, stripe, (stripe.top, stripe.top + stripe.rows))]  # fmt: skip
    to.label = f"{layer.name}.mac"
    to.emit_piece(f"{layer.name}.mac", made["mac"], result, stretches)
    if isinstance(layer, QPrimaryCaps):
        to.label = f"{layer.name}.squash"
        count = stripe.images * stripe.rows * maps.row_bytes // layer.capsule_dim
        capsules = Region((count, layer.capsule_dim), maps.coding, result)
        to.squash(layer.squash, capsules, replace(capsules, coding=layer.squash.out))
        to.emit_piece(f"{layer.name}.squash", made["squash"], result, stretches)


def _window(conv: QConv, stripe: Stripe, here: Region, place: int) -> Region:
    """The input of a stripe as if all of it lay on the chip, where only the rows that are read lie, at `place`."""
    first, end = input_rows(conv, here.shape[0], stripe)
    apart = (end - first) * here.row_bytes
    return replace(here, base=place - stripe.image * apart - first * here.row_bytes, apart=apart, external=False)


def _transfers(region: Region, stripe: Stripe, rows: Stretch) -> Iterator[tuple[int, int, int]]:
    """Where these rows of a stripe's images lie in an external tensor, where in a buffer that holds nothing else, and
    how many bytes: image by image, unless all lie one behind the other.
    """
    begin = region.base + stripe.image * region.size + rows[0] * region.row_bytes
    count = _length(rows) * region.row_bytes
    if count == region.size:
        yield begin, 0, stripe.images * count
    elif count:
        for image in range(stripe.images):
            yield begin + image * region.size, image * count, count


def add_pieces(to: Assembler, layer: QAdd, piece: int, a: Region, b: Region, out: Region) -> None:
    """A sum of which a tensor is external, in pieces of so many bytes: made in place of an operand that was loaded, or
    in a buffer of its own.
    """
    space, total = to.layout.chip, out.total
    begins = range(0, total, piece)
    places = [space.take(size) for size in add_buffers(piece, a, b, out)]
    loaded = [operand for operand in (a, b) if operand.external]
    ahead = min(2, len(begins))  # buffers of an operand

    def load(number: int) -> None:
        for index, operand in enumerate(loaded if number < len(begins) else []):
            begin = begins[number]
            to.load(operand.base + begin, places[ahead * index + number % ahead], min(piece, total - begin))

    to.label = f"{layer.name}.spill"
    load(0)
    for number, begin in enumerate(begins):
        to.label = f"{layer.name}.spill"
        if loaded:
            to.wait()
        load(number + 1)
        count = min(piece, total - begin)
        here = iter(range(number % ahead, len(places), ahead))
        operands = [
            Region((count,), r.coding, places[next(here)] if r.external else r.base + begin) for r in (a, b)
        ]
        first = next((operand for operand, r in zip(operands, (a, b), strict=True) if r.external), None)
        base = out.base + begin if not out.external else first.base if first else places[-1]
        to.label = f"{layer.name}.add"
        to.add(layer.adder, operands[0], operands[1], Region((count,), out.coding, base))
        if out.external:
            to.emit_piece(f"{layer.name}.add", out, base, [(begin, begin + count)])
            to.label = f"{layer.name}.spill"
            to.store(base, out.base + begin, count)
    for place in places:
        space.give_back(place)


def add_buffers(piece: int, a: Region, b: Region, out: Region) -> list[int]:
    """The bytes of each buffer that `add_pieces` needs."""
    loaded = a.external + b.external
    return [piece] * (loaded * min(2, -(-out.total // piece)) or out.external)


def _length(stretch: Stretch) -> int:
    return stretch[1] - stretch[0]
