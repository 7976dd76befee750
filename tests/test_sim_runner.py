"""The runner: what it tells when something is missing, does not compile, or fails; and that builds are kept."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model.errors import RedcaneError
from sim import runner
from sim.runner import BenchFailed, simulate

COUNTER = """
module counter(input clk, input rst, input [7:0] step, output reg [7:0] count);
  reg [31:0] unset;
  always @(posedge clk) count <= rst ? 8'd0 : count + step;
endmodule
"""

BENCH = """
import os, cocotb
from cocotb.triggers import FallingEdge
from sim.bench import begin, inputs, report

@cocotb.test
async def counts(dut):
    await begin(dut, step=3)
    before = dut.count.value.to_unsigned()
    for _ in range(inputs()["cycles"]):
        await FallingEdge(dut.clk)
    if inputs().get("die"):
        os._exit(3)
    while inputs().get("hang"):
        await FallingEdge(dut.clk)
    counted = dut.count.value.to_unsigned() - before
    assert counted == inputs()["wanted"], f"counted {counted}"
    report({"counted": counted, "seed": cocotb.RANDOM_SEED})
"""


@pytest.fixture(scope="module", autouse=True)
def benches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Two benches where the simulation finds them."""
    folder = tmp_path_factory.mktemp("runner")
    (folder / "a_bench.py").write_text(BENCH)
    (folder / "no_tests.py").write_text("x = 1\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        yield


@pytest.fixture
def counter(tmp_path: Path) -> Path:
    (tmp_path / "counter.v").write_text(COUNTER)
    return tmp_path / "counter.v"


def test_inputs_go_in_and_outputs_come_out(counter: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    told = simulate([counter], "counter", "a_bench", {"cycles": 5, "wanted": 15}, 7, folder)
    assert told["counted"] == 15
    assert told == simulate([counter], "counter", "a_bench", {"cycles": 5, "wanted": 15}, 7, folder)
    assert told != simulate([counter], "counter", "a_bench", {"cycles": 5, "wanted": 15}, 8, folder)
    assert {file.name for file in folder.iterdir()} >= {"simulation.log", "inputs.json", "outputs.json", "results.xml"}


def test_an_unchanged_build_is_used_again(counter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch, steps = runner._launch, []

    def noting(step: str, *rest: Any) -> None:
        steps.append(step)
        launch(step, *rest)

    simulate([counter], "counter", "a_bench", {"cycles": 1, "wanted": 3}, 7)
    monkeypatch.setattr(runner, "_launch", noting)
    simulate([counter], "counter", "a_bench", {"cycles": 2, "wanted": 6}, 8)
    assert steps == ["test"]
    counter.write_text(COUNTER.replace("count + step", f"count + step + 8'd1 /* {time.time()} */"))
    assert simulate([counter], "counter", "a_bench", {"cycles": 2, "wanted": 8}, 8)["counted"] == 8
    assert steps == ["test", "build", "test"]


def test_a_failed_assertion_is_the_message(counter: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BenchFailed, match=r"a_bench: .*counts: .*counted 15$"):
        simulate([counter], "counter", "a_bench", {"cycles": 5, "wanted": 16}, 7)
    assert capfd.readouterr() == ("", "")


def test_a_bench_without_tests_fails(counter: Path) -> None:
    with pytest.raises(BenchFailed, match="no_tests"):
        simulate([counter], "counter", "no_tests", {}, 7)
    with pytest.raises(BenchFailed, match="not_there"):
        simulate([counter], "counter", "not_there", {}, 7)


def test_a_simulation_that_dies_is_no_success(counter: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    simulate([counter], "counter", "a_bench", {"cycles": 5, "wanted": 15}, 7, folder)  # its results must not be taken
    with pytest.raises(BenchFailed, match="broke off"):
        simulate([counter], "counter", "a_bench", {"cycles": 5, "wanted": 15, "die": True}, 7, folder)


def test_a_simulation_that_hangs_is_ended(counter: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(BenchFailed, match="longer than 4 seconds"):
        simulate([counter], "counter", "a_bench", {"cycles": 1, "wanted": 3, "hang": True}, 7, timeout=4)
    assert time.monotonic() - begin < 60


def test_verilog_that_does_not_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDCANE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "broken.v").write_text("module broken(input clk, output q); assign q = nothing(clk); endmodule\n")
    with pytest.raises(RedcaneError, match=r"broken: .* does not compile .*: %Error.*nothing") as caught:
        simulate([tmp_path / "broken.v"], "broken", "a_bench", {}, 7)
    assert not isinstance(caught.value, BenchFailed)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "cache" / "verilator").iterdir()) == []
    with pytest.raises(RedcaneError, match="no such Verilog file"):
        simulate([tmp_path / "missing.v"], "missing", "a_bench", {}, 7)


@pytest.mark.parametrize("tool", ["g++", "make", "perl"])
def test_a_missing_tool_is_named(counter: Path, tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, **more: None if name == tool else found(name, **more))
    with pytest.raises(RedcaneError, match=f"`{tool.replace('+', '.')}`.*not installed"):
        simulate([counter], "counter", "a_bench", {}, 7)
