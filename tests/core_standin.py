"""What stands in for the accelerator inside `hw.system.System`: a small core that talks on all its streams."""

from __future__ import annotations

from typing import Any

from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from hw.isa import Target


class CoreStandin(wiring.Component):
    """Takes packets as the accelerator does: {target, payload beats}, address, payload.

    START works for as many cycles as the address says. ACTIVATIONS echoes its payload as a result packet whose tag is
    the lowest byte of the address. EXP_TABLE is pairs (address, words), which become requests; their beats are taken at
    moments of a shift register's choice (always, if the address is 0) and a result packet tells two checksums of 32
    bits: the sum of all 32-bit words, and the sum of each times its number, from 1 on; then how often a stream that
    comes in has changed or withdrawn what it offered.
    """

    def __init__(self, bus_bits: int, word_bytes: int) -> None:
        self._bus_bits, self._word_beats = bus_bits, word_bytes * 8 // bus_bits
        super().__init__({
            "s_axis_tdata": In(32), "s_axis_tvalid": In(1), "s_axis_tready": Out(1),
            "m_axis_tdata": Out(32), "m_axis_tvalid": Out(1), "m_axis_tready": In(1), "m_axis_tlast": Out(1),
            "w_request_tdata": Out(56), "w_request_tvalid": Out(1), "w_request_tready": In(1),
            "w_axis_tdata": In(bus_bits), "w_axis_tvalid": In(1), "w_axis_tready": Out(1),
            "busy": Out(1),
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        core: Any = self
        target, remaining, address = Signal(4), Signal(28), Signal(32)
        taken = core.s_axis_tvalid & core.s_axis_tready
        sent = core.m_axis_tvalid & core.m_axis_tready
        timer = Signal(32)

        noise = Signal(16, init=0xACE1)
        m.d.sync += noise.eq(Cat(noise[15] ^ noise[13] ^ noise[12] ^ noise[10], noise[:15]))
        owed, number = Signal(32), Signal(32)
        plain, weighted = Signal(32), Signal(32)
        requested = core.w_request_tvalid & core.w_request_tready
        delivered = core.w_axis_tvalid & core.w_axis_tready
        lanes = self._bus_bits // 32
        words = [core.w_axis_tdata[32 * i : 32 * i + 32] for i in range(lanes)]
        wait = Signal()  # AXI4-Stream lets a receiver change its mind
        m.d.comb += [
            wait.eq((address != 0) & (noise[:2] == 0)),
            core.w_axis_tready.eq((owed != 0) & ~wait),
        ]
        m.d.sync += owed.eq(
            owed + Mux(requested, core.w_request_tdata[32:] << exact_log2(self._word_beats), 0) - delivered
        )
        with m.If(delivered):
            m.d.sync += [
                plain.eq(plain + sum(words)),
                weighted.eq(weighted + sum((number + i + 1)[:32] * word for i, word in enumerate(words))),
                number.eq(number + lanes),
            ]

        faults = Signal(32)
        broken = []
        for name in ("s_axis", "w_axis"):
            payload, valid = getattr(core, f"{name}_tdata"), getattr(core, f"{name}_tvalid")
            stalled, before = Signal(name=f"{name}_stalled"), Signal.like(payload, name=f"{name}_before")
            m.d.sync += [stalled.eq(valid & ~getattr(core, f"{name}_tready")), before.eq(payload)]
            broken.append(stalled & (~valid | (before != payload)))
        m.d.sync += faults.eq(faults + sum(broken))

        request_address = Signal(32)
        with m.FSM() as fsm:
            with m.State("HEADER"):
                m.d.comb += core.s_axis_tready.eq(1)
                with m.If(taken):
                    m.d.sync += Cat(remaining, target).eq(core.s_axis_tdata)
                    m.next = "ADDRESS"
            with m.State("ADDRESS"):
                m.d.comb += core.s_axis_tready.eq(1)
                with m.If(taken):
                    m.d.sync += [address.eq(core.s_axis_tdata), timer.eq(core.s_axis_tdata)]
                    m.d.sync += [number.eq(0), plain.eq(0), weighted.eq(0)]
                    with m.Switch(target):
                        with m.Case(Target.START):
                            m.next = "WORK"
                        with m.Case(Target.ACTIVATIONS):
                            m.next = "TELL"
                        with m.Case(Target.EXP_TABLE):
                            m.next = "WHERE"
            with m.State("WORK"):
                m.d.comb += core.busy.eq(1)
                m.d.sync += timer.eq(timer - 1)
                with m.If(timer == 0):
                    m.next = "HEADER"
            with m.State("TELL"):
                m.d.comb += [
                    core.m_axis_tvalid.eq(1),
                    core.m_axis_tdata.eq(Cat((remaining << 2)[:24], address[:8])),
                    core.m_axis_tlast.eq(remaining == 0),
                ]
                with m.If(sent):
                    m.next = "ECHO"
                with m.If(sent & (remaining == 0)):
                    m.next = "HEADER"
            with m.State("ECHO"):
                m.d.comb += [
                    core.s_axis_tready.eq(core.m_axis_tready),
                    core.m_axis_tvalid.eq(core.s_axis_tvalid),
                    core.m_axis_tdata.eq(core.s_axis_tdata),
                    core.m_axis_tlast.eq(remaining == 1),
                ]
                with m.If(sent):
                    m.d.sync += remaining.eq(remaining - 1)
                    with m.If(remaining == 1):
                        m.next = "HEADER"
            with m.State("WHERE"):
                m.d.comb += core.s_axis_tready.eq(1)
                with m.If(taken):
                    m.d.sync += request_address.eq(core.s_axis_tdata)
                    m.next = "HOW MANY"
            with m.State("HOW MANY"):
                m.d.comb += [
                    core.w_request_tvalid.eq(core.s_axis_tvalid),
                    core.w_request_tdata.eq(Cat(request_address, core.s_axis_tdata[:24])),
                    core.s_axis_tready.eq(core.w_request_tready),
                ]
                with m.If(taken):
                    m.d.sync += remaining.eq(remaining - 2)
                    m.next = "WHERE"
                    with m.If(remaining == 2):
                        m.next = "GATHER"
            with m.State("GATHER"), m.If(owed == 0):
                m.next = "SUMS"
            sums = [Cat(Const(12, 24), address[:8]), plain, weighted, faults]
            for i, beat in enumerate(sums):
                with m.State("SUMS" if i == 0 else f"SUM {i}"):
                    m.d.comb += [
                        core.m_axis_tvalid.eq(1),
                        core.m_axis_tdata.eq(beat),
                        core.m_axis_tlast.eq(i == len(sums) - 1),
                    ]
                    with m.If(sent):
                        m.next = f"SUM {i + 1}" if i < len(sums) - 1 else "HEADER"
        with m.If(~(fsm.ongoing("HEADER") | fsm.ongoing("ADDRESS") | fsm.ongoing("ECHO"))):
            m.d.comb += core.busy.eq(1)
        return m
