"""The register map: the one source of the RTL (`hw.axi_lite`), docs/registers.md and the driver (`sim.driver`).

`python -m hw.registers` prints the page.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from amaranth.lib import data

IDENTITY = 0x5244434E  # "RDCN"
VERSION = 2
ADDRESS_BITS = 8  # of the AXI4-Lite bus


class Access(enum.Enum):
    READ = "read"
    WRITE = "read, write"
    ACT = "write one to act; reads as zero"
    CLEAR = "read; write one to clear"


class Cause(enum.IntEnum):
    """What STATUS.CAUSE says of an error."""

    NONE = 0
    COMMANDS_READ = 1  # the memory answered a read of commands with an error
    WEIGHTS_READ = 2  # ... a read of weights
    RESULTS_WRITE = 3  # ... a write of results
    RESULTS_OVERFLOW = 4  # the results are longer than RESULTS_SIZE
    ACTIVATIONS_READ = 5  # the memory answered a read of spilled activations with an error
    ACTIVATIONS_WRITE = 6  # ... a write of them


@dataclass(frozen=True)
class Field:
    name: str
    low: int  # lowest bit
    width: int
    meaning: str


@dataclass(frozen=True)
class Register:
    """A register of 32 bits, or of 64 as two words, the low one first."""

    name: str
    offset: int
    access: Access
    meaning: str
    fields: tuple[Field, ...] = ()
    width: int = 32

    @property
    def port(self) -> str:
        """The name of its port in the RTL."""
        return self.name.lower()

    @property
    def layout(self) -> data.FlexibleLayout:
        """Its fields by lower-case names, as far as they reach; a register without fields has one, `value`."""
        fields = self.fields or (Field("value", 0, self.width, ""),)
        size = max(field.low + field.width for field in fields)
        return data.FlexibleLayout(size, {f.name.lower(): data.Field(f.width, f.low) for f in fields})

    @property
    def words(self) -> int:
        return self.width // 32


_DONE = Field("DONE", 0, 1, "the run ended, and all its results are in memory")
_ERROR = Field("ERROR", 1, 1, "the run broke off, see STATUS")

MAP = (
    Register("IDENTITY", 0x00, Access.READ, f"{IDENTITY:#010x}"),
    Register("VERSION", 0x04, Access.READ, f"of this map: {VERSION}"),
    Register("SIZES", 0x08, Access.READ, "what the hardware was built for", (
        Field("BUS_BYTES", 0, 8, "bytes in a beat of m_axi; addresses below are multiples of it"),
        Field("ADDRESS_BITS", 8, 8, "width of m_axi addresses"),
        Field("WORD_BYTES", 16, 16, "bytes in a word of weights: rows x columns of the array"),
    )),
    Register("CONTROL", 0x0C, Access.ACT, "", (
        Field("START", 0, 1, "begin a run; ignored while BUSY, and after an ERROR until RESET"),
        Field("RESET", 1, 1, "end the bursts under way, then reset the accelerator and its DMA, but no register that "
                             "the host writes; what the accelerator's memories hold stays. BUSY until done"),
    )),
    Register("STATUS", 0x10, Access.READ, "", (
        Field("BUSY", 0, 1, "a run or a reset is under way"),
        Field("DONE", 1, 1, "the last run ended well"),
        Field("ERROR", 2, 1, "a run broke off; the way on is RESET"),
        Field("CAUSE", 4, 4, ", ".join(f"{cause.value} {cause.name}" for cause in Cause)),
        Field("RESPONSE", 8, 2, "the memory's response, where it was the cause: 2 SLVERR, 3 DECERR"),
    )),
    Register("IRQ_STATUS", 0x14, Access.CLEAR, "what has happened since it was cleared", (_DONE, _ERROR)),
    Register("IRQ_ENABLE", 0x18, Access.WRITE, "`irq` is high while a bit is set here and in IRQ_STATUS",
             (_DONE, _ERROR)),
    Register("COMMANDS_BEATS", 0x1C, Access.WRITE, "length of the commands, in 32-bit words"),
    Register("COMMANDS_ADDRESS", 0x20, Access.WRITE, "where the commands lie: packets for `s_axis`", width=64),
    Register("WEIGHTS_BASE", 0x28, Access.WRITE, "where the weights lie", width=64),
    Register("RESULTS_ADDRESS", 0x30, Access.WRITE, "where the packets of `m_axis` go, one after the other", width=64),
    Register("RESULTS_SIZE", 0x38, Access.WRITE, "room for them in bytes, a multiple of 4; nothing is written beyond"),
    Register("RESULTS_WRITTEN", 0x3C, Access.READ, "bytes of results; they are in memory when DONE is set"),
    Register("ERROR_ADDRESS", 0x40, Access.READ, "first byte of the burst that failed", width=64),
    Register("CYCLES", 0x48, Access.READ, "length of the last run, in cycles", width=64),
    Register("BYTES_READ", 0x50, Access.READ, "moved over m_axi in it, whole beats", width=64),
    Register("BYTES_WRITTEN", 0x58, Access.READ, "the same, written", width=64),
    Register("COMMAND_STALLS", 0x60, Access.READ, "cycles in which the accelerator waited for commands", width=64),
    Register("WEIGHT_STALLS", 0x68, Access.READ, "cycles in which it waited for weights it had asked for", width=64),
    Register("RESULT_STALLS", 0x70, Access.READ, "cycles in which it waited to hand over results", width=64),
    Register("ACTIVATIONS_BASE", 0x78, Access.WRITE, "where there is room for activations that are spilled: "
             "`spill_bytes` in accelerator.json; zero where the accelerator spills none", width=64),
)  # fmt: skip
REGISTERS = {register.name: register for register in MAP}
BUS_ADDRESSES = ("COMMANDS_ADDRESS", "WEIGHTS_BASE", "RESULTS_ADDRESS", "ACTIVATIONS_BASE")
COUNTERS = ("CYCLES", "BYTES_READ", "BYTES_WRITTEN", "COMMAND_STALLS", "WEIGHT_STALLS", "RESULT_STALLS")


def page() -> str:
    """docs/registers.md."""
    lines = [
        "# Registers",
        "",
        "The accelerator in a system (`hw/system.py`) is driven by these registers on `s_axi`, an AXI4-Lite slave of",
        "32 bits. This page is printed by `python -m hw.registers`.",
        "",
        f"Offsets are in bytes, {1 << ADDRESS_BITS} bytes in all. A register of 64 bits is two words, the low one",
        "first; read counters while no run is under way. What can be written is zero after reset. Bits that are not",
        "named read as zero, as do those of an address that the bus does not have. Byte strobes are kept. Writing what",
        "can only be read does nothing; an offset without a register answers SLVERR.",
        "",
        "| offset | register | bits | access | |",
        "|---|---|---|---|---|",
    ]
    for register in MAP:
        lines.append(
            f"| {register.offset:#04x} | {register.name} | {register.width} | {register.access.value} | "
            f"{register.meaning} |"
        )
        for field in register.fields:
            high = field.low + field.width - 1
            bits = f"{field.low}" if field.width == 1 else f"{high}-{field.low}"
            lines.append(f"| | {register.name}.{field.name} | {bits} | | {field.meaning} |")
    lines += [
        "",
        "## A run",
        "",
        "1. Put commands and weights into memory, and make room for the results and for spilled activations. Addresses",
        "   are multiples of SIZES.BUS_BYTES. Commands are packets as in [hardware.md](hardware.md#streams), one after",
        "   the other: the program's, or for one or more images the codes and a START each.",
        "2. Write COMMANDS_ADDRESS, COMMANDS_BEATS, WEIGHTS_BASE, RESULTS_ADDRESS, RESULTS_SIZE, ACTIVATIONS_BASE,",
        "   IRQ_ENABLE; then CONTROL.START.",
        "3. Wait for `irq`, or read STATUS until BUSY falls. Clear IRQ_STATUS.",
        "4. RESULTS_WRITTEN bytes of packets lie at RESULTS_ADDRESS. Each begins with its header, which says how many",
        "   bytes follow, filled up to whole words; the next packet comes right after it.",
        "",
        "After an error no further burst begins, and data that came with an error never reach the accelerator. Read",
        "STATUS and ERROR_ADDRESS, then write CONTROL.RESET and wait until BUSY falls.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
