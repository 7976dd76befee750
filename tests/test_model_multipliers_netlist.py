"""Tables from Verilog: every style of multiplier is read, everything else is refused with its reason."""

from pathlib import Path

import numpy as np
import pytest
from flip_gate import flip_gate

from model.errors import RedcaneError
from model.multipliers import netlist
from model.multipliers.library import EMBEDDED
from model.multipliers.netlist import Circuit, extract_many, extract_table

A, B = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
EXACT = (A * B).astype(np.uint16)
HEAD = "module m(input [7:0] A, input [7:0] B, output [15:0] O);"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDCANE_CACHE", str(tmp_path / "cache"))


GOOD = {
    "behavioural": (f"{HEAD} assign O = A * B; endmodule", EXACT),
    "always block": ("module m(input [7:0] A, B, output reg [15:0] O); integer i; always @* begin O = 0;"
                     "for (i = 0; i < 8; i = i + 1) if (B[i]) O = O + (A << i); end endmodule", EXACT),
    "order of the ports": ("module m(output [15:0] product, input [7:0] y, input [7:0] x);"
                           "assign product = y + 3 * x; endmodule", (A + 3 * B).astype(np.uint16)),
    "ports called A and B": ("module m(input [7:0] b, input [7:0] a, output [15:0] z);"
                             "assign z = a + 3 * b; endmodule", (A + 3 * B).astype(np.uint16)),
    "bits counted upwards": ("module m(input [0:7] A, input [8:1] B, output [0:15] O);"
                             "assign O = A * B; endmodule", EXACT),
    "helpers after the top": (f"{HEAD} h #(.W(8)) u(.p(A), .q(B), .r(O)); endmodule\n"
                              "module h #(parameter W = 2)(input [W-1:0] p, q, output [2*W-1:0] r);"
                              "assign r = p * q; endmodule", EXACT),
    "primitives": (f"{HEAD} wire w; and g(w, A[0], B[0]); nor h(O[1], A[7], w);"
                   "assign O[0] = w; assign O[15:2] = 0; endmodule",
                   ((A & B & 1) | (1 - ((A >> 7) | (A & B & 1))) << 1).astype(np.uint16)),
    "constant": (f"{HEAD} assign O = 16'd0; endmodule", np.zeros((256, 256), np.uint16)),
    "an x that nothing selects": (f"{HEAD} reg [15:0] r; assign O = r; always @* case (A[0])"
                                  "1'b0: r = B; 1'b1: r = A; default: r = 16'bx; endcase endmodule",
                                  np.where(A & 1, A, B).astype(np.uint16)),
    "comments that name an include": (f"// `include \"x\"\n/* $readmemh */ {HEAD} assign O = A * B; endmodule", EXACT),
}


def test_good_verilog_gives_its_table() -> None:
    found = extract_many([Circuit(label, text) for label, (text, _) in GOOD.items()])
    for (label, (_, table)), extracted in zip(GOOD.items(), found, strict=True):
        assert extracted.table.dtype == np.uint16
        np.testing.assert_array_equal(extracted.table, table, err_msg=label)
    assert found[2].ports == ("y", "x", "product")
    assert found[3].ports == ("a", "b", "z")
    assert found[7].transistors == 0 and 1000 < found[0].transistors < 4000


def test_macros_do_not_leak_from_one_file_into_the_next() -> None:
    first = Circuit("first", f"`define LEAK 1\n{HEAD} assign O = A * B; endmodule")
    second = Circuit("second", f"{HEAD}\n`ifdef LEAK\nassign O = 1;\n`else\nassign O = A * B;\n`endif\nendmodule")
    np.testing.assert_array_equal(extract_many([first, second])[1].table, EXACT)


