"""Components as Verilog text."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from amaranth.back import rtlil  # type: ignore[attr-defined]  # amaranth-stubs leave it out
from amaranth.lib import wiring

from model.errors import RedcaneError
from model.yosys import run_yosys

# Where the text came from (paths of the machine that made it) is nobody's business; the rest are notes among the tools.
_PRIVATE = "src generator top amaranth.hierarchy amaranth.decoding"

# Initial content of a memory that has a one in it.
_CONTENT = re.compile(r"\bcell \$meminit_v2 .*\n(?: *parameter .*\n)* *connect \\ADDR .*\n *connect \\DATA \d+'[01]*1")


def to_verilog(component: wiring.Component, name: str) -> str:
    """The Verilog of a component as module `name`, its submodules as `\\name.submodule`; ports as in its signature.

    The same component gives the same text, whatever the machine. Memories have no initial content, as RAM has none
    (and as a line for each of their words would be most of the text).

    Raises RedcaneError when a memory wants initial content, model.yosys.YosysError when Yosys refuses the design.
    """
    design = rtlil.convert(component, name=name, emit_src=False)
    if _CONTENT.search(design):
        raise RedcaneError(f"{name}: a memory has initial content, and RAM has none: write it at run time")
    removals = " ".join(f"-remove {attribute}" for attribute in _PRIVATE.split())
    script = f"""
        read_rtlil design.il
        delete t:$meminit_v2
        proc -nomux -norom
        memory_collect
        attrmap {removals}
        attrmap -modattr {removals}
        write_verilog -norename design.v
    """
    with tempfile.TemporaryDirectory(prefix="redcane-verilog-") as folder:
        Path(folder, "design.il").write_text(design)
        run_yosys(script, Path(folder))
        return Path(folder, "design.v").read_text()
