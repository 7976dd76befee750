"""What is proved about the streams, and that a proof fails where a unit is wrong."""

from __future__ import annotations

import inspect

import pytest

from hw import emitter as emitter_file
from hw import loader as loader_file
from hw.emitter import Emitter
from hw.loader import Loader
from sim import properties
from sim.formal import Violated, prove, reachable


def wrong(unit: type, old: str, new: str) -> type:
    """The unit with a defect planted in its source."""
    module = emitter_file if unit is Emitter else loader_file
    source = inspect.getsource(unit)
    assert source.count(old) == 1
    names = dict(vars(module))
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
