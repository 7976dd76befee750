"""A flat netlist of gates, as Yosys writes it in JSON, evaluated for all 65,536 operand pairs at once.

Every signal is a pair of bit vectors (can be 1, can be 0), one bit an operand pair, so that an undefined value is
followed to the outputs exactly: an x that no operand pair lets through does no harm, and one that reaches an output
is found together with its operands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.errors import RedcaneError

PAIRS = 1 << 16
_WORDS = PAIRS // 64
_MOST_GATES = 100_000
_WORDS_AT_ONCE = 1 << 22  # 32 MiB a rail; a large netlist is evaluated for fewer operand pairs at a time

Words = NDArray[np.uint64]


class Rails(NamedTuple):
    """A signal: `one` has a bit set where it can be 1, `zero` where it can be 0, both where it is undefined."""

    one: Words
    zero: Words


class Ports(NamedTuple):
    """The names of a multiplier's ports: operand A, operand B, product."""

    a: str
    b: str
    out: str


def _inv(x: Rails) -> Rails:
    return Rails(x.zero, x.one)


def _and(x: Rails, y: Rails) -> Rails:
    return Rails(x.one & y.one, x.zero | y.zero)


def _or(x: Rails, y: Rails) -> Rails:
    return Rails(x.one | y.one, x.zero & y.zero)


def _xor(x: Rails, y: Rails) -> Rails:
    return Rails(x.one & y.zero | x.zero & y.one, x.one & y.one | x.zero & y.zero)


def _mux(x: Rails, y: Rails, select: Rails) -> Rails:
    return Rails(select.zero & x.one | select.one & y.one, select.zero & x.zero | select.one & y.zero)


# Yosys' internal gates: input ports in order, function; the output port is Y.
_GATES: dict[str, tuple[str, Callable[..., Rails]]] = {
    "$_BUF_": ("A", lambda a: a),
    "$_NOT_": ("A", _inv),
    "$_AND_": ("AB", _and),
    "$_NAND_": ("AB", lambda a, b: _inv(_and(a, b))),
    "$_ANDNOT_": ("AB", lambda a, b: _and(a, _inv(b))),
    "$_OR_": ("AB", _or),
    "$_NOR_": ("AB", lambda a, b: _inv(_or(a, b))),
    "$_ORNOT_": ("AB", lambda a, b: _or(a, _inv(b))),
    "$_XOR_": ("AB", _xor),
    "$_XNOR_": ("AB", lambda a, b: _inv(_xor(a, b))),
    "$_MUX_": ("ABS", _mux),
    "$_NMUX_": ("ABS", lambda a, b, s: _inv(_mux(a, b, s))),
    "$_AOI3_": ("ABC", lambda a, b, c: _inv(_or(_and(a, b), c))),
    "$_OAI3_": ("ABC", lambda a, b, c: _inv(_and(_or(a, b), c))),
    "$_AOI4_": ("ABCD", lambda a, b, c, d: _inv(_or(_and(a, b), _and(c, d)))),
    "$_OAI4_": ("ABCD", lambda a, b, c, d: _inv(_and(_or(a, b), _or(c, d)))),
}

_NOT_LOGIC = (
    (("$_DLATCH", "$dlatch", "$_SR_", "$sr", "$adlatch"), "a latch (some input leaves a value unassigned)"),
    (("$_DFF", "$_SDFF", "$_ALDFF", "$_FF", "$dff", "$sdff", "$adff", "$aldff", "$ff"), "a flip-flop"),
    (("$mem",), "a memory"),
    (("$_TBUF", "$tribuf"), "a tri-state driver"),
)


class Gate(NamedTuple):
    """A gate: its function, the nets at its inputs (int, or "0", "1", "x", "z"), the net that it drives."""

    function: Callable[..., Rails]
    inputs: tuple[int | str, ...]
    output: int


def multiplier_ports(module: dict[str, Any]) -> Ports:
    """The ports of an 8 x 8 multiplier, from a module in Yosys' JSON.

    Two 8-bit inputs are A and B in the order in which they are declared, unless they are called A and B; the one
    16-bit output may have any name. Raises RedcaneError, saying which ports there are, for anything else.
    """
    ports = module["ports"]
    found = ", ".join(f"{p['direction']} {name} ({len(p['bits'])} bit)" for name, p in list(ports.items())[:8])
    inputs = [name for name, p in ports.items() if p["direction"] == "input" and len(p["bits"]) == 8]
    outputs = [name for name, p in ports.items() if p["direction"] == "output" and len(p["bits"]) == 16]
    if len(ports) != 3 or len(inputs) != 2 or len(outputs) != 1:
        raise RedcaneError("an 8x8 multiplier has two 8-bit inputs and one 16-bit output, but the ports are "
                           + (found or "none"))
    if {name.upper() for name in inputs} == {"A", "B"}:
        inputs.sort(key=str.upper)
    return Ports(*inputs, *outputs)


def has_signed_ports(module: dict[str, Any]) -> bool:
    """Whether the ports are declared `signed`; RedcaneError where some are and some are not."""
    declared = {bool(port.get("signed")) for port in module["ports"].values()}
    if len(declared) > 1:
        raise RedcaneError("some of its ports are declared signed and some are not: declare all alike")
    return declared == {True}


