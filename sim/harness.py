"""A unit that works on the activation memory, together with that memory: what its bench simulates."""

from __future__ import annotations

from amaranth import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.add import AddUnit
from hw.memory import VectorMemory
from hw.parameters import Parameters
from hw.softmax import SoftmaxUnit
from hw.squash import SquashUnit

_MEMORY = {"read_address", "read_data", "write_enable", "write_address", "write_data", "write_mask"}


class Harness(wiring.Component):
    """`unit` and a VectorMemory; all other ports of the unit are ports of the harness.

    While `host` is 1, the memory's ports belong to the bench: it writes a whole vector a cycle with `host_write`, and
    sees at `host_data` what `host_address` named in the cycle before. `wrote` counts the writes of the unit.
    """

    host: Signal
    host_write: Signal
    host_address: Signal
    host_in: Signal
    host_data: Signal
    wrote: Signal

    def __init__(self, unit: SquashUnit | SoftmaxUnit | AddUnit, parameters: Parameters) -> None:
        self.unit = unit
        self.memory = VectorMemory(parameters.lanes, parameters.activation_bytes)
        members = self.memory.signature.members
        address, word = members["read_address"].shape, 8 * parameters.lanes
        super().__init__(
            {name: member for name, member in unit.signature.members.items() if name not in _MEMORY}
            | {"host": In(1), "host_write": In(1), "host_address": In(address), "host_in": In(word)}
            | {"host_data": Out(word), "wrote": Out(32)}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.unit, m.submodules.memory = unit, memory = self.unit, self.memory
        for name, member in unit.signature.members.items():
            if name not in _MEMORY:
                outer, inner = getattr(self, name), getattr(unit, name)
                m.d.comb += outer.eq(inner) if member.flow == Out else inner.eq(outer)
        m.d.comb += [
            unit.read_data.eq(memory.read_data),
            self.host_data.eq(memory.read_data.as_value()),
            memory.read_address.eq(Mux(self.host, self.host_address, unit.read_address)),
            memory.write_enable.eq(Mux(self.host, self.host_write, unit.write_enable)),
            memory.write_address.eq(Mux(self.host, self.host_address, unit.write_address)),
            memory.write_data.as_value().eq(Mux(self.host, self.host_in, unit.write_data.as_value())),
            memory.write_mask.eq(Mux(self.host, -1, unit.write_mask)),
        ]
        m.d.sync += self.wrote.eq(self.wrote + unit.write_enable)
        return m
