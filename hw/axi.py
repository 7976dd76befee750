"""AXI4 and AXI4-Lite: the payload of each channel as a stream, and the usual names of the ports outside."""

from __future__ import annotations

import enum
from typing import Any

from amaranth import Signal
from amaranth.hdl import ValueCastable
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

BOUNDARY = 4096  # bytes that no burst may cross
ID = 2  # bits of a transaction's number


class Response(enum.IntEnum):
    OKAY = 0
    EXCLUSIVE = 1
    SLAVE_ERROR = 2
    DECODE_ERROR = 3


def burst_address(address_bits: int) -> data.StructLayout:
    """Payload of AR and AW: a burst of `len` + 1 whole beats at rising addresses."""
    return data.StructLayout({"id": ID, "addr": address_bits, "len": 8})


def read_beat(bus_bits: int) -> data.StructLayout:
    """Payload of R."""
    return data.StructLayout({"id": ID, "data": bus_bits, "resp": 2, "last": 1})


def write_beat(bus_bits: int) -> data.StructLayout:
    """Payload of W."""
    return data.StructLayout({"data": bus_bits, "strb": bus_bits // 8, "last": 1})


def write_response() -> data.StructLayout:
    """Payload of B."""
    return data.StructLayout({"id": ID, "resp": 2})


def master_channels(address_bits: int, bus_bits: int) -> dict[str, wiring.Member]:
    """The five channels of an AXI4 master."""
    return {
        "ar": Out(stream.Signature(burst_address(address_bits))),
        "r": In(stream.Signature(read_beat(bus_bits))),
        "aw": Out(stream.Signature(burst_address(address_bits))),
        "w": Out(stream.Signature(write_beat(bus_bits))),
        "b": In(stream.Signature(write_response())),
    }


def master_constants(bus_bits: int) -> dict[str, tuple[int, int]]:
    """What AR and AW say in every burst, as (bits, value): whole beats, INCR, normal memory, unprivileged and secure
    data.
    """
    return {"size": (3, (bus_bits // 8).bit_length() - 1), "burst": (2, 0b01), "cache": (4, 0b0011), "prot": (3, 0)}


def lite_channels(address_bits: int) -> dict[str, wiring.Member]:
    """The five channels of an AXI4-Lite slave of 32 bits."""
    return {
        "aw": In(stream.Signature(data.StructLayout({"addr": address_bits}))),
        "w": In(stream.Signature(data.StructLayout({"data": 32, "strb": 4}))),
        "b": Out(stream.Signature(data.StructLayout({"resp": 2}))),
        "ar": In(stream.Signature(data.StructLayout({"addr": address_bits}))),
        "r": Out(stream.Signature(data.StructLayout({"data": 32, "resp": 2}))),
    }


def flat_ports(prefix: str, channels: dict[str, wiring.Member]) -> dict[str, wiring.Member]:
    """The ports of `channels` by their usual names: prefix_arvalid, prefix_araddr ..."""
    ports: dict[str, wiring.Member] = {}
    for channel, member in channels.items():
        members = member.signature.members
        ports[f"{prefix}_{channel}valid"] = member.flow(1)
        ports[f"{prefix}_{channel}ready"] = member.flow.flip()(1)
        for field, shape in members["payload"].shape.members.items():
            ports[f"{prefix}_{channel}{field}"] = member.flow(shape)
    return ports


def connect_ports(m: Any, outer: Any, prefix: str, inner: Any, channels: dict[str, wiring.Member]) -> None:
    """Join the flat ports of the component `outer` to the streams of the same channels of `inner`, inside `outer`."""

    def join(target: Signal | ValueCastable, source: Signal | ValueCastable) -> None:
        m.d.comb += target.eq(source)  # type: ignore[union-attr]

    for channel, member in channels.items():
        port = getattr(inner, channel)
        name = f"{prefix}_{channel}"
        pairs = [(getattr(outer, f"{name}valid"), port.valid)]
        pairs += [
            (getattr(outer, f"{name}{field}"), port.payload[field])
            for field in member.signature.members["payload"].shape.members
        ]
        for outside, inside in pairs:
            join(*((outside, inside) if member.flow is Out else (inside, outside)))
        outside, inside = getattr(outer, f"{name}ready"), port.ready
        join(*((inside, outside) if member.flow is Out else (outside, inside)))