def product_table(module: dict[str, Any]) -> NDArray[np.uint16]:
    """The products of a flat netlist of gates as words of 16 bits, uint16 [256, 256], indexed [a, b].

    Raises RedcaneError for what is not combinational (latch, flip-flop, memory, loop), for cells that are not gates,
    for the wrong ports, for nets that two gates drive, and for outputs that are undefined for some operands.
    """
    drivers = _drivers(module)  # before the ports: a clock among them is better told as the flip-flop that it drives
    ports = multiplier_ports(module)
    product = np.zeros(PAIRS, np.uint16)
    for k, (one, zero) in enumerate(_signals(module, ports, drivers, module["ports"][ports.out]["bits"])):
        undefined = np.flatnonzero(one & zero)
        if undefined.size:
            word = int(undefined[0])
            pair = 64 * word + int(np.flatnonzero(_unpack((one & zero)[word:word + 1]))[0])
            raise RedcaneError(f"bit {k} of {ports.out} is undefined for {ports.a} = {pair >> 8} and "
                               f"{ports.b} = {pair & 255}: a wire is not driven, or an x is assigned")
        product |= _unpack(one).astype(np.uint16) << k
    return product.reshape(256, 256)


def signal_words(module: dict[str, Any], nets: Sequence[int]) -> NDArray[np.uint64]:
    """Up to 64 nets of a multiplier's netlist for all operand pairs, uint64 [65536], indexed 256 a + b: bit k is net k.

    Where a net is undefined it counts as 1. Raises RedcaneError as `product_table` does, but for undefined nets.
    """
    words = np.zeros(PAIRS, np.uint64)
    for k, signal in enumerate(_signals(module, multiplier_ports(module), _drivers(module), nets)):
        words |= _unpack(signal.one).astype(np.uint64) << np.uint64(k)
    return words


def _signals(module: dict[str, Any], ports: Ports, drivers: dict[int, Gate], nets: Sequence[int | str]) -> list[Rails]:
    """What nets of a multiplier's netlist are for all operand pairs."""
    bits = {name: module["ports"][name]["bits"] for name in ports[:2]}
    sources = {net for port in bits.values() for net in port}
    if any(net in drivers or isinstance(net, str) for net in sources):
        raise RedcaneError("one of its gates drives an input port")
    order = _in_order(drivers, nets, sources)
    pairs = np.arange(PAIRS)
    operands = {net: _pack(pairs >> k + shift & 1) for name, shift in ((ports.a, 8), (ports.b, 0))
                for k, net in enumerate(bits[name])}
    step = min(_WORDS, max(16, _WORDS_AT_ONCE // (len(order) + 1)))
    parts = [_evaluate(order, nets, {net: words[start:start + step] for net, words in operands.items()})
             for start in range(0, _WORDS, step)]
    return [Rails(*(np.concatenate(rail) for rail in zip(*(part[k] for part in parts), strict=True)))
            for k in range(len(nets))]


def _pack(bits: NDArray[Any]) -> Words:
    return np.packbits(bits.astype(np.uint8), bitorder="little").view("<u8")


def _unpack(words: Words) -> NDArray[np.uint8]:
    return np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")


def _drivers(module: dict[str, Any]) -> dict[int, Gate]:
    """The gate that drives each net."""
    drivers: dict[int, Gate] = {}
    for cell in module["cells"].values():
        kind = cell["type"]
        if kind not in _GATES:
            what = next((what for starts, what in _NOT_LOGIC if kind.startswith(starts)),
                        f"a cell of unknown function, `{kind[:60]}`")
            raise RedcaneError(f"it holds {what}, and a multiplier is purely combinational logic")
        inputs, function = _GATES[kind]
        connections = cell["connections"]
        output = connections["Y"][0]
        if isinstance(output, str) or output in drivers:
            raise RedcaneError("two gates, or a gate and a constant, drive the same wire")
        drivers[output] = Gate(function, tuple(connections[port][0] for port in inputs), output)
        if len(drivers) > _MOST_GATES:
            raise RedcaneError(f"it has more than {_MOST_GATES} gates")
    return drivers


def _in_order(drivers: dict[int, Gate], outputs: Iterable[int | str], sources: set[int]) -> list[Gate]:
    """The gates that the outputs depend on, each after those that drive it."""
    order: list[Gate] = []
    done: set[int] = set(sources)
    open_: set[int] = set()
    stack: list[int | str] = list(outputs)
    while stack:
        net = stack.pop()
        if isinstance(net, str) or net in done or net not in drivers:
            continue
        gate = drivers[net]
        if net in open_:
            order.append(gate)
            done.add(net)
            continue
        open_.add(net)
        waiting = [i for i in gate.inputs if isinstance(i, int) and i not in done and i in drivers]
        if any(i in open_ for i in waiting):
            raise RedcaneError("it holds a combinational loop")
        stack.append(net)
        stack.extend(waiting)
    return order


def _evaluate(order: list[Gate], outputs: Sequence[int | str], operands: dict[int, Words]) -> list[Rails]:
    """The rails of `outputs`, any nets, for the operand pairs whose bits are given."""
    size = len(next(iter(operands.values())))
    none, all_ = np.zeros(size, np.uint64), np.full(size, ~np.uint64(0))
    undefined = Rails(all_, all_)
    values: dict[int | str, Rails] = {"0": Rails(none, all_), "1": Rails(all_, none)}
    values.update((net, Rails(words, ~words)) for net, words in operands.items())
    for gate in order:
        values[gate.output] = gate.function(*(values.get(net, undefined) for net in gate.inputs))
    return [values.get(net, undefined) for net in outputs]
