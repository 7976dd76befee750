"""The mapper: how the layers of a network lie on the array, chosen by the cycle model.

For a convolution there are two ways to lay its sums on the rows of the array (by the rows of its kernel, or packed, see
`hw.packing`), and several to divide the output pixels of a batch into stripes that the accumulators hold. Packed sums
want the rows of their input a certain pitch apart, so the readers of a tensor are weighed together. For class capsules
there are words of weights for one input capsule, or for two. Each candidate is written as a piece of a program and
costs what `hw.cycles` says of that; the best one has the fewest cycles, then the fewest bytes of weights over the bus,
then the fewest bytes of activations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hw.assembler import MAX_PIXELS, Assembler
from hw.convolution import Kernel, Mapping, convolve, output_shape, segments, share, stripes
from hw.cycles import Cost, predict_steps
from hw.layout import Layout
from hw.linker import with_fetches
from hw.packing import RUN, row_ends
from hw.parameters import Parameters
from hw.program import Region
from hw.routing import make_votes, make_votes_3d, splits, vote_kernel_words, vote_weight_words
from model.errors import RedcaneError
from model.qnetwork import Layer, QAdd, QClassCaps, QConv, QConvCaps, QConvCaps3D, QConvLayer, QNetwork, QPrimaryCaps

FEW = 3  # divisions of an output that are weighed: more stripes are more jobs, and take the weights more often

Rank = Callable[[Any], tuple[int, ...]]
Choose = Callable[[Sequence[Any], Rank], Any]


def best(options: Sequence[Any], rank: Rank) -> Any:
    """The option of the lowest rank, the first of these."""
    return min(options, key=rank)


@dataclass(frozen=True)
class Candidate:
    """A way to lay a layer on the array, and what the layer's jobs then cost for one batch."""

    sums: str  # how they lie on the rows of the array, in words
    cost: Cost
    activation_bytes: int  # of inputs, and of outputs that are no votes
    mapping: Mapping | None = None  # of a convolution
    split: bool = False  # of class capsules: a word of weights is for two input capsules
    pitch: int = 0  # of a convolution: bytes from a row of its input to the next
    row_ends: int = 0  # of a convolution: what the array has to follow within a vector, see hw.packing
    stripes: int = 1

    @property
    def way(self) -> dict[str, Any]:
        """What was chosen, in words and numbers."""
        stripes = {"images": self.mapping.images, "rows": self.mapping.rows} if self.mapping else {}
        return {"sums": self.sums, **stripes}

    @property
    def rank(self) -> tuple[int, int, int]:
        return self.cost.cycles, self.cost.weight_bytes, self.activation_bytes


@dataclass
class NetworkMapping:
    """How a network lies on an array."""

    chosen: dict[str, Candidate] = field(default_factory=dict)  # by layer
    lost: dict[str, list[Candidate]] = field(default_factory=dict)  # by layer, the best first
    pitches: dict[str, int] = field(default_factory=dict)  # bytes from row to row, of boundaries with gaps between rows

    @property
    def row_ends(self) -> int:
        """Ends of kernels' rows that the array has to follow within a vector."""
        return max((candidate.row_ends for candidate in self.chosen.values()), default=0)

    @property
    def split(self) -> bool:
        """Whether the halves of the array's rows make sums of their own."""
        return any(candidate.split for candidate in self.chosen.values())

    def convolution(self, layer: str) -> Mapping:
        """How a layer's convolution lies."""
        mapping = self.chosen[layer].mapping
        assert mapping is not None, f"{layer} has no convolution"
        return mapping

    def decide(self, layer: str, chosen: Candidate, every: Sequence[Candidate]) -> None:
        """Choose for a layer; of what lost, the cheapest of every way is kept."""
        self.chosen[layer] = chosen
        others: dict[Any, Candidate] = {}
        for candidate in sorted(every, key=lambda candidate: candidate.rank):
            others.setdefault((candidate.mapping, candidate.split), candidate)
        others.pop((chosen.mapping, chosen.split))
        self.lost[layer] = list(others.values())


