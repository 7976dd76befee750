"""Which tensors lie on the chip: all of them, unless the activation memory has a limit.

Layer by layer, in the order of execution: what does not fit goes out, of the tensors that this layer does not read
those that are read farthest in the future (Belady, 1966), or else its own output, or its input; of these ways the one
that moves the fewest bytes over the bus. What is out comes in stripe by stripe (`hw.striping`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hw.assembler import Assembler
from hw.layout import NoRoom, Space
from hw.program import Region
from hw.striping import Striping, add_buffers, bytes_moved, fits, stripings
from model.qnetwork import QConv, QNetwork

LEAST_PIECE = 64  # vectors of a sum at once, where there is room for so many


class Tensors:
    """Where every boundary that will still be read lies, while the layers are compiled one after the other."""

    def __init__(self, to: Assembler, network: QNetwork) -> None:
        self._to = to
        self._reads = [(layer.output, sources) for layer, sources in network.sources()]
        self._now = -1
        self._regions: dict[str, Region] = {}
        self.inputs: dict[str, list[Region]] = {}  # of each layer

    def put(self, boundary: str, region: Region) -> None:
        """A boundary that has been made."""
        self._regions[boundary] = region

    def begin(self, layer: str) -> list[Region]:
        """The tensors that the next layer, of this name, reads."""
        self._now += 1
        self._layer = layer
        self._sources = self._reads[self._now][1]
        self.inputs[layer] = self.sources()
        return self.sources()

    def sources(self) -> list[Region]:
        """Where the tensors that the layer reads lie by now."""
        return [self._regions[source] for source in self._sources]

    def end(self) -> None:
        """The layer is done: give back what nothing will read any more."""
        wanted = {source for _, sources in self._reads[self._now + 1 :] for source in sources}
        for boundary in self._regions.keys() - wanted - {self._reads[self._now][0]}:
            self._to.layout.release(self._regions.pop(boundary))

    def ways(self, own: bool) -> Iterator[tuple[list[str], Space, list[Region]]]:
        """The tensors on the chip that could go out for the layer, the first, the first two ...; with `own`, in the end
        those that it reads, too. With what would be left of the activation memory, and where its inputs would lie.
        """
        inside = [boundary for boundary, region in self._regions.items() if not region.external]
        others = [boundary for boundary in inside if boundary not in self._sources]
        others.sort(key=lambda boundary: (-self._next_reader(boundary), boundary))
        gone: list[str] = []
        space = self._to.layout.chip.copy()
        yield [], space, self.sources()
        for boundary in others + ([b for b in dict.fromkeys(self._sources) if b in inside] if own else []):
            gone.append(boundary)
            space = space.copy()
            space.give_back(self._regions[boundary].base)
            yield list(gone), space, [
                replace(region, external=True) if source in gone else region
                for source, region in zip(self._sources, self.sources(), strict=True)
            ]

    def last(self) -> Region:
        """The output of the last layer."""
        return self._regions[self._reads[-1][0]]

    def evict(self, boundaries: list[str]) -> None:
        """Store these in external memory."""
        to = self._to
        to.label = f"{self._layer}.spill"
        for boundary in boundaries:
            inside = self._regions[boundary]
            outside = self._regions[boundary] = to.layout.put(inside, external=True)
            to.store(inside.base, outside.base, inside.total)
            to.layout.release(inside)

    def bytes_of(self, boundaries: list[str]) -> int:
        return sum(self._regions[boundary].total for boundary in boundaries)

    def fetched(self) -> tuple[list[Region], list[Region]]:
        """The tensors that the layer reads, all on the chip, and those copies that are to be released after it."""
        to, copies = self._to, []
        sources = self.sources()
        to.label = f"{self._layer}.spill"
        for index, region in enumerate(sources):
            if region.external:
                sources[index] = to.layout.put(region, external=False)
                to.load(region.base, sources[index].base, region.total)
                copies.append(sources[index])
        if copies:
            to.wait()
        return sources, copies

    def _next_reader(self, boundary: str) -> int:
        return next(n for n, (_, sources) in enumerate(self._reads) if n > self._now and boundary in sources)


@dataclass(frozen=True)
class Way:
    """How a layer is computed: what goes out for it, whether its output does, and the stripes of a convolution (none
    where all is on the chip) or the bytes of a piece of a sum (0 likewise).
    """

    evicted: list[str]
    external: bool
    striping: Striping | None = None
    piece: int = 0


def convolution_way(tensors: Tensors, conv: QConv, out: Region, kernel_bytes: int, jobs: int) -> Way:
    """The way of a convolution that moves the fewest bytes, of those in which they come while it computes, if there is
    one; of equal ones that which evicts the fewest tensors. With all on the chip, it takes so many `jobs`.

    Raises NoRoom.
    """
    best: tuple[tuple[bool, int], Way] | None = None
    for external in (False, True):
        there, sizes = replace(out, external=external), [] if external else [out.total]
        for evicted, space, [here] in tensors.ways(own=True):
            if not fits(space, sizes):
                continue
            moved = 2 * (tensors.bytes_of(evicted) + external * out.total)  # now, and when they are read again
            if here.external or external:
                ways = [
                    (
                        (not striping.hidden, moved + bytes_moved(conv, striping, here, kernel_bytes)),
                        Way(evicted, external, striping),
                    )
                    for striping in stripings(conv, here, there)
                    if fits(space, sizes + striping.buffers)
                ]
            else:
                if not evicted:
                    return Way([], external=False)
                ways = [((False, moved + jobs * kernel_bytes), Way(evicted, external))]
            for way in ways:
                if best is None or way[0] < best[0]:
                    best = way
    if best is None:
        raise NoRoom
    return best[1]


def sum_way(tensors: Tensors, out: Region, lanes: int) -> Way:
    """The way of a sum of two tensors that moves the fewest bytes, of those with pieces of some length; of equal ones
    that with the longest. Raises NoRoom.
    """
    best: tuple[tuple[bool, int, int], Way] | None = None
    for external in (False, True):
        there, sizes = replace(out, external=external), [] if external else [out.total]
        for evicted, space, [a, b] in tensors.ways(own=True):
            piece = -(-out.total // lanes) * lanes
            whole = not (external or a.external or b.external)
            while not fits(space, sizes + ([] if whole else add_buffers(piece, a, b, there))):
                if whole or piece == lanes:
                    break
                piece = -(-piece // (2 * lanes)) * lanes
            else:
                moved = sum(operand.total for operand in (a, b) if operand.external)
                moved += 2 * (tensors.bytes_of(evicted) + external * out.total)
                cost = piece < min(out.total, LEAST_PIECE * lanes), moved, -piece
                if best is None or cost < best[0]:
                    best = cost, Way(evicted, external, piece=0 if whole else piece)
    if best is None:
        raise NoRoom
    return best[1]


def routing_way(tensors: Tensors, sizes: list[int]) -> Way:
    """The way of a layer that has all of its tensors on the chip, and places of these sizes besides. Raises NoRoom."""
    for evicted, space, sources in tensors.ways(own=False):
        if fits(space, [source.total for source in sources if source.external] + sizes):
            return Way(evicted, external=False)
    raise NoRoom
