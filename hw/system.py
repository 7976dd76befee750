"""The accelerator in a system: AXI4-Lite registers, an AXI4 master for commands, weights and results, an interrupt."""

from __future__ import annotations

from typing import Any

from amaranth import ClockDomain, ClockSignal, DomainRenamer, Module, ResetSignal, Shape, Signal
from amaranth.hdl import Value
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from hw import axi, registers
from hw.axi_lite import RegisterFile
from hw.dma import Dma
from hw.registers import Cause
from model.errors import RedcaneError


def check_sizes(bus_bits: int, word_bytes: int, address_bits: int, burst: int, outstanding: int) -> None:
    """Raises RedcaneError for a `System` that AXI4 or the core cannot have."""
    if bus_bits not in (32, 64, 128, 256, 512, 1024) or 8 * word_bytes < bus_bits or word_bytes & (word_bytes - 1):
        raise RedcaneError(
            f"system: a bus of {bus_bits} bits does not carry words of {word_bytes} bytes; "
            "take 32 to 1024 bits, a power of two, and at most a word"
        )
    if not 32 <= address_bits <= 64:
        raise RedcaneError(f"system: addresses of {address_bits} bits; take 32 to 64")
    longest = min(256, axi.BOUNDARY // (bus_bits // 8))
    if not 2 <= burst <= longest or burst & (burst - 1) or outstanding < 2:
        raise RedcaneError(
            f"system: {outstanding} bursts of {burst} beats; take two or more of them, "
            f"and a power of two from 2 to {longest} beats"
        )


class System(wiring.Component):
    """`core` between an AXI4-Lite slave `s_axi` (`hw.registers`) and an AXI4 master `m_axi`, with the interrupt `irq`.

    `core` has the ports of `hw.accelerator.Accelerator`: the streams s_axis, m_axis, w_request and w_axis, and `busy`;
    those of spilled activations as well, or none of them.
    From the cycle after it took a START until its last result has been handed over, `busy` is high or
    `s_axis_tready` low. `word_bytes` are the bytes of a word of weights (rows x columns). Bursts have up to `burst`
    beats (a power of two, at most 4 KiB); up to `burst` * `outstanding` beats of weights are under way, see
    `hw.axi_read.BurstReader` for the latency that they hide.

    Commands, weights and activations come by bursts of different IDs, whose data may be interleaved; results and
    activations go by such.

    Raises RedcaneError as `check_sizes` does.
    """

    def __init__(
        self, core: wiring.Component, word_bytes: int, address_bits: int = 32, burst: int = 16, outstanding: int = 8
    ) -> None:
        bus_bits = Shape.cast(core.signature.members["w_axis_tdata"].shape).width
        bus_bytes = bus_bits // 8
        check_sizes(bus_bits, word_bytes, address_bits, burst, outstanding)
        self._core, self._bus_bytes, self._word_bytes, self._address_bits = core, bus_bytes, word_bytes, address_bits
        spill = "l_axis_tdata" in core.signature.members
        self._dma = Dma(bus_bits, word_bytes, address_bits, burst, outstanding, spill)
        masks = dict.fromkeys(registers.BUS_ADDRESSES, (1 << address_bits) - bus_bytes) | {"RESULTS_SIZE": -4}
        self._registers = RegisterFile(masks | ({} if spill else {"ACTIVATIONS_BASE": 0}))
        self._master = axi.master_channels(address_bits, bus_bits)
        self._slave = axi.lite_channels(registers.ADDRESS_BITS)
        self._constants = axi.master_constants(bus_bits)
        super().__init__(
            axi.flat_ports("s_axi", self._slave)
            | axi.flat_ports("m_axi", self._master)
            | {f"m_axi_{c}{name}": Out(bits) for c in ("ar", "aw") for name, (bits, _) in self._constants.items()}
            | {"irq": Out(1)}
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        regs: Any = self._registers
        dma = self._dma
        core: Any = self._core
        # The core and its DMA lie in a domain of their own, on the same clock, for their soft reset.
        soft_reset = Signal()
        m.domains.core = ClockDomain(local=True)
        m.d.comb += [
            ClockSignal("core").eq(ClockSignal()),
            ResetSignal("core").eq(ResetSignal() | soft_reset),
        ]
        m.submodules.registers = regs
        m.submodules.dma = DomainRenamer("core")(dma)
        m.submodules.core = DomainRenamer("core")(core)

        ports: Any = self
        axi.connect_ports(m, self, "s_axi", regs, self._slave)
        axi.connect_ports(m, self, "m_axi", dma, self._master)
        for name, (_, value) in self._constants.items():
            m.d.comb += [getattr(self, f"m_axi_{channel}{name}").eq(value) for channel in ("ar", "aw")]

        m.d.comb += [
            core.s_axis_tdata.eq(dma.commands.payload),
            core.s_axis_tvalid.eq(dma.commands.valid),
            dma.commands.ready.eq(core.s_axis_tready),
            dma.results.payload.eq(core.m_axis_tdata),
            dma.results.valid.eq(core.m_axis_tvalid),
            core.m_axis_tready.eq(dma.results.ready),
            dma.requests.payload.eq(core.w_request_tdata),
            dma.requests.valid.eq(core.w_request_tvalid),
            core.w_request_tready.eq(dma.requests.ready),
            core.w_axis_tdata.eq(dma.weights.payload),
            core.w_axis_tvalid.eq(dma.weights.valid),
            dma.weights.ready.eq(core.w_axis_tready),
        ]

        shift = self._bus_bytes.bit_length() - 1
        if dma.spill:
            for stream, port in ((dma.load_requests, "l_request"), (dma.store_requests, "o_request")):
                m.d.comb += [
                    stream.payload.eq(getattr(core, f"{port}_tdata")),
                    stream.valid.eq(getattr(core, f"{port}_tvalid")),
                    getattr(core, f"{port}_tready").eq(stream.ready),
                ]
            m.d.comb += [
                core.l_axis_tdata.eq(dma.loads.payload),
                core.l_axis_tvalid.eq(dma.loads.valid),
                dma.loads.ready.eq(core.l_axis_tready),
                dma.stores.payload.data.eq(core.o_axis_tdata),
                dma.stores.payload.strobes.eq(core.o_axis_tstrb),
                dma.stores.valid.eq(core.o_axis_tvalid),
                core.o_axis_tready.eq(dma.stores.ready),
                core.o_response_tvalid.eq(dma.store_responses.valid),
                dma.store_responses.ready.eq(core.o_response_tready),
                dma.activations_beat.eq(regs.activations_base.value >> shift),
            ]
        m.d.comb += [
            dma.commands_beat.eq(regs.commands_address.value >> shift),
            dma.commands_count.eq(regs.commands_beats.value),
            dma.weights_beat.eq(regs.weights_base.value >> shift),
            dma.results_beat.eq(regs.results_address.value >> shift),
            dma.results_size.eq(regs.results_size.value >> 2),
            regs.identity.value.eq(registers.IDENTITY),
            regs.version.value.eq(registers.VERSION),
            regs.sizes.bus_bytes.eq(self._bus_bytes),
            regs.sizes.address_bits.eq(self._address_bits),
            regs.sizes.word_bytes.eq(self._word_bytes),
            regs.results_written.value.eq(dma.results_written << 2),
            ports.irq.eq((regs.irq_status_set.as_value() & regs.irq_enable.as_value()).any()),
        ]
        running = self._control(m, soft_reset)
        counts = {
            "CYCLES": 1,
            "BYTES_READ": (ports.m_axi_rvalid & ports.m_axi_rready) << shift,
            "BYTES_WRITTEN": (ports.m_axi_wvalid & ports.m_axi_wready) << shift,
            "COMMAND_STALLS": dma.commanding & dma.commands.ready & ~dma.commands.valid,
            "WEIGHT_STALLS": dma.owing & dma.weights.ready & ~dma.weights.valid,
            "RESULT_STALLS": dma.results.valid & ~dma.results.ready,
        }
        for name, rise in counts.items():
            counter = Signal(64, name=name.lower())
            m.d.comb += getattr(regs, registers.REGISTERS[name].port).value.eq(counter)
            with m.If(dma.start):
                m.d.sync += counter.eq(0)
            with m.Elif(running):
                m.d.sync += counter.eq(counter + rise)
        return m

    def _control(self, m: Module, soft_reset: Signal) -> Value:
        """The states of a run; whether one is under way."""
        regs: Any = self._registers
        core: Any = self._core
        dma = self._dma
        start, reset = regs.control.start, regs.control.reset
        done = Signal()
        cause, response, failed_beat = Signal(Cause), Signal(2), Signal.like(dma.failed_beat)
        broken = dma.cause != Cause.NONE

        def break_off() -> None:
            m.d.comb += regs.irq_status.error.eq(1)
            m.d.sync += [cause.eq(dma.cause), response.eq(dma.failed_response), failed_beat.eq(dma.failed_beat)]

        with m.FSM() as fsm:
            with m.State("IDLE"):
                with m.If(reset):
                    m.next = "DRAIN"
                with m.Elif(start):
                    m.d.comb += dma.start.eq(1)
                    m.d.sync += done.eq(0)
                    m.next = "RUN"
            with m.State("RUN"):
                with m.If(reset):
                    m.next = "DRAIN"
                with m.Elif(broken):
                    break_off()
                    m.next = "FAILED"
                with m.Elif(~dma.commanding & core.s_axis_tready & ~core.busy):
                    m.next = "FLUSH"
            with m.State("FLUSH"):
                m.d.comb += dma.flush.eq(1)
                with m.If(reset):
                    m.next = "DRAIN"
                with m.Elif(broken):
                    break_off()
                    m.next = "FAILED"
                with m.Elif(~dma.writing):
                    m.d.comb += regs.irq_status.done.eq(1)
                    m.d.sync += done.eq(1)
                    m.next = "IDLE"
            with m.State("FAILED"):
                m.d.comb += dma.halt.eq(1)
                with m.If(reset):
                    m.next = "DRAIN"
            with m.State("DRAIN"):
                m.d.comb += dma.halt.eq(1)
                with m.If(~dma.pending):
                    m.next = "RESET"
            with m.State("RESET"):
                m.d.comb += soft_reset.eq(1)
                m.d.sync += [done.eq(0), cause.eq(Cause.NONE), response.eq(0), failed_beat.eq(0)]
                m.next = "IDLE"
        running = fsm.ongoing("RUN") | fsm.ongoing("FLUSH")
        failed = fsm.ongoing("FAILED")
        m.d.comb += [
            regs.status.busy.eq(~fsm.ongoing("IDLE") & (~failed | dma.pending)),
            regs.status.done.eq(done),
            regs.status.error.eq(failed),
            regs.status.cause.eq(cause),
            regs.status.response.eq(response),
            regs.error_address.value.eq(failed_beat << (self._bus_bytes.bit_length() - 1)),
        ]
        return running
