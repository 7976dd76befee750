"""The rule of streams, proved by induction for whatever comes in: an offer stays, unchanged, until it is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from amaranth import Module, Signal, Value
from amaranth.back import rtlil
from amaranth.hdl import Assert, Assume
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.axi_lite import RegisterFile
from hw.axi_read import BurstReader, Narrower, ReadArbiter
from hw.axi_store import BeatWriter, WriteArbiter
from hw.axi_write import BurstWriter
from model.yosys import YosysError, run_yosys

SCRIPT = """
    read_rtlil offers.il
    hierarchy -top offers
    proc
    flatten
    chformal -lower
    memory_map
    opt -full
    sat -verify -tempinduct -maxsteps 4 -prove-asserts -set-assumes -set rst 0 offers
"""


class Offers(wiring.Component):
    """`component` with all its inputs free. Streams that come in are assumed to keep the rule, those that go out are
    asserted to. `start` comes only while the component is not `busy`, and what is named in `taken` is always taken.
    """

    def __init__(self, component: wiring.Component, taken: tuple[str, ...]) -> None:
        self._component, self._taken = component, taken
        super().__init__(dict(component.signature.members.items()))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        ports: Any = self
        m.submodules.component = self._component
        wiring.connect(m, wiring.flipped(ports), self._component)
        if "start" in self.signature.members:
            m.d.comb += Assume(~(ports.start & ports.busy))
        for name in self._taken:
            m.d.comb += Assume(getattr(ports, name).ready)
        for name, member in self.signature.members.items():
            if member.is_signature:
                port = getattr(ports, name)
                payload = Value.cast(port.payload)
                stalled, before = Signal(name=f"{name}_stalled"), Signal(len(payload), name=f"{name}_before")
                m.d.sync += [stalled.eq(port.valid & ~port.ready), before.eq(payload)]
                kept = ~stalled | (port.valid & (payload == before))
                m.d.comb += (Assume if member.flow is In else Assert)(kept)
        return m


class Hasty(wiring.Component):
    """Breaks the rule: it offers what comes in without waiting for anyone."""

    def __init__(self) -> None:
        super().__init__({"words": Out(stream.Signature(8)), "offer": In(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        ports: Any = self
        m.d.comb += ports.words.valid.eq(ports.offer)
        return m


def prove(component: wiring.Component, folder: Path, taken: tuple[str, ...] = ()) -> str:
    design = rtlil.convert(Offers(component, taken), name="offers", emit_src=False)
    (folder / "offers.il").write_text(design)
    return run_yosys(SCRIPT, folder)


@pytest.mark.parametrize(
    ("unit", "taken"),
    [
        (lambda: BurstReader(32, 14, 2, 2, 1), ()),
        (lambda: ReadArbiter(32, 14, 2), ("r_0", "r_1")),  # as BurstReader does
        (lambda: Narrower(64), ()),
        (lambda: BurstWriter(64, 14, 2), ()),
        (lambda: BeatWriter(64, 14, 2, 1), ()),
        (lambda: WriteArbiter(32, 14), ()),
        (lambda: RegisterFile({}), ()),
    ],
    ids=["reader", "arbiter", "narrower", "writer", "beats", "writes", "registers"],
)
def test_offers_stay(unit: Any, taken: tuple[str, ...], tmp_path: Path) -> None:
    assert "Induction step proven: SUCCESS!" in prove(unit(), tmp_path, taken)


def test_a_breach_is_found(tmp_path: Path) -> None:
    with pytest.raises(YosysError, match="proof did fail"):
        prove(Hasty(), tmp_path)
