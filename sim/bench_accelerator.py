"""cocotb bench of the whole accelerator: images in over AXI4-Stream, weights on request, every packet that comes out
kept for the scoreboard.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, FallingEdge, RisingEdge, SimTimeoutError, with_timeout
from cocotbext.axi import (  # type: ignore[import-untyped]  # it has no types
    AxiStreamBus,
    AxiStreamFrame,
    AxiStreamSink,
    AxiStreamSource,
)
from numpy.typing import NDArray

from sim.bench import inputs, report

CLOCK_NS = 10


def pauses(seed: int, share: float) -> Iterator[bool]:
    """Cycle by cycle, whether a stream's side holds back: bursts of both, `share` of the time in all."""
    choose = random.Random(seed)
    while True:
        yield from [choose.random() < share] * choose.randint(1, 6)


async def serve_weights(dut: Any, memory: NDArray[np.uint8], holds: Iterator[bool]) -> None:
    """Answer every weight request with its words out of `memory`; `holds` says, beat by beat, whether to pause before.

    Python works once a beat, not once a cycle: while the buffer is full it waits for room.
    """
    beat_bytes, word_bytes = len(dut.w_axis_tdata) // 8, inputs()["word_bytes"]
    dut.w_axis_tvalid.value = 0
    dut.w_request_tready.value = 1
    while True:
        await FallingEdge(dut.clk)
        if not (dut.w_request_tvalid.value.is_resolvable and int(dut.w_request_tvalid.value)):
            await RisingEdge(dut.w_request_tvalid)
            continue
        request = dut.w_request_tdata.value.to_unsigned()
        await RisingEdge(dut.clk)  # which takes it
        dut.w_request_tready.value = 0
        first, size = request & 0xFFFFFFFF, (request >> 32) * word_bytes
        for start in range(first, first + size, beat_bytes):
            await FallingEdge(dut.clk)
            if next(holds):
                dut.w_axis_tvalid.value = 0
                await FallingEdge(dut.clk)
            dut.w_axis_tdata.value = int.from_bytes(memory[start : start + beat_bytes].tobytes(), "little")
            dut.w_axis_tvalid.value = 1
            if not int(dut.w_axis_tready.value):
                await RisingEdge(dut.w_axis_tready)
            await RisingEdge(dut.clk)
        await FallingEdge(dut.clk)
        dut.w_axis_tvalid.value = 0
        dut.w_request_tready.value = 1


@cocotb.test()
async def images(dut: Any) -> None:
    """Send the program, then each image and a START; keep the frames. Inputs: see sim.verify."""
    job = inputs()
    beats = np.load(job["beats"], allow_pickle=False)  # (N,) uint32, cut into transfers by `cuts`
    transfers = np.split(beats, job["cuts"])
    weights = np.fromfile(job["weights"], np.uint8)
    Clock(dut.clk, CLOCK_NS, "ns").start()
    source = AxiStreamSource(AxiStreamBus.from_prefix(dut, "s_axis"), dut.clk, dut.rst)
    sink = AxiStreamSink(AxiStreamBus.from_prefix(dut, "m_axis"), dut.clk, dut.rst)
    if job["back_pressure"] > 0:
        source.set_pause_generator(pauses(job["seed"], job["back_pressure"]))
        sink.set_pause_generator(pauses(job["seed"] + 1, job["back_pressure"]))
    dut.rst.value = 1
    await ClockCycles(dut.clk, 4)
    dut.rst.value = 0
    cocotb.start_soon(serve_weights(dut, weights, pauses(job["seed"] + 2, job["back_pressure"])))

    frames: list[bytes] = []
    for transfer, expected in zip(transfers, job["frames"], strict=True):
        await source.send(AxiStreamFrame(transfer.astype("<u4").tobytes()))
        for _ in range(expected):
            try:
                frame = await with_timeout(sink.recv(), job["timeout_cycles"] * CLOCK_NS, "ns")
            except SimTimeoutError:
                raise AssertionError(
                    f"the accelerator sent nothing for {job['timeout_cycles']} cycles after {len(frames)} packets"
                ) from None
            frames.append(bytes(frame.tdata))
        if expected:
            with open(job["done"], "ab") as done:  # one byte a run
                done.write(b".")
    await source.wait()
    beats = np.frombuffer(b"".join(frames), "<u4")
    np.savez(job["received"], beats=beats, lengths=np.array([len(frame) // 4 for frame in frames]))
    report({"frames": len(frames)})
