"""The mapper: stripes that cover the output, costs that are the program's, and the cheapest way chosen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.config import Config
from flows.map_command import network_of
from hw.compiler import best_mapping, compile_network
from hw.convolution import Mapping, stripes
from hw.cycles import predict
from hw.mapping import map_network
from hw.packing import row_ends
from hw.parameters import MultiplierKind, Parameters, Size
from model.qnetwork import QNetwork, Routed
from tests.random_deepcaps import deepcaps
from tests.random_networks import networks
from tests.test_hw_compiler import kinds

CONFIGS = Path(__file__).parents[1] / "configs"


@given(st.integers(1, 9), st.integers(1, 20), st.integers(1, 9), st.integers(1, 20), st.booleans())
def test_stripes_cover_every_row_of_every_image_once(
    batch: int, height: int, images: int, rows: int, packed: bool
) -> None:
    covered = np.zeros((batch, height), int)
    found = stripes(Mapping(packed, images, rows), batch, height)
    for stripe in found:
        assert 1 <= stripe.images <= images and 1 <= stripe.rows <= rows
        covered[stripe.image : stripe.image + stripe.images, stripe.top : stripe.top + stripe.rows] += 1
    assert (covered == 1).all()
    assert max(s.rows for s in found) - min(s.rows for s in found) <= 1  # none much smaller than the others


@settings(max_examples=30, deadline=None)
@given(networks() | deepcaps(), st.sampled_from((4, 8, 16)), st.integers(1, 3), st.integers(12, 80))
def test_a_way_costs_what_its_piece_of_the_program_does(
    network: QNetwork, rows: int, batch: int, accumulators: int
) -> None:
    """And no layer that alone reads its input could do better."""
    size = Size(rows, 4, batch, 32)
    p = Parameters(kinds(network), rows, 4, batch=batch, bus_bits=32)
    mapping = map_network(network, p, accumulators=accumulators)
    predicted = predict(compile_network(network, kinds(network), size, mapping))
    sources = [source for _, read in network.sources() for source in read]
    for layer, read in network.sources():
        if layer.name not in mapping.chosen:
            continue
        chosen = mapping.chosen[layer.name]
        made = predicted[f"{layer.name}.{'votes' if isinstance(layer, Routed) else 'mac'}"]
        assert (made.products, made.weight_bytes) == (chosen.cost.products, chosen.cost.weight_bytes)
        assert made.jobs == chosen.cost.jobs == chosen.stripes * len(read)
        if all(sources.count(source) == 1 for source in read):
            assert all(chosen.rank <= other.rank for other in mapping.lost[layer.name])


@pytest.mark.parametrize(("lanes", "rows", "run", "ends"), [(16, 9, 9, 2), (16, 3, 3, 2), (16, 3, 9, 1), (4, 3, 1, 2),
                                                            (16, 3, 384, 1), (16, 1, 40, 0)])  # fmt: skip
def test_ends_of_rows_within_a_vector(lanes: int, rows: int, run: int, ends: int) -> None:
    assert row_ends(lanes, rows, run) == ends


def test_the_original_capsnet() -> None:
    """81 terms are six words in place of nine, with rows of 28 bytes 41 apart."""
    network, its_kinds = network_of(Config.load(CONFIGS / "capsnet-mnist.yaml", {}))
    mapping = best_mapping(network, its_kinds, Size(16, 16))
    assert mapping.pitches == {"input": 41} and mapping.row_ends == 2 and mapping.split
    assert mapping.convolution("conv1") == Mapping(True, 1, 20)
    [rows] = mapping.lost["conv1"]
    assert mapping.chosen["conv1"].cost.products == rows.cost.products == 20 * 20 * 81 * 256
    assert rows.cost.cycles - mapping.chosen["conv1"].cost.cycles == 3 * 16 * 400
    [whole] = mapping.lost["classcaps"]
    assert whole.cost.weight_bytes == 2 * mapping.chosen["classcaps"].cost.weight_bytes


def test_stripes_of_a_part_of_the_batch() -> None:
    """Of 17 images of 32 x 32 pixels, 1,024 accumulators hold one, or one row of all."""
    config = Config.load(CONFIGS / "deepcaps-cifar10.yaml", {"network.image": [32, 32, 3], "pixels": 32})
    network, its_kinds = network_of(config)
    chosen = best_mapping(network, its_kinds, Size(16, 16, 17)).chosen["conv1"]
    assert chosen.stripes == 17 and chosen.mapping == Mapping(True, 1, 32)


def test_gaps_only_where_all_readers_are_convolutions() -> None:
    """What is squashed, added or voted on lies without gaps, so that units take it as it lies."""

    @settings(max_examples=30, deadline=None)
    @given(deepcaps())
    def check(network: QNetwork) -> None:
        p = Parameters((*kinds(network), MultiplierKind("more", "more")), 16, 4)
        for mapping in (map_network(network, p), map_network(network, replace(p, rows=4))):
            assert mapping.pitches.keys() <= {"input", "conv1.mac"}

    check()


def test_rows_lie_apart_only_where_there_is_room() -> None:
    """An image of 100 x 5 bytes has rows 19 apart when packed, which are 1,900 bytes."""
    sizes = {"image": [100, 5, 1], "conv_channels": 1, "conv_kernel": 3, "primary_types": 1, "primary_dim": 4,
             "primary_kernel": 3, "classes": 2}  # fmt: skip
    config = Config.load(CONFIGS / "capsnet-mnist.yaml", {f"network.{key}": value for key, value in sizes.items()})
    network, its_kinds = network_of(config)
    for kib, pitches in ((None, {"input": 19}), (4, {"input": 19}), (1, {})):
        size = Size(16, 16, activation_bytes=kib and 1024 * kib)
        mapping = best_mapping(network, its_kinds, size)
        assert mapping.pitches == pitches and mapping.convolution("conv1").packed == bool(pitches)
        assert compile_network(network, its_kinds, size).image.pitch == pitches.get("input", 0)