BAD = {
    "a third operand": ("module m(input [7:0] A, B, C, output [15:0] O); assign O = A * B + C; endmodule",
                        r"two 8-bit inputs and one 16-bit output, but the ports are .*input C \(8 bit\)"),
    "a narrow output": ("module m(input [7:0] A, B, output [7:0] O); assign O = A * B; endmodule",
                        r"output O \(8 bit\)"),
    "no ports": ("module m; endmodule", "no module with ports|the ports are none"),
    "an inout": ("module m(input [7:0] A, B, inout [15:0] O); assign O = A * B; endmodule", "inout O"),
    "signed in part": ("module m(input signed [7:0] A, input [7:0] B, output [15:0] O); assign O = A * B; endmodule",
                       "some of its ports are declared signed"),
    "latch": (f"{HEAD} reg [15:0] r; assign O = r; always @* if (A[0]) r = A * B; endmodule", "a latch"),
    "clock": ("module m(input clk, input [7:0] A, B, output reg [15:0] O); always @(posedge clk) O <= A * B; endmodule",
              "a flip-flop"),
    "memory": (f"{HEAD} reg [15:0] t [0:255]; integer i; initial for (i = 0; i < 256; i = i + 1) t[i] = i * i;"
               "assign O = t[A]; endmodule", "a memory"),
    "tri-state": (f"{HEAD} assign O = A[0] ? A * B : 16'bz; endmodule", "tri-state|undefined for A = 0"),
    "loop": (f"{HEAD} wire [15:0] w; assign w = (w ^ A) & B; assign O = w; endmodule", "combinational loop"),
    "undriven": (f"{HEAD} assign O[14:0] = A * B; endmodule", "bit 15 of O is undefined for A = 0 and B = 0"),
    "x for one pair": (f"{HEAD} assign O = A == 200 && B == 77 ? 16'bx : A * B; endmodule",
                       "bit 0 of O is undefined for A = 200 and B = 77"),
    "two drivers": (f"{HEAD} assign O = A * B; assign O = A + B; endmodule", "drive the same wire"),
    "driven input": (f"{HEAD} assign A = ~B; assign O = A * B; endmodule", "drives an input|multiple|same wire"),
    "syntax": (f"{HEAD}\nassign O = A ** ; endmodule", r"line 2: ERROR: syntax error"),
    "unknown module": (f"{HEAD} FAX1 u(A, B, O); endmodule", "FAX1.*not part of the design"),
    "black box": (f"{HEAD} h u(A, B, O); endmodule (* blackbox *) module h(input [7:0] p, q, output [15:0] r);"
                  "endmodule", "unknown function, `h`"),
    "two tops": (f"{HEAD} assign O = A * B; endmodule {HEAD.replace('m(', 'n(')} assign O = A; endmodule",
                 r"several modules could be the multiplier \(m, n\)"),
    "no module": ("// nothing\n", "no module"),
    "include": (f"`include \"other.v\"\n{HEAD} assign O = A * B; endmodule", "reads other files"),
    "readmem": (f"{HEAD} reg [15:0] t [0:255]; initial $readmemh(\"t\", t); assign O = t[A]; endmodule",
                "reads other files"),
    "large": (" " * (netlist.MOST_VERILOG_BYTES + 1), "larger than"),
    "zero byte": (f"{HEAD} assign O = A * B; endmodule\0", "zero byte"),
    "asserts": (f"{HEAD} assign O = A * B; always @* assert(A != 3); endmodule", "unknown function|Yosys stopped"),
    "recursion of two": (f"{HEAD} n u(A, B, O); endmodule {HEAD.replace('m(', 'n(')} m u(A, B, O); endmodule",
                         "recursive"),
    "a bus too wide": (f"{HEAD} wire [1000000000:0] w = {{1000000001{{A[0]}}}}; assign O = w[17:2]; endmodule",
                       "memory"),
    "recursion": (f"{HEAD} m u(A, B, O); endmodule", "Yosys stopped|several|one module"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_verilog_is_refused_with_its_reason(what: str) -> None:
    text, reason = BAD[what]
    with pytest.raises(RedcaneError, match=reason) as error:
        extract_table(text)
    assert "\n" not in str(error.value) and str(error.value).startswith("the given Verilog: ")


def test_one_bad_circuit_in_a_batch_is_named(tmp_path: Path) -> None:
    good = Circuit("good", GOOD["behavioural"][0])
    for what in ("syntax", "latch", "unknown module"):
        with pytest.raises(RedcaneError, match=r"^bad: "):
            extract_many([good, Circuit("bad", BAD[what][0]), Circuit("other", GOOD["constant"][0])])


def test_ports_may_be_declared_signed() -> None:
    found = extract_table("module m(input signed [7:0] A, B, output signed [15:0] O); assign O = A * B; endmodule")
    assert found.signed_ports and not extract_table(GOOD["behavioural"][0]).signed_ports
    np.testing.assert_array_equal(found.table.view(np.int16), A.astype(np.int8).astype(np.int16) * B.astype(np.int8))


def test_a_module_can_be_named() -> None:
    assert extract_table(BAD["two tops"][0], module="m").module == "m"
    with pytest.raises(RedcaneError, match="Yosys stopped"):
        extract_table(GOOD["behavioural"][0], module="absent")
    with pytest.raises(RedcaneError, match="not a module name"):
        extract_table(GOOD["behavioural"][0], module="m; shell ls")


def test_one_flipped_gate_changes_the_table() -> None:
    component = (EMBEDDED / "mul8u_e10.v").read_text()
    flipped = flip_gate(component, index=3)
    assert sum(x != y for x, y in zip(component, flipped, strict=True)) == 1
    before, after = extract_many([Circuit("before", component), Circuit("after", flipped)])
    assert 0 < np.count_nonzero(before.table != after.table) < 65536


def test_files_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "m.v"
    with pytest.raises(RedcaneError, match="no such file"):
        extract_table(path)
    path.write_bytes(f"// caf\xe9\n{HEAD} assign O = A * B; endmodule".encode("latin-1"))
    with pytest.raises(RedcaneError, match="not UTF-8"):
        extract_table(path)
    path.write_text(GOOD["behavioural"][0])
    np.testing.assert_array_equal(extract_table(path).table, EXACT)
    path.write_bytes(b"\xef\xbb\xbf" + GOOD["behavioural"][0].replace(";", ";\r\n").encode())
    np.testing.assert_array_equal(extract_table(path).table, EXACT)


def test_endless_verilog_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlist, "_SECONDS", (1, 0))
    text = (f"{HEAD} reg [15:0] r; integer i; assign O = r; always @* begin r = 0;"
            "for (i = 0; i < 100000000; i = i + 1) r = r + i * A; end endmodule")
    with pytest.raises(RedcaneError, match=r"^slow: Yosys stopped: it ran longer than 1 seconds"):
        extract_many([Circuit("slow", text)])


def test_the_cache_answers_and_damage_to_it_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    text = GOOD["order of the ports"][0]
    first = extract_table(text)
    entry = netlist._cache_file(Circuit("", text))
    assert len(list(entry.parent.iterdir())) == 2  # one for a reader who knows the module, one for who does not
    content = entry.read_bytes()

    calls: list[str] = []
    real = netlist.run_yosys
    monkeypatch.setattr(netlist, "run_yosys", lambda *a, **k: calls.append("run") or real(*a, **k))
    again = extract_table(text)
    assert not calls and again.ports == first.ports and again.transistors == first.transistors
    np.testing.assert_array_equal(again.table, first.table)

    np.savez(entry, table=np.zeros((2, 2)), names=np.array(["m", "a", "b", "o"]), transistors=1)
    small = entry.read_bytes()
    pickled = np.array([{"a": 1}], dtype=object)
    np.savez(entry, table=pickled, names=pickled, transistors=1, allow_pickle=True)
    for damaged in (content[:1000], b"", b"nonsense" * 100, small, entry.read_bytes()):
        entry.write_bytes(damaged)
        np.testing.assert_array_equal(extract_table(text).table, first.table)
    assert len(calls) == 2 * 5


def test_an_unwritable_cache_only_costs_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REDCANE_CACHE", str(tmp_path / "file"))
    np.testing.assert_array_equal(extract_table(GOOD["constant"][0]).table, GOOD["constant"][1])
