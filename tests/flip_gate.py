"""A defect to plant: one gate of a multiplier's Verilog becomes another."""

import re

_GATE = re.compile(r"(\b(?:assign|wire)\s+[\w\[\]]+\s*=\s*[\w\[\]]+\s*)([&|^])(\s*[\w\[\]]+\s*;)")
_OTHER = {"&": "|", "|": "&", "^": "|"}


def flip_gate(verilog: str, index: int = 0) -> str:
    """The Verilog with its `index`-th two-input gate (`assign` or `wire x = y & z;`) turned into another kind."""
    gate = list(_GATE.finditer(verilog))[index]
    return verilog[:gate.start(2)] + _OTHER[gate[2]] + verilog[gate.end(2):]