def map_network(
    network: QNetwork, p: Parameters, choose: Choose = best, accumulators: int = MAX_PIXELS, gaps: bool = True
) -> NetworkMapping:
    """The best way for every layer that has several, all tensors without `gaps` between their rows if there is no room
    for them; `choose` and fewer `accumulators` are for tests.

    Raises RedcaneError when the accumulators do not hold a row of a convolution's output.
    """
    result, shapes = NetworkMapping(), shapes_of(network)
    for boundary, shape in shapes.items():
        readers = [layer for layer, sources in network.sources() if boundary in sources]
        convolving = [layer for layer in readers if isinstance(layer, QConvLayer | QPrimaryCaps | QConvCaps)]
        if not convolving:
            continue
        pitches = {0}
        if gaps and len(convolving) == len(readers) and _may_have_gaps(network, boundary):
            pitches |= {_pitch(layer.conv, shape, p.lanes) for layer in convolving}
        options = [
            (pitch, {layer.name: _candidates(layer, p, shape, pitch, accumulators) for layer in convolving})
            for pitch in sorted(pitches)
        ]
        pitch, found = choose(options, _rank_of_all)
        if pitch:
            result.pitches[boundary] = pitch
        for name, here in found.items():
            every = [candidate for _, elsewhere in options for candidate in elsewhere[name]]
            result.decide(name, choose(here, lambda candidate: candidate.rank), every)
    for layer, sources in network.sources():
        if isinstance(layer, QClassCaps):
            every = _class_candidates(layer, p, [shapes[source] for source in sources])
        elif isinstance(layer, QConvCaps3D):
            every = _candidates_3d(layer, p, shapes[sources[0]], accumulators)
        else:
            continue
        result.decide(layer.name, choose(every, lambda candidate: candidate.rank), every)
    result.chosen = {layer.name: result.chosen[layer.name] for layer in network.layers if layer.name in result.chosen}
    return result


def _rank_of_all(option: tuple[int, dict[str, list[Candidate]]]) -> tuple[int, ...]:
    """Of a pitch and the candidates with it: what all readers cost together."""
    pitch, readers = option
    ranks = [min(candidate.rank for candidate in found) for found in readers.values()]
    return *(sum(column) for column in zip(*ranks, strict=True)), pitch


def shapes_of(network: QNetwork) -> dict[str, tuple[int, ...]]:
    """The shapes of the input and of the layers' outputs, by their boundaries."""
    shapes: dict[str, tuple[int, ...]] = {"input": network.image}
    for layer, sources in network.sources():
        shapes[layer.output] = _shape(layer, shapes[sources[0]])
    return shapes


