"""What is proved about the streams, and that a proof fails where a unit is wrong."""

from __future__ import annotations

import inspect
import sys

import pytest

from hw.axi_read import BurstReader
from hw.axi_store import BeatWriter
from hw.axi_write import BurstWriter
from hw.emitter import Emitter
from hw.loader import Loader
from hw.spill import LoadUnit, StoreUnit
from hw.weights import WeightBuffer
from sim import properties, spill_properties, weight_properties, write_properties
from sim.formal import Violated, prove, reachable


def wrong(unit: type, old: str, new: str) -> type:
    """The unit with a defect planted in its source."""
    source = inspect.getsource(unit)
    assert source.count(old) == 1
    names = dict(vars(sys.modules[unit.__module__]))
    exec(source.replace(old, new), names)
    return names[unit.__name__]


def test_the_emitters_packets_are_whole() -> None:
    prove(properties.emitter(), 9)
    assert reachable(properties.emitter(), "ended", 6)


def test_the_loader_writes_what_the_packets_say() -> None:
    prove(properties.loader(), 8)
    assert reachable(properties.loader(), "wrote", 6)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("with m.If(self.beats.ready):", "if True:"),  # a beat is dropped when the receiver stalls
        ("remaining.eq(remaining - 1),", "remaining.eq(remaining - self.beats.ready),"),  # LAST comes late
        ("address.eq(address + 4)", "address.eq(address + 8)"),
        ("self.stalled.eq(~self.beats.ready)", "self.stalled.eq(1)"),
    ],
)
def test_a_wrong_emitter_is_found(old: str, new: str) -> None:
    with pytest.raises(Violated, match="fails in cycle"):
        prove(properties.emitter(wrong(Emitter, old, new)), 9)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("self.packets.ready.eq(~self.run & ~self.start & ~stepped)", "self.packets.ready.eq(~self.start & ~stepped)"),
        ("with m.If(remaining == 1):", "with m.If(remaining <= 2):"),  # the last word is taken for a header
        ("self.address.eq(self.address + 4)", "self.address.eq(self.address + 1)"),
    ],
)
def test_a_wrong_loader_is_found(old: str, new: str) -> None:
    with pytest.raises(Violated, match="fails in cycle"):
        prove(properties.loader(wrong(Loader, old, new)), 9)


def test_weights_come_whole_and_in_order() -> None:
    prove(weight_properties.weight_buffer(), 9)
    assert reachable(weight_properties.weight_buffer(), "read", 12)


def test_the_reader_answers_a_request_once() -> None:
    prove(weight_properties.burst_reader(), 9)
    assert reachable(weight_properties.burst_reader(), "ended", 9)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("level != depth)", "level != depth - 1)"),
        ("taken & (piece == index)", "taken"),
        ("Mux(front == depth - 1, 0, front + 1)", "front + 1"),
        ("self.available.eq(level != 0)", "self.available.eq((level != 0) | (piece != 0))"),
    ],
)
def test_a_wrong_weight_buffer_is_found(old: str, new: str) -> None:
    with pytest.raises(Violated, match="fails in cycle"):
        prove(weight_properties.weight_buffer(wrong(WeightBuffer, old, new)), 14)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("beat & (self._burst - 1)", "beat & 0"),  # bursts across the boundary
        ("queue.r_en.eq(self.beats.ready)", "queue.r_en.eq(1)"),  # a beat that nobody took is gone
        ("remaining.eq(remaining - length)", "remaining.eq(remaining - self._burst)"),
        ("self.owing.eq((remaining != 0) | starts.r_rdy |", "self.owing.eq((remaining != 0) |"),
    ],
)
def test_a_wrong_reader_is_found(old: str, new: str) -> None:
    with pytest.raises(Violated, match="fails in cycle"):
        prove(weight_properties.burst_reader(wrong(BurstReader, old, new)), 12)


def test_the_writers_put_each_word_in_its_place() -> None:
    prove(write_properties.burst_writer(), 9)
    prove(write_properties.beat_writer(), 9)
    assert reachable(write_properties.beat_writer(), "ended", 13)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("full.eq(last_lane)", "full.eq(1)"),  # beats of one word
        ("left.eq(left - 1)", "left.eq(left)"),  # more than there is room for
        ("self.w.payload.last.eq(remaining == 1)", "self.w.payload.last.eq(remaining <= 2)"),
        ("self.busy.eq(self.pending | self._holding | (queue.r_level != 0))", "self.busy.eq(self._holding)"),
    ],
)
def test_a_wrong_writer_is_found(old: str, new: str) -> None:
    with pytest.raises(Violated, match="fails in cycle"):
        prove(write_properties.burst_writer(wrong(BurstWriter, old, new)), 12)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("beat & (self._burst - 1)", "beat & 0"),  # bursts across the boundary
        ("queue.r_en.eq((left != 0) & self.w.ready)", "queue.r_en.eq(left != 0)"),
        ("asked & (remaining == 0) & ~starts.r_rdy", "asked & (remaining == 0)"),  # done before the memory says so
        ("(queue.r_level >= length)", "(queue.r_level != 0)"),
    ],
)
def test_a_wrong_writer_of_beats_is_found(old: str, new: str) -> None:
    with pytest.raises(Violated, match="fails in cycle"):
        prove(write_properties.beat_writer(wrong(BeatWriter, old, new)), 12)


def test_the_units_that_move_activations_move_each_byte_once() -> None:
    prove(spill_properties.store(), 7)
    prove(spill_properties.load(), 5)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("self.requests.payload.beats.eq(beats)", "self.requests.payload.beats.eq(beats + 1)"),
        ("filled.strobes[piece * index : piece * (index + 1)].eq(mask)", "filled.strobes.eq(-1)"),
        ("self.config.base - self.config.address[: len(stretch.skip)]", "self.config.base"),
        ("queue.r_en.eq(self.beats.ready)", "queue.r_en.eq(1)"),  # a beat that nobody took is gone
    ],
)
def test_a_wrong_store_unit_is_found(old: str, new: str) -> None:
    with pytest.raises(Violated, match="fails in cycle"):
        prove(spill_properties.store(wrong(StoreUnit, old, new)), 9)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("active & ~self.write_enable & (stretch.last", "active & (stretch.last"),  # a beat lost to another's write
        ("writes.eq(active & self.beats.valid & ~self.write_enable)", "writes.eq(active & ~self.write_enable)"),
        ("self.port_mask.eq(stretch.mask)", "self.port_mask.eq(-1)"),
        ("self.busy.eq(active | (queue.w_level != 0))", "self.busy.eq(active)"),
    ],
)
def test_a_wrong_load_unit_is_found(old: str, new: str) -> None:
    with pytest.raises(Violated, match="fails in cycle"):
        prove(spill_properties.load(wrong(LoadUnit, old, new)), 7)
