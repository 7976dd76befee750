"""Waveforms around a value that is wrong: found in a first simulation, recorded in a second.

Tracing a whole inference would take a disk. The last write of the wrong byte before it was sent is what one wants to
see, with some cycles around it.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from pathlib import Path

import numpy as np

from hw import isa
from hw.program import Emission, Program
from model.errors import RedcaneError
from sim.experiment import Experiment
from sim.system import Window
from sim.verify import Mismatch

BEFORE, AFTER = 200, 50  # cycles around the write
_NEVER = 2**62

# `now` counts cycles from the reset. written.txt gets the cycle of the last write of the byte before each packet of the
# boundary, the last line that of the last packet.
_MODULE = """module waves (input clk, input rst, output reg over);
    reg [63:0] now, written, first, last;
    integer file, scanned;
    wire [{width}:0] packet = system_bench.system.core.emitter.\\config ;
    initial begin
        now = 0; written = 0; over = 0;
        file = $fopen("window.txt", "r");
        scanned = $fscanf(file, "%d %d", first, last);
        $fclose(file);
    end
    always @(posedge clk) begin
        now <= rst ? 0 : now + 1;
        if ({bank}.write__en && {bank}.write__addr == {word}) written <= now;
        if (system_bench.system.core.emitter.start && packet[{tag_high}:{tag_low}] == {tag}
            && packet[3:0] == {opcode}) begin
            file = $fopen("written.txt", "a");
            $fwrite(file, "%0d\\n", written);
            $fclose(file);
        end
        if (now == first && !rst) begin
            $dumpfile("waves.vcd");
            $dumpvars(0, system_bench);
        end
        if (now >= last && !rst) over <= 1;
    end
endmodule
"""


def record(experiment: Experiment, mismatch: Mismatch, path: Path) -> Window:
    """Write waveforms around the write of the first value that differs to `path`; the cycles that they show.

    Raises RedcaneError when no value is wrong but a whole packet, sim.runner.BenchFailed as the simulation does.
    """
    answer = experiment.runs[mismatch.run][1]
    assert answer is not None  # nothing else mismatches
    program, what = answer.program, mismatch.what
    tags = {emission.boundary: tag for tag, emission in program.emissions.items()}
    if what["boundary"] not in tags or (not what["index"] and what["boundary"] != "class"):
        raise RedcaneError(f"waveforms: {what['boundary']} has no single value that is wrong; look at its packets")
    tag = tags[what["boundary"]]
    if program.emissions[tag].region.external:
        raise RedcaneError(f"waveforms: {what['boundary']} does not lie on the chip; give it a larger activation_kib")
    bank, word = place(program, program.emissions[tag], what["image"] - answer.image, what["index"])
    offset = isa.EMIT["tag"].offset
    text = _MODULE.format(
        bank=f"system_bench.system.core.{bank}", word=word, tag=tag, tag_low=offset, tag_high=offset + 7,
        width=isa.EMIT.size - 1, opcode=int(isa.Opcode.EMIT),
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="redcane-waves-") as scratch:
        folder, source = Path(scratch, "run"), Path(scratch, "waves.v")
        source.write_text(text)
        options = {"count": mismatch.run + 1, "more_sources": [source], "folder": folder}
        experiment.simulate(window=Window(_NEVER, _NEVER), **options)  # type: ignore[arg-type]  # as named above
        cycle = int((folder / "written.txt").read_text().split()[-1])
        window = Window(max(1, cycle - BEFORE), cycle + AFTER)
        experiment.simulate(window=window, **options)  # type: ignore[arg-type]
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder / "waves.vcd", path)
    return window


def place(program: Program, emission: Emission, image: int, index: list[int]) -> tuple[str, int]:
    """The bank that holds a value of a boundary, of an image of the batch, and its word there."""
    region, p = emission.region, program.parameters
    if region.votes:
        *grid, inputs, classes, dim = region.shape
        *position, i, j, d = index
        places = image * math.prod(grid) + (int(np.ravel_multi_index(position, grid)) if grid else 0)
        word = (places * -(-inputs // p.square) + i // p.square) * classes + j
        return f"votes.bank_{i % p.square}", word * -(-dim // p.square) + d // p.square
    row, inside = divmod(int(np.ravel_multi_index(index, region.shape)) if index else 0, region.row_values)
    address = region.base + image * region.size + row * region.row_bytes + inside
    return f"activations.bank_{address % p.lanes}", address // p.lanes
