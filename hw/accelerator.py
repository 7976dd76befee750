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
from hw.sequencer import Sequencer
from hw.softmax import SoftmaxUnit
from hw.squash import SquashUnit
from hw.votes import VoteMemory
from hw.weights import WeightBuffer

MATMUL, SQUASH, SOFTMAX, EMIT, ADD = range(5)  # in the order of hw.sequencer.units


class Accelerator(wiring.Component):
    """Images to classes without the host: an AXI4-Stream of packets in (`hw.isa.Target`), one of results out
    (`hw.emitter`), and one of weights in, which `w_request` asks for.

    The host loads program, biases and tables once, then for every batch its images and a START. A weight request
    (bits 31-0 the byte address from where the weights begin, bits 55-32 the number of array words) is answered on
    `w_axis` by these words, requests in order. One unit works at a time and owns the ports of the memories meanwhile;
    the loader owns them while no program runs. The counters count from START on and stand still while they are sent.
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
        })  # fmt: skip

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        p = self._parameters
        m.submodules.loader = loader = Loader(p)
        m.submodules.sequencer = sequencer = Sequencer(p)
        m.submodules.matmul = matmul = MatmulEngine(p)
        m.submodules.squash = squash = SquashUnit(p)
        m.submodules.softmax = softmax = SoftmaxUnit(p)
        m.submodules.emitter = emitter = Emitter(p)
        units: list[Any] = [matmul, squash, softmax, emitter]
        configured: list[tuple[Any, data.StructLayout]] = [(squash, isa.SQUASH), (softmax, isa.SOFTMAX)]
        if p.adder:
            m.submodules.add = add = AddUnit(p)
            units.append(add)
            configured.append((add, isa.ADD))
        m.submodules.activations = activations = VectorMemory(p.lanes, p.activation_bytes)
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
            sequencer.unit_done.eq(Cat(unit.done for unit in units)),
            matmul.config.as_value().eq(sequencer.descriptor),
            emitter.config.as_value().eq(sequencer.descriptor),
        ]
        for unit, layout in configured:
            fields = data.View(layout, sequencer.descriptor[: layout.size])
            for name in layout.members:
                if name != "opcode":
                    m.d.comb += getattr(unit, name).eq(fields[name])
        for index, unit in enumerate(units):
            m.d.comb += unit.start.eq(sequencer.unit_start[index])

        # The ports of the memories.
        m.d.comb += [
            matmul.weights_available.eq(weights.available),
            weights.next.eq(matmul.weights_next),
            matmul.weight_data.eq(weights.word),
            biases.read_address.eq(matmul.bias_address),
            matmul.bias_data.as_value().eq(biases.read_data),
            votes.read_address.eq(Mux(sequencer.active[EMIT], emitter.vote_address, matmul.vote_address)),
            matmul.vote_data.eq(votes.read_data),
            emitter.vote_data.eq(votes.read_data),
            votes.write_enable.eq(matmul.write_enable & matmul.write_votes),
            votes.write_pair.eq(matmul.write_pair),
            votes.write_lane.eq(matmul.write_lane),
            votes.write_address.eq(matmul.write_address),
            votes.write_data.as_value().eq(matmul.write_data.as_value()),
            votes.write_upper.as_value().eq(matmul.write_upper.as_value()),
        ]
        for unit in units:
            m.d.comb += unit.read_data.eq(activations.read_data)
        with m.Switch(sequencer.active):
            for index, unit in enumerate(units):
                with m.Case(1 << index):
                    m.d.comb += activations.read_address.eq(unit.read_address)
                    if unit is matmul:
                        m.d.comb += [
                            activations.write_enable.eq(matmul.write_enable & ~matmul.write_votes),
                            activations.write_address.eq(matmul.write_address),
                            activations.write_data.as_value().eq(matmul.write_data.as_value()),
                            activations.write_mask.eq(matmul.write_mask),
                        ]
                    elif unit is not emitter:
                        m.d.comb += [
                            activations.write_enable.eq(unit.write_enable),
                            activations.write_address.eq(unit.write_address),
                            activations.write_data.eq(unit.write_data),
                            activations.write_mask.eq(unit.write_mask),
                        ]
            with m.Default():
                m.d.comb += [
                    activations.write_enable.eq(loader.enable[isa.Target.ACTIVATIONS]),
                    activations.write_address.eq(loader.address),
                    activations.write_data.as_value().eq(loader.data[:32]),
                    activations.write_mask.eq(0b1111),
                ]

        # Counters stand still while they are sent.
        counters = Signal(data.ArrayLayout(64, len(isa.COUNTERS)))
        opcode = sequencer.descriptor[:4]
        counting = sequencer.running & ~(sequencer.active[EMIT] & (opcode == isa.Opcode.COUNTERS))
        rises = {
            "cycles": 1,
            "matmul_cycles": sequencer.active[MATMUL],
            "squash_cycles": sequencer.active[SQUASH],
            "softmax_cycles": sequencer.active[SOFTMAX],
            "add_cycles": sequencer.active[ADD] if p.adder else 0,
            "emit_cycles": sequencer.active[EMIT],
            "fetch_cycles": sequencer.fetching,
            "output_stalls": emitter.stalled,
            "weight_stalls": matmul.stalled,
            "busy_pe_cycles": matmul.busy_pes,
        }
        for index, name in enumerate(isa.COUNTERS):
            with m.If(loader.start):
                m.d.sync += counters[index].eq(0)
            with m.Elif(counting):
                m.d.sync += counters[index].eq(counters[index] + rises[name])
        m.d.comb += emitter.counters.eq(counters)
        return m
