"""The compiler: descriptors that lose no bits, bytes that come back as codes, networks that do not fit."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw import isa
from hw.compiler import compile_network
from hw.parameters import MultiplierKind, Parameters, Size
from hw.program import Emission, Program, Region, from_bytes, to_bytes
from model.errors import RedcaneError
from model.qnetwork import (
    Coding,
    Product,
    QAdd,
    QClassCaps,
    QConv,
    QConvCaps3D,
    QConvLayer,
    QNetwork,
    Requantizer,
    terms,
)
from tests.random_deepcaps import deepcaps
from tests.random_networks import SIGNED, networks


def kinds(network: QNetwork) -> tuple[MultiplierKind, ...]:
    return tuple(MultiplierKind(name, f"m{index}") for index, name in enumerate(sorted(network.tables)))


@pytest.mark.parametrize("kind", ["signed", "unsigned", "affine"])
def test_bytes_and_codes(kind: str) -> None:
    coding = Coding(kind, 1.0)
    codes = np.arange(coding.lo, coding.hi + 1).astype(np.int16)
    raw = to_bytes(coding, codes)
    assert raw.dtype == np.uint8 and len(np.unique(raw)) == len(codes)
    assert np.array_equal(from_bytes(coding, raw), codes)
    assert raw[codes == 0] == 0


@given(st.lists(st.integers(1, 4), min_size=2, max_size=4), st.integers(0, 5), st.integers(1, 3))
def test_rows_apart_are_read_as_they_were_written(shape: list[int], gap: int, images: int) -> None:
    """Codes of some images of a batch, in a region whose rows have bytes behind them that belong to nobody."""
    coding = Coding("signed", 1.0)
    region = Region(tuple(shape), coding, 8, 3, pitch=math.prod(shape[1:]) + gap)
    codes = np.random.default_rng(0).integers(coding.lo, coding.hi + 1, (images, *shape)).astype(np.int16)
    packet = Program.region_packet(region, codes)
    assert packet.address == 8 and 4 * len(packet.words) == -(-region.total // 4) * 4
    raw = packet.words.view(np.uint8)
    program = SimpleNamespace(parameters=None)
    read = Program.decode(program, Emission("maps", region, [[(0, region.total)]]), [raw[: region.total].tobytes()])  # type: ignore[arg-type]  # reads no more
    assert np.array_equal(read[:images], codes) and not read[images:].any()
    first_of_second_row = raw[region.size + region.pitch] if shape[0] > 1 and images > 1 else None
    if first_of_second_row is not None:
        assert first_of_second_row == to_bytes(coding, codes[1, 1].reshape(-1)[:1])[0]


def test_a_field_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="a_base"):
        isa.encode(isa.Opcode.MATMUL, {"a_base": 1 << 24})
    with pytest.raises(ValueError, match="lo"):
        isa.encode(isa.Opcode.SQUASH, {"lo": -257})
    with pytest.raises(ValueError, match="x = 524288"):
        isa.encode(isa.Opcode.MATMUL, {"b": {"bounds": {"x": 1 << 19}}})


def test_images_that_the_accumulators_do_not_hold_are_refused() -> None:
    """A row of pixels is the least that a convolution computes at once."""
    mac = Product("sign-magnitude", SIGNED, SIGNED, SIGNED, Requantizer(1 << 15, 15, 0, -127, 127), "m")
    conv = QConv(np.ones((1, 1, 1, 1), np.int16), np.zeros(1, np.int32), 1, mac)
    network = QNetwork((1, 1200, 1), SIGNED, (QConvLayer("conv1", conv),), {"m": np.zeros((256, 256), np.uint16)})
    with pytest.raises(RedcaneError, match=r"conv1\.mac: a row of 1200 .* the 1024 accumulators"):
        compile_network(network, (MultiplierKind("m", "m"),), Size(batch=2))


def test_descriptors_hold_what_was_written() -> None:
    words = isa.encode(isa.Opcode.EMIT, {"votes": 1, "tag": 0xA5, "base": 0x123456, "count": 7})
    assert len(words) == isa.WORDS
    assert words[0] | words[1] << 32 == 4 | 1 << 4 | 0xA5 << 5 | 0x123456 << 13 | 7 << 37


@settings(max_examples=40, deadline=None)
@given(networks() | deepcaps())
def test_the_jobs_cover_every_product_once(network: QNetwork) -> None:
    """The valid lanes and columns of all MATMUL jobs, counted, are the multiplications of the network (padded votes
    apart).
    """
    program = compile_network(network, kinds(network), Size(batch=2))
    code = program.setup[0].words[: program.traced_entry]
    done = 0
    for at in range(0, len(code), isa.WORDS):
        value = sum(int(word) << (32 * i) for i, word in enumerate(code[at : at + isa.WORDS]))
        if value & 15 != isa.Opcode.MATMUL:
            continue
        job = isa.MATMUL.from_bits(value & ((1 << isa.MATMUL.size) - 1))
        lanes = (job.chunks - 1) * job.lanes + job.last_lanes
        columns = (job.blocks - 1) * job.columns + job.last_columns
        done += job.groups * job.segments * job.windows * lanes * columns * job.rows * job.cols * job.images
    made = {emission.boundary: math.prod(emission.region.shape) for emission in program.emissions.values()}
    wanted = 0
    for layer in network.layers:
        if isinstance(layer, QClassCaps | QConvCaps3D):
            votes = made[f"{layer.name}.votes"]
            dim = layer.capsule_dim if isinstance(layer, QConvCaps3D) else layer.weights.shape[3]
            wanted += votes // dim * -(-dim // 4) * 4 * terms(layer, "votes") + votes * (2 * layer.iterations - 1)
        elif not isinstance(layer, QAdd):
            wanted += made[f"{layer.name}.mac"] * terms(layer, "mac")
    assert done == 2 * wanted


@settings(max_examples=20, deadline=None)
@given(networks() | deepcaps())
def test_what_will_be_read_is_not_overwritten(network: QNetwork) -> None:
    """No boundary lies where an earlier one does that its layer, or one after it, reads."""
    program = compile_network(network, kinds(network), Size(batch=3))
    regions = {e.boundary: e.region for e in program.emissions.values() if not e.region.votes}
    order = list(regions)
    checked = 0
    for layer, sources in network.sources():
        first = {QAdd: "add", QClassCaps: "softmax.1", QConvCaps3D: "softmax.1"}.get(type(layer), "mac")
        for source in sources:
            read = regions[source]
            for name in order[order.index(source) + 1 : order.index(f"{layer.name}.{first}") + 1]:
                made = regions[name]
                assert made.base >= read.base + read.total or made.base + made.total <= read.base
                checked += 1
    assert checked >= len(network.layers)


@settings(max_examples=1, deadline=None)
@given(networks())
def test_a_multiplier_that_the_pes_lack(network: QNetwork) -> None:
    with pytest.raises(RedcaneError, match="not in the PEs"):
        compile_network(network, (MultiplierKind("other", "other"),), Size())


@pytest.mark.parametrize("change", [{"rows": 5}, {"columns": 2}, {"kinds": ()}])
def test_arrays_that_cannot_be(change: dict) -> None:
    with pytest.raises(RedcaneError):
        dataclasses.replace(Parameters((MultiplierKind("m", "m"),)), **change)
