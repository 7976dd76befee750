"""The activation memory: as many bytes at once as the array has lanes, from any byte address."""

from __future__ import annotations

from amaranth import Cat, Module, Mux, Signal
from amaranth.hdl import Value
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2


def rotate_right(m: Module, value: Value, amount: Value, unit: int) -> Value:
    """`value` rotated right by `amount` units of `unit` bits: a barrel of multiplexers, one stage a bit of `amount`."""
    for stage, bit in enumerate(amount):
        rotated = Signal(len(value), name=f"rotated_{unit << stage}")
        m.d.comb += rotated.eq(Mux(bit, value.rotate_right(unit << stage), value))
        value = rotated
    return value


class Bank(wiring.Component):
    """A memory of `depth` words of `width` bits, one read and one write port, in a module of its own.

    Synthesis may take that module for a macro: nothing else is in it, and no content is there before it is written.
    `read_data` is valid one cycle after `read_address`; a read in the cycle of the write sees the old word.
    """

    read_address: Signal
    read_data: Signal
    write_enable: Signal
    write_address: Signal
    write_data: Signal

    def __init__(self, width: int, depth: int) -> None:
        self.width, self.depth = width, depth
        super().__init__({
            "read_address": In(range(depth)), "read_data": Out(width),
            "write_enable": In(1), "write_address": In(range(depth)), "write_data": In(width),
        })  # fmt: skip

    def elaborate(self, platform: object) -> Module:
        m = Module()
        memory: Memory[int, Value] = Memory(shape=self.width, depth=self.depth, init=[])
        m.submodules.memory = memory
        read, write = memory.read_port(), memory.write_port()
        m.d.comb += [
            read.addr.eq(self.read_address),
            self.read_data.eq(read.data),
            write.addr.eq(self.write_address),
            write.data.eq(self.write_data),
            write.en.eq(self.write_enable),
        ]
        return m


class VectorMemory(wiring.Component):
    """`lanes` bytes a cycle in and out, each vector at any byte address, on `lanes` banks one byte wide.

    Byte `address` lies in bank `address % lanes`, so the bytes address ... address + lanes - 1 always lie in different
    banks: the first few banks are addressed one word further, and the vector is rotated on its way. Addresses wrap at
    `depth`, which is `bytes` rounded up to a power of two (and at least two words a bank).

    With `jumps` the lanes read may lie apart: lane l comes from `read_address` + l, and `read_jump` further for each of
    the masks `read_behind` that has its bit; a mask holds no lane that the one before it lacks. The jump is a multiple
    of `lanes`, so the lanes stay in different banks (`hw.packing`).

    `read_data` is valid one cycle after `read_address` was driven. Only lanes whose bit of `write_mask` is set are
    written. A read sees what earlier cycles wrote; in the very cycle of the write it still sees the old byte.

    `lanes` is a power of two. Each bank is a module of its own, `bank_0` ..., which synthesis may take for a macro.
    """

    read_address: Signal
    read_jump: Signal
    read_behind: data.View
    read_data: data.View
    write_enable: Signal
    write_address: Signal
    write_data: data.View
    write_mask: Signal

    def __init__(self, lanes: int, bytes: int, jumps: int = 0) -> None:
        self.lanes, self._jumps = lanes, jumps
        self.depth = 1 << ceil_log2(max(bytes, 2 * lanes))
        apart = {"read_jump": In(ceil_log2(self.depth)), "read_behind": In(data.ArrayLayout(lanes, jumps))}
        super().__init__((apart if jumps else {}) | {
            "read_address": In(ceil_log2(self.depth)),
            "read_data": Out(data.ArrayLayout(8, lanes)),
            "write_enable": In(1),
            "write_address": In(ceil_log2(self.depth)),
            "write_data": In(data.ArrayLayout(8, lanes)),
            "write_mask": In(lanes),
        })  # fmt: skip

    def elaborate(self, platform: object) -> Module:
        m = Module()
        select = ceil_log2(self.lanes)
        words = self.depth // self.lanes
        read_offset = Signal(select)
        m.d.sync += read_offset.eq(self.read_address[:select])

        # Rotating left by the offset is rotating right by minus the offset.
        backwards = (-self.write_address[:select]).as_unsigned()[:select]
        write_data = rotate_right(m, self.write_data.as_value(), backwards, 8)
        write_mask = rotate_right(m, self.write_mask, backwards, 1)
        read_backwards = (-self.read_address[:select]).as_unsigned()[:select]
        behind = [rotate_right(m, self.read_behind[k], read_backwards, 1) for k in range(self._jumps)]
        further = []  # the vector's words behind the first, second, ... jump
        for k in range(self._jumps):
            further.append(word := Signal(range(words), name=f"word_{k + 1}"))
            m.d.comb += word.eq(self.read_address[select:] + (k + 1) * self.read_jump[select:])

        read_bytes = []
        for bank in range(self.lanes):
            m.submodules[f"bank_{bank}"] = memory = Bank(8, words)
            read_word: Value = self.read_address[select:]
            for mask, word in zip(behind, further, strict=True):
                read_word = Mux(mask[bank], word, read_word)
            m.d.comb += memory.read_address.eq(read_word + (bank < self.read_address[:select]))
            write_word = self.write_address[select:]
            m.d.comb += memory.write_address.eq(write_word + (bank < self.write_address[:select]))
            m.d.comb += memory.write_data.eq(write_data[8 * bank : 8 * bank + 8])
            m.d.comb += memory.write_enable.eq(self.write_enable & write_mask[bank])
            read_bytes.append(memory.read_data)
        m.d.comb += self.read_data.eq(rotate_right(m, Cat(*read_bytes), read_offset, 8))
        return m
