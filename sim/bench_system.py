"""cocotb bench of the accelerator in a system: the driver, registers by AXI4-Lite, a memory behind AXI4."""

from __future__ import annotations

from cocotbext.axi import AxiLiteMaster  # type: ignore[import-untyped]  # it has no types

from model.errors import RedcaneError


class LiteBus:
    """The register bus of `sim.driver.Driver` on cocotbext-axi's master."""

    def __init__(self, master: AxiLiteMaster) -> None:
        self._master = master

    async def read(self, offset: int) -> int:
        answer = await self._master.read(offset, 4)
        if answer.resp:
            raise RedcaneError(f"reading the register at {offset:#x}: {answer.resp!r}")
        return int.from_bytes(answer.data, "little")

    async def write(self, offset: int, value: int) -> None:
        answer = await self._master.write(offset, value.to_bytes(4, "little"))
        if answer.resp:
            raise RedcaneError(f"writing the register at {offset:#x}: {answer.resp!r}")
