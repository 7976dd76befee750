"""Proofs by SAT (Yosys) that assertions about a unit hold in every run of so many cycles after reset.

    python -m sim.formal [--cycles N]    # 20 unless told otherwise, fewer where each more doubles the time

proves the properties of `sim.properties`, `sim.weight_properties`, `sim.write_properties` and `sim.spill_properties`;
`make formal` calls it. The proof is bounded: all inputs and all stalls, but runs of N cycles only, which is a packet of
some words or several short ones.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from amaranth.back import rtlil  # type: ignore[attr-defined]  # amaranth-stubs leave it out
from amaranth.lib import wiring

from model.errors import RedcaneError
from model.yosys import YosysError, run_yosys

_SECONDS = 3600
_PROVE = """
read_rtlil design.il
hierarchy -check -top properties
proc
chformal -lower
flatten
memory_map
opt
sat -prove-asserts -set-assumes -set rst 0 {goal} -show-ports -tempinduct-baseonly -maxsteps {cycles} properties
"""


class Violated(RedcaneError):
    """An assertion does not hold; `cycle` is the first in which it can fail, counted from 1 after reset."""

    def __init__(self, name: str, cycle: int, log: str) -> None:
        super().__init__(f"{name}: an assertion fails in cycle {cycle} after reset")
        self.cycle = cycle
        self.log = log


def prove(properties: wiring.Component, cycles: int, name: str = "properties") -> None:
    """Prove the assertions in a component for all inputs that its assumptions allow, in all runs of `cycles` cycles.

    Registers begin with their reset values; what a memory holds is open. Raises Violated, whose `log` shows the ports
    cycle by cycle, and model.yosys.YosysError when there is no answer.
    """
    log = _sat(rtlil.convert(properties, name="properties", emit_src=False), "", cycles)
    if "SUCCESS!" not in log:
        if found := re.search(r"\[base case (\d+)\] Solving(?:(?!\[base case)[\s\S])*FAIL", log):
            raise Violated(name, int(found[1]), log)
        raise YosysError("the solver gave no answer")


def reachable(properties: wiring.Component, goal: str, cycles: int) -> bool:
    """Whether some run of at most `cycles` cycles raises the output `goal`: whether the assumptions allow it at all."""
    design = rtlil.convert(properties, name="properties", emit_src=False)
    return "SUCCESS!" not in _sat(design, f"-prove {goal} 0", cycles)


def _sat(design: str, goal: str, cycles: int) -> str:
    with tempfile.TemporaryDirectory(prefix="redcane-formal-") as folder:
        Path(folder, "design.il").write_text(design)
        return run_yosys(_PROVE.format(goal=goal, cycles=cycles), Path(folder), _SECONDS)


def main() -> None:
    """Prove everything and say how long it took."""
    from sim import properties, spill_properties, weight_properties, write_properties

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int)
    wanted = parser.parse_args().cycles
    proofs: list[tuple[Callable[[], wiring.Component], int]] = [
        (properties.emitter, 20), (properties.loader, 20), (weight_properties.weight_buffer, 20),
        (weight_properties.burst_reader, 13), (write_properties.burst_writer, 14), (write_properties.beat_writer, 14),
        (spill_properties.store, 10), (spill_properties.load, 8),
    ]  # fmt: skip
    for unit, most in proofs:
        began, name, cycles = time.monotonic(), unit.__name__, wanted or most
        prove(unit(), cycles, name)
        print(f"{name}: holds in all runs of {cycles} cycles ({time.monotonic() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