def _shape(layer: Layer, source: tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(layer, QAdd):
        return source
    if isinstance(layer, QClassCaps):
        return layer.weights.shape[2:]
    maps = output_shape(layer.conv, source)
    if isinstance(layer, QConvLayer):
        return maps
    capsules = maps[2] // layer.capsule_dim
    if isinstance(layer, QConvCaps):
        return *maps[:2], capsules, layer.capsule_dim
    places = maps[0] * maps[1]
    if isinstance(layer, QConvCaps3D):
        return places, capsules, layer.capsule_dim
    return places * capsules, layer.capsule_dim


def _may_have_gaps(network: QNetwork, boundary: str) -> bool:
    """Whether rows of this tensor may lie apart: what is squashed has to lie without gaps."""
    return boundary == "input" or any(
        isinstance(layer, QConvLayer) and layer.output == boundary for layer in network.layers
    )


def _pitch(conv: QConv, shape: tuple[int, ...], lanes: int) -> int:
    """The least pitch of input rows with which the convolution's sums can be packed; 0 where they need no gaps."""
    _, _, kw, cin = conv.weights.shape
    row = math.prod(shape[1:])
    gap = (kw * cin - row) % lanes
    return row + gap if gap else 0


def _candidates(
    layer: QConvLayer | QPrimaryCaps | QConvCaps, p: Parameters, shape: tuple[int, ...], pitch: int, accumulators: int
) -> list[Candidate]:
    """The ways of a convolution of maps of this shape and pitch."""
    conv = layer.conv
    height, width, _ = output_shape(conv, shape)
    here = Region(shape, conv.mac.a, 0, p.batch, pitch=pitch)
    few = _divisions(f"{layer.name}.mac", p.batch, height, width, accumulators)
    ways = [Mapping(packed, *division) for packed in _packings(conv, p, here) for division in few]
    return [_convolution_cost(conv, p, here, way) for way in ways]


def _divisions(label: str, batch: int, height: int, width: int, accumulators: int) -> list[tuple[int, int]]:
    """The most images and rows of a stripe, for divisions of an output that the accumulators hold, in few stripes."""
    if width > accumulators:
        raise RedcaneError(
            f"{label}: a row of {width} output pixels does not fit the {accumulators} accumulators of a column; "
            "take smaller images"
        )
    found: dict[tuple[int, int], int] = {}  # how many stripes
    for most in range(batch, 0, -1):
        if rows := min(height, accumulators // (most * width)):
            images, rows = share(batch, most), share(height, rows)
            found.setdefault((images, rows), -(-batch // images) * -(-height // rows))
    return sorted(found, key=found.__getitem__)[:FEW]


def _packings(conv: QConv, p: Parameters, here: Region) -> list[bool]:
    """By the rows of the kernel, and packed where that saves words and the pitch is right."""
    _, kh, kw, cin = conv.weights.shape
    run = kw * cin
    saves = -(-kh * run // p.rows) < kh * -(-run // p.rows)
    return [False, True] if saves and run < 1 << RUN and (here.row_bytes - run) % p.lanes == 0 else [False]


def _convolution_cost(conv: QConv, p: Parameters, here: Region, way: Mapping) -> Candidate:
    cout, kh, kw, cin = conv.weights.shape
    out = Region(output_shape(conv, here.shape), conv.mac.out, 0, p.batch)
    count, terms = segments(conv, way.packed)
    words = -(-cout // p.columns) * count * -(-terms // p.rows)
    divided = stripes(way, p.batch, out.shape[0])
    to = _scratch(p)
    for stripe in divided:
        convolve(to, conv, Kernel(way.packed, (0, words), {}), stripe, here, out)
    ends = row_ends(p.rows, kh, kw * cin) if way.packed else 0
    sums = "packed" if way.packed else "by kernel rows"
    activations = here.total + out.total
    return Candidate(sums, _cost(to), activations, way, pitch=here.row_bytes, row_ends=ends, stripes=len(divided))


def _candidates_3d(
    layer: QConvCaps3D, p: Parameters, shape: tuple[int, ...], accumulators: int
) -> list[Candidate]:
    """The ways of the votes of 3D capsules: a column of positions is a job, or several of its stripes are."""
    height = output_shape(layer.conv, shape)[0]
    here = Region(shape, layer.conv.mac.a, 0, p.batch)
    found = []
    for division in _divisions(f"{layer.name}.votes", p.batch, height, layer.in_types, accumulators):
        way, to = Mapping(False, *division), _scratch(p)
        make_votes_3d(to, layer, here, way, Kernel(False, (0, vote_kernel_words(p, layer)), {}))
        cost = _cost(to)
        found.append(Candidate("by pixels", cost, here.total, way, pitch=here.row_bytes, stripes=cost.jobs))
    return found


def _class_candidates(layer: QClassCaps, p: Parameters, shapes: Sequence[tuple[int, ...]]) -> list[Candidate]:
    """The ways of class capsules that read tensors of these shapes."""
    found = []
    for split in (False, True) if splits(layer, p.rows) else (False,):
        to, first, taken = _scratch(p), 0, 0
        for shape in shapes:
            source = Region(shape, layer.votes.a, 0, p.batch)
            words = vote_weight_words(p, layer, source, split)
            make_votes(to, layer, source, first // layer.weights.shape[1], split, (taken, words))
            first, taken = first + source.size, taken + words
        made = math.prod(layer.weights.shape[2:])
        found.append(Candidate("split" if split else "whole", _cost(to), p.batch * (first + made), split=split))
    return found


def _scratch(p: Parameters) -> Assembler:
    """An assembler of steps that no program will hold."""
    return Assembler(p, Layout(p))


def _cost(to: Assembler) -> Cost:
    """What the jobs of an assembler take by themselves."""
    [cost] = predict_steps(with_fetches(to.steps, to.p.word_bits // 8), to.p).values()
    return cost
