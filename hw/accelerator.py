"""The accelerator: memories, units, and the ports between them."""

from __future__ import annotations

from typing import Any

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from hw import isa
from hw.add import AddUnit
from hw.emitter import Emitter
from hw.loader import Loader
from hw.matmul import MatmulEngine
from hw.memory import Bank, VectorMemory
from hw.parameters import Parameters
from hw.sequencer import Sequencer, units
from hw.softmax import SoftmaxUnit
from hw.spill import LoadUnit, StoreUnit
from hw.squash import SquashUnit
from hw.votes import VoteMemory
from hw.weights import WeightBuffer


class Accelerator(wiring.Component):
    """Images to classes without the host: an AXI4-Stream of packets in (`hw.isa.Target`), one of results out
    (`hw.emitter`), and one of weights in, which `w_request` asks for.

    The host loads program, biases and tables once, then for every batch its images and a START. A weight request
    (bits 31-0 the byte address from where the weights begin, bits 55-32 the number of array words) is answered on
    `w_axis` by these words, requests in order. One unit works at a time and owns the ports of the memories meanwhile;
    the loader owns them while no program runs. The counters count from START on and stand still while they are sent.

    With `spill`, activations come and go as well: `l_request` (bits 31-0 a byte address, of a whole beat, from where
    they begin, bits 55-32 the number of beats) is answered on `l_axis`; `o_request`, of the same form, is followed by
    its beats on `o_axis`, with a strobe for each byte to be written, and answered by `o_response` when all are there.
    """

    s_axis_tdata: Signal
    s_axis_tvalid: Signal
    s_axis_tready: Signal
    w_request_tdata: Signal
    w_request_tvalid: Signal
    w_request_tready: Signal
    w_axis_tdata: Signal
    w_axis_tvalid: Signal
    w_axis_tready: Signal
    m_axis_tdata: Signal
    m_axis_tvalid: Signal
    m_axis_tready: Signal
    m_axis_tlast: Signal
    busy: Signal

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        super().__init__({
            "s_axis_tdata": In(32), "s_axis_tvalid": In(1), "s_axis_tready": Out(1),
            "m_axis_tdata": Out(32), "m_axis_tvalid": Out(1), "m_axis_tready": In(1), "m_axis_tlast": Out(1),
            "w_request_tdata": Out(56), "w_request_tvalid": Out(1), "w_request_tready": In(1),
            "w_axis_tdata": In(parameters.bus_bits), "w_axis_tvalid": In(1), "w_axis_tready": Out(1),
            "busy": Out(1),
        } | (_spill_ports(parameters) if parameters.spill else {}))  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        p = self._parameters
        m.submodules.loader = loader = Loader(p)
        m.submodules.sequencer = sequencer = Sequencer(p)
        m.submodules.matmul = matmul = MatmulEngine(p)
        m.submodules.squash = squash = SquashUnit(p)
        m.submodules.softmax = softmax = SoftmaxUnit(p)
        m.submodules.emitter = emitter = Emitter(p)
        at_work: dict[isa.Opcode, Any] = {
            isa.Opcode.MATMUL: matmul, isa.Opcode.SQUASH: squash, isa.Opcode.SOFTMAX: softmax, isa.Opcode.EMIT: emitter
        }  # fmt: skip
        configured: list[tuple[Any, data.StructLayout]] = [(squash, isa.SQUASH), (softmax, isa.SOFTMAX)]
        if p.adder:
            m.submodules.add = add = AddUnit(p)
            at_work[isa.Opcode.ADD] = add
            configured.append((add, isa.ADD))
        if p.spill:
            m.submodules.store = store = StoreUnit(p)
            m.submodules.load = load = LoadUnit(p)
            at_work[isa.Opcode.STORE] = store
        order = units(p)
        active = {opcode: sequencer.active[index] for index, opcode in enumerate(order)}
        m.submodules.activations = activations = VectorMemory(p.lanes, p.activation_bytes, p.row_ends)
        m.submodules.votes = votes = VoteMemory(p.square, p.vote_words)

        m.submodules.program = program = Bank(32, p.program_words)
        m.submodules.weights = weights = WeightBuffer(p)
        m.submodules.requests = requests = SyncFIFOBuffered(width=56, depth=4)
        m.submodules.biases = biases = Bank(32 * p.columns, p.bias_words)

        # Edge: streams in and out.
        m.d.comb += [
            loader.packets.payload.eq(self.s_axis_tdata),
            loader.packets.valid.eq(self.s_axis_tvalid),
            self.s_axis_tready.eq(loader.packets.ready),
            self.m_axis_tdata.eq(emitter.beats.payload.data),
            self.m_axis_tlast.eq(emitter.beats.payload.last),
            self.m_axis_tvalid.eq(emitter.beats.valid),
            emitter.beats.ready.eq(self.m_axis_tready),
            self.busy.eq(sequencer.running),
            requests.w_data.eq(sequencer.requests.payload),
            requests.w_en.eq(sequencer.requests.valid),
            sequencer.requests.ready.eq(requests.w_rdy),
            self.w_request_tdata.eq(requests.r_data),
            self.w_request_tvalid.eq(requests.r_rdy),
            requests.r_en.eq(self.w_request_tready),
            weights.beats.payload.eq(self.w_axis_tdata),
            weights.beats.valid.eq(self.w_axis_tvalid),
            self.w_axis_tready.eq(weights.beats.ready),
        ]

        # The loader and what it fills.
        m.d.comb += [
            loader.run.eq(sequencer.running),
            program.write_enable.eq(loader.enable[isa.Target.PROGRAM]),
            biases.write_enable.eq(loader.enable[isa.Target.BIAS]),
            squash.table_write_enable.eq(loader.enable[isa.Target.SQUASH_TABLE]),
            softmax.table_write_enable.eq(loader.enable[isa.Target.EXP_TABLE]),
            squash.table_write_address.eq(loader.address),
            squash.table_write_data.eq(loader.data),
            softmax.table_write_address.eq(loader.address),
            softmax.table_write_data.eq(loader.data),
        ]
        for memory in (program, biases):
            m.d.comb += [memory.write_address.eq(loader.address), memory.write_data.eq(loader.data)]

        # The sequencer and the units that it starts.
        m.d.comb += [
            sequencer.start.eq(loader.start),
            sequencer.entry.eq(loader.address),
            program.read_address.eq(sequencer.program_address),
            sequencer.program_data.eq(program.read_data),
            sequencer.unit_done.eq(Cat(at_work[opcode].done for opcode in order)),
            matmul.config.as_value().eq(sequencer.descriptor),
            emitter.config.as_value().eq(sequencer.descriptor),
        ]
        for unit, layout in configured:
            fields = data.View(layout, sequencer.descriptor[: layout.size])
            for name in layout.members:
                if name != "opcode":
                    m.d.comb += getattr(unit, name).eq(fields[name])
        for index, opcode in enumerate(order):
            m.d.comb += at_work[opcode].start.eq(sequencer.unit_start[index])

        # The ports of the memories.
        m.d.comb += [
            matmul.weights_available.eq(weights.available),
            weights.next.eq(matmul.weights_next),
            matmul.weight_data.eq(weights.word),
            biases.read_address.eq(matmul.bias_address),
            matmul.bias_data.as_value().eq(biases.read_data),
            votes.read_address.eq(Mux(active[isa.Opcode.EMIT], emitter.vote_address, matmul.vote_address)),
            matmul.vote_data.eq(votes.read_data),
            emitter.vote_data.eq(votes.read_data),
            votes.write_enable.eq(matmul.write_enable & matmul.write_votes),
            votes.write_pair.eq(matmul.write_pair),
            votes.write_lane.eq(matmul.write_lane),
            votes.write_address.eq(matmul.write_address),
            votes.write_data.as_value().eq(matmul.write_data.as_value()),
            votes.write_upper.as_value().eq(matmul.write_upper.as_value()),
        ]
        for unit in at_work.values():
            m.d.comb += unit.read_data.eq(activations.read_data)
        write: Any = load if p.spill else activations
        with m.Switch(sequencer.active):
            for index, opcode in enumerate(order):
                unit = at_work[opcode]
                with m.Case(1 << index):
                    m.d.comb += activations.read_address.eq(unit.read_address)
                    if unit is matmul:
                        m.d.comb += [
                            write.write_enable.eq(matmul.write_enable & ~matmul.write_votes),
                            write.write_address.eq(matmul.write_address),
                            write.write_data.as_value().eq(matmul.write_data.as_value()),
                            write.write_mask.eq(matmul.write_mask),
                        ]
                        if p.row_ends:
                            m.d.comb += activations.read_jump.eq(matmul.read_jump)
                        for k in range(p.row_ends):
                            m.d.comb += activations.read_behind[k].eq(matmul.read_behind[k])
                    elif opcode not in (isa.Opcode.EMIT, isa.Opcode.STORE):
                        m.d.comb += [
                            write.write_enable.eq(unit.write_enable),
                            write.write_address.eq(unit.write_address),
                            write.write_data.eq(unit.write_data),
                            write.write_mask.eq(unit.write_mask),
                        ]
            with m.Default():
                m.d.comb += [
                    write.write_enable.eq(loader.enable[isa.Target.ACTIVATIONS]),
                    write.write_address.eq(loader.address),
                    write.write_data.as_value().eq(loader.data[:32]),
                    write.write_mask.eq(0b1111),
                ]
        if p.spill:
            self._connect_spill(m, store, load, sequencer, activations)

        # Counters stand still while they are sent.
        counters = Signal(data.ArrayLayout(64, len(isa.COUNTERS)))
        is_counters = sequencer.descriptor[:4] == isa.Opcode.COUNTERS
        counting = sequencer.running & ~(active[isa.Opcode.EMIT] & is_counters)
        rises = {
            "cycles": 1,
            "matmul_cycles": active[isa.Opcode.MATMUL],
            "squash_cycles": active[isa.Opcode.SQUASH],
            "softmax_cycles": active[isa.Opcode.SOFTMAX],
            "add_cycles": active.get(isa.Opcode.ADD, 0),
            "emit_cycles": active[isa.Opcode.EMIT],
            "store_cycles": active.get(isa.Opcode.STORE, 0),
            "fetch_cycles": sequencer.fetching,
            "output_stalls": emitter.stalled,
            "weight_stalls": matmul.stalled,
            "load_stalls": sequencer.stalled,
            "store_stalls": store.stalled if p.spill else 0,
            "busy_pe_cycles": matmul.busy_pes,
        }
        for index, name in enumerate(isa.COUNTERS):
            with m.If(loader.start):
                m.d.sync += counters[index].eq(0)
            with m.Elif(counting):
                m.d.sync += counters[index].eq(counters[index] + rises[name])
        m.d.comb += emitter.counters.eq(counters)
        return m

    def _connect_spill(
        self, m: Module, store: StoreUnit, load: LoadUnit, sequencer: Sequencer, activations: VectorMemory
    ) -> None:
        """The units that move activations, between their streams and the activation memory, whose write port the load
        unit has when no other wants it.
        """
        edge: Any = self
        m.d.comb += [
            store.config.as_value().eq(sequencer.descriptor),
            edge.o_request_tdata.eq(store.requests.payload),
            edge.o_request_tvalid.eq(store.requests.valid),
            store.requests.ready.eq(edge.o_request_tready),
            edge.o_axis_tdata.eq(store.beats.payload.data),
            edge.o_axis_tstrb.eq(store.beats.payload.strobes),
            edge.o_axis_tvalid.eq(store.beats.valid),
            store.beats.ready.eq(edge.o_axis_tready),
            store.responses.valid.eq(edge.o_response_tvalid),
            edge.o_response_tready.eq(store.responses.ready),
            edge.l_request_tdata.eq(load.requests.payload),
            edge.l_request_tvalid.eq(load.requests.valid),
            load.requests.ready.eq(edge.l_request_tready),
            load.beats.payload.eq(edge.l_axis_tdata),
            load.beats.valid.eq(edge.l_axis_tvalid),
            edge.l_axis_tready.eq(load.beats.ready),
            load.loads.payload.eq(sequencer.loads.payload),
            load.loads.valid.eq(sequencer.loads.valid),
            sequencer.loads.ready.eq(load.loads.ready),
            sequencer.loading.eq(load.busy),
        ]
        for part in ("enable", "address", "data", "mask"):
            m.d.comb += getattr(activations, f"write_{part}").eq(getattr(load, f"port_{part}"))


def _spill_ports(parameters: Parameters) -> dict[str, wiring.Member]:
    """The streams of activations that come from external memory (l) and go there (o)."""
    bus = parameters.bus_bits
    return {
        "l_request_tdata": Out(56), "l_request_tvalid": Out(1), "l_request_tready": In(1),
        "l_axis_tdata": In(bus), "l_axis_tvalid": In(1), "l_axis_tready": Out(1),
        "o_request_tdata": Out(56), "o_request_tvalid": Out(1), "o_request_tready": In(1),
        "o_axis_tdata": Out(bus), "o_axis_tstrb": Out(bus // 8), "o_axis_tvalid": Out(1), "o_axis_tready": In(1),
        "o_response_tvalid": In(1), "o_response_tready": Out(1),
    }  # fmt: skip
