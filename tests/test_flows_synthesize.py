"""Synthesis estimates on small Verilog."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.synthesize import DEBIAN_LIBERTY, find_liberty, synthesize
from model.errors import RedcaneError

DESIGN = {
    "redcane.v": r"""
module redcane(input clk, input rst, input [7:0] a, input [7:0] b, input we, output reg [31:0] acc);
  wire [15:0] p0, p1; wire [7:0] q;
  \redcane.bank bank_0(.clk(clk), .we(we), .addr(b[5:0]), .d(a), .q(q));
  pe pe_0(.clk(clk), .a(a), .b(q), .sel(we), .p(p0));
  pe pe_1(.clk(clk), .a(b), .b(q), .sel(we), .p(p1));
  always @(posedge clk) if (rst) acc <= 0; else if (we) acc <= acc + p0 + p1;
endmodule
module \redcane.bank (input clk, input we, input [5:0] addr, input [7:0] d, output reg [7:0] q);
  reg [7:0] mem [0:63];
  always @(posedge clk) begin if (we) mem[addr] <= d; q <= mem[addr]; end
endmodule
""",
    "pe.v": """
module pe(input clk, input [7:0] a, input [7:0] b, input sel, output reg [15:0] p);
  wire [15:0] o0, o1;
  large m0(.A(a & {8{sel}}), .B(b & {8{sel}}), .O(o0));
  small m1(.A(a & {8{~sel}}), .B(b & {8{~sel}}), .O(o1));
  always @(posedge clk) p <= sel ? o0 : o1;
endmodule
""",
    "large.v": "module large(input [7:0] A, input [7:0] B, output [15:0] O); assign O = A*B; endmodule",
    "small.v": """
module small(input [7:0] A, input [7:0] B, output [15:0] O);
  assign O = {A[7:6]*B[7:6], 12'b0};
endmodule
""",
}


def gate(name: str, area: int, function: str, pins: str) -> str:
    """A cell in Liberty's words; ABC wants timing, any."""
    tables = " ".join(
        f'{kind}(scalar) {{ values("0.1"); }}'
        for kind in ("cell_rise", "cell_fall", "rise_transition", "fall_transition")
    )
    arcs = " ".join(f'timing() {{ related_pin: "{pin}"; {tables} }}' for pin in pins)
    inputs = " ".join(f"pin({pin}) {{ direction: input; capacitance: 1; }}" for pin in pins)
    return f'cell({name}) {{ area: {area}; {inputs} pin(Y) {{ direction: output; function: "{function}"; {arcs} }} }}\n'


LIBERTY = f"""
library(tiny) {{
  delay_model: table_lookup; time_unit: "1ns"; capacitive_load_unit(1, pf);
  {gate("INV", 1, "A'", "A")} {gate("BUF", 2, "A", "A")} {gate("NAND2", 2, "(A B)'", "AB")}
  cell(DFF) {{ area: 10; ff(IQ, IQN) {{ clocked_on: "C"; next_state: "D"; }}
              pin(C) {{ direction: input; clock: true; }} pin(D) {{ direction: input; }}
              pin(Q) {{ direction: output; function: "IQ"; }} }}
}}
"""


def rtl(folder: Path, **changed: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in {**DESIGN, **{f"{name}.v": text for name, text in changed.items()}}.items():
        (folder / name).write_text(text)
    return folder


def test_modules_are_counted_with_what_is_in_them(tmp_path: Path) -> None:
    result = synthesize(rtl(tmp_path / "rtl"))
    modules = result["modules"]
    assert {name: m["instances"] for name, m in modules.items()} == {
        "redcane": 1, "redcane.bank": 1, "pe": 2, "large": 2, "small": 2,
    }  # fmt: skip
    assert modules["redcane"]["flip_flops"] == 32 + 2 * 16
    assert modules["pe"]["flip_flops"] == 16
    assert modules["redcane.bank"]["memory_bits"] == modules["redcane"]["memory_bits"] == 64 * 8
    for cost in ("cells", "transistors"):
        large, small, pe, top = (modules[name][cost] for name in ("large", "small", "pe", "redcane"))
        assert 0 < small < large / 5
        assert large + small < pe < large + small + 2000
        assert 2 * pe < top
    assert result["liberty"] is None and modules["redcane"]["area"] is None


def test_the_same_verilog_gives_the_same_result(tmp_path: Path) -> None:
    assert synthesize(rtl(tmp_path / "one")) == synthesize(rtl(tmp_path / "two"))


def test_areas_with_a_liberty_file(tmp_path: Path) -> None:
    (tmp_path / "tiny.lib").write_text(LIBERTY)
    result = synthesize(rtl(tmp_path / "rtl"), find_liberty(str(tmp_path / "tiny.lib")))
    modules = result["modules"]
    assert result["liberty"]["file"] == "tiny.lib" and len(result["liberty"]["sha256"]) == 64
    assert modules["pe"]["area"] > modules["large"]["area"] + modules["small"]["area"] + 16 * 10
    assert modules["redcane"]["area"] > 2 * modules["pe"]["area"] + 32 * 10
    assert modules["redcane.bank"]["area"] == 0


@pytest.mark.skipif(not DEBIAN_LIBERTY.is_file(), reason="Debian's qflow-tech-osu018 is not installed")
def test_areas_with_debians_library(tmp_path: Path) -> None:
    result = synthesize(rtl(tmp_path / "rtl"), find_liberty(None))
    assert result["liberty"]["file"] == "osu018_stdcells.lib"
    assert result["modules"]["large"]["area"] > 5000  # square micrometres at 180 nm


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"large": "module large(input [7:0] A; endmodule"}, r"large\.v:1: ERROR: syntax error"),
        ({"large": "module other(); endmodule"}, "large"),
        ({"pe": DESIGN["pe.v"].replace("large m0", "\\no_such_module  m0")}, "no_such_module"),
    ],
)
def test_broken_verilog(tmp_path: Path, changed: dict[str, str], sentence: str) -> None:
    with pytest.raises(RedcaneError, match=sentence) as caught:
        synthesize(rtl(tmp_path / "rtl", **changed))
    assert "\n" not in str(caught.value)


def test_missing_things(tmp_path: Path) -> None:
    with pytest.raises(RedcaneError, match=r"holds no Verilog"):
        synthesize(tmp_path)
    with pytest.raises(RedcaneError, match=r"no\.lib: no such file"):
        find_liberty(str(tmp_path / "no.lib"))
    (tmp_path / "bad.lib").write_text("library(x) {")
    with pytest.raises(RedcaneError, match=r"bad\.lib: Yosys cannot map to these cells"):
        synthesize(rtl(tmp_path / "rtl"), tmp_path / "bad.lib")


def test_a_file_name_cannot_reach_the_script(tmp_path: Path) -> None:
    (rtl(tmp_path / "rtl") / "x; write_verilog y.v").write_text("")
    with pytest.raises(RedcaneError, match="rename it"):
        synthesize(tmp_path / "rtl")
