"""The driver of the accelerator in a system: registers by name, runs, and the packets of their results.

It knows the bus only as `RegisterBus`, so the same code drives a simulation and a board.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from hw import registers
from hw.registers import REGISTERS, Cause
from model.errors import RedcaneError


class RegisterBus(Protocol):
    """Words of 32 bits at byte offsets of the register map."""

    async def read(self, offset: int) -> int: ...
    async def write(self, offset: int, value: int) -> None: ...


class RunFailed(RedcaneError):
    """The accelerator broke a run off."""


@dataclass(frozen=True)
class Run:
    """Where a run finds its commands and weights and puts its results: byte addresses, and sizes as named."""

    commands_address: int
    commands_beats: int  # 32-bit words
    weights_base: int
    results_address: int
    results_size: int  # bytes
    activations_base: int = 0  # of those that the accelerator spills


class Driver:
    """One accelerator on `bus`. Call `identify` first."""

    def __init__(self, bus: RegisterBus) -> None:
        self._bus = bus
        self.sizes: dict[str, int] = {}  # the fields of SIZES

    async def read(self, name: str) -> int:
        """A register of the map, both words of it if it has two."""
        register = REGISTERS[name]
        words = [await self._bus.read(register.offset + 4 * i) for i in range(register.words)]
        return sum(word << (32 * i) for i, word in enumerate(words))

    async def write(self, name: str, value: int) -> None:
        register = REGISTERS[name]
        for i in range(register.words):
            await self._bus.write(register.offset + 4 * i, (value >> (32 * i)) & 0xFFFFFFFF)

    async def fields(self, name: str) -> dict[str, int]:
        """The fields of a register by their lower-case names."""
        value = await self.read(name)
        return {f.name.lower(): (value >> f.low) & ((1 << f.width) - 1) for f in REGISTERS[name].fields}

    async def identify(self) -> dict[str, int]:
        """The sizes of the hardware. Raises RedcaneError when something else answers, or another version."""
        identity, version = await self.read("IDENTITY"), await self.read("VERSION")
        if identity != registers.IDENTITY or version != registers.VERSION:
            raise RedcaneError(
                f"no accelerator of register map {registers.VERSION} answers: identity {identity:#x}, version {version}"
            )
        self.sizes = await self.fields("SIZES")
        return self.sizes

    async def start(self, run: Run) -> None:
        """Set the registers and start, with the interrupt enabled.

        Raises RedcaneError for an address or a size that the hardware cannot have.
        """
        unit, bits = self.sizes["bus_bytes"], self.sizes["address_bits"]
        for name in registers.BUS_ADDRESSES:
            address = getattr(run, name.lower())
            if address % unit or not 0 <= address < 1 << bits:
                raise RedcaneError(f"{name} {address:#x}: take a multiple of {unit} within {bits} bits")
            await self.write(name, address)
        if run.results_size % 4 or not 0 <= run.results_size < 1 << 32:
            raise RedcaneError(f"RESULTS_SIZE {run.results_size}: take a multiple of 4 within 32 bits")
        await self.write("RESULTS_SIZE", run.results_size)
        await self.write("COMMANDS_BEATS", run.commands_beats)
        await self.write("IRQ_ENABLE", _bits("IRQ_ENABLE", "DONE", "ERROR"))
        await self.write("CONTROL", _bits("CONTROL", "START"))

    async def finish(self) -> int:
        """Acknowledge the interrupt of a run that has ended; the bytes of its results.

        Raises RunFailed when it broke off, after which only `reset` helps.
        """
        await self.write("IRQ_STATUS", _bits("IRQ_STATUS", "DONE", "ERROR"))
        status = await self.fields("STATUS")
        if status["error"]:
            cause, address = Cause(status["cause"]), await self.read("ERROR_ADDRESS")
            where = "" if cause == Cause.RESULTS_OVERFLOW else f" at {address:#x} (response {status['response']})"
            raise RunFailed(f"the accelerator broke the run off: {cause.name}{where}")
        return await self.read("RESULTS_WRITTEN")

    async def run(self, run: Run, interrupt: Callable[[], Awaitable[Any]]) -> int:
        """`start`, wait for `interrupt`, `finish`."""
        await self.start(run)
        await interrupt()
        return await self.finish()

    async def reset(self) -> None:
        """End what is under way, reset accelerator and DMA, forget errors and interrupts."""
        await self.write("CONTROL", _bits("CONTROL", "RESET"))
        while (await self.fields("STATUS"))["busy"]:
            pass
        await self.write("IRQ_STATUS", _bits("IRQ_STATUS", "DONE", "ERROR"))

    async def counters(self) -> dict[str, int]:
        """The counters of the last run by their lower-case names."""
        return {name.lower(): await self.read(name) for name in registers.COUNTERS}


def packets(results: bytes) -> list[tuple[int, bytes]]:
    """Results as they lie in memory, as (tag, payload) of each packet.

    Raises RedcaneError when they end within a packet.
    """
    found: list[tuple[int, bytes]] = []
    position = 0
    while position < len(results):
        header = int.from_bytes(results[position : position + 4], "little")
        size = header & 0xFFFFFF
        payload = results[position + 4 : position + 4 + size]
        position += 4 + -(-size // 4) * 4
        if position > len(results):
            raise RedcaneError(f"results: packet {len(found)} of {size} bytes ends beyond the {len(results)} there")
        found.append((header >> 24, payload))
    return found


def _bits(register: str, *names: str) -> int:
    return sum(1 << field.low for field in REGISTERS[register].fields if field.name in names)
