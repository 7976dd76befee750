"""The exhaustive check of a PE's products, on good and on damaged Verilog."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from hw.parameters import MultiplierKind
from hw.pe import PE
from hw.verilog import to_verilog
from model.errors import RedcaneError
from sim.structure import check_products
from tests.test_sim_accelerator import COMPONENTS, TABLES

NAMES = ("exact", "wild", "signed_wilder")  # two of which do not commute and give something for 0 x 0


@pytest.fixture
def rtl(tmp_path: Path) -> Path:
    kinds = tuple(MultiplierKind(name, f"mul_{name}", signed=name.startswith("signed")) for name in NAMES)
    (tmp_path / "pe.v").write_text(to_verilog(PE(kinds), "pe"))
    for name in NAMES:
        (tmp_path / f"mul_{name}.v").write_text(COMPONENTS[name].verilog)
    described = {"parameters": {"kinds": [asdict(kind) for kind in kinds]}}
    (tmp_path / "accelerator.json").write_text(json.dumps(described))
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_all_products_are_right(rtl: Path) -> None:
    assert check_products(TABLES, rtl) == {"products": 3 * 8 * 65536, "differing": 0, "first": None}


def test_one_wrong_product_is_found(rtl: Path) -> None:
    edit(rtl / "mul_wild.v", "assign O = ", "assign O = {15'd0, A == 8'd200 && B == 8'd3} ^ ")
    result = check_products(TABLES, rtl)
    # 200 x 3 occurs as such, as 200 times a signed 3 or -3, and as a signed 100 or -100, moved by a bit, times 3.
    assert result["differing"] == 1 + 2 + 2
    assert result["first"]["component"] == "wild"
    assert (result["first"]["a"], result["first"]["b"]) == (200, 3)
    assert result["first"]["expected"] ^ result["first"]["got"] == 1


def test_exchanged_operands_are_found(rtl: Path) -> None:
    text = (rtl / "pe.v").read_text()
    wild = text[text.index("mul_wild ") :]
    exchanged = wild.replace(".A(", ".X(", 1).replace(".B(", ".A(", 1).replace(".X(", ".B(", 1)
    (rtl / "pe.v").write_text(text.replace(wild, exchanged))
    assert check_products(TABLES, rtl)["first"]["component"] == "wild"


def test_what_is_no_pe(rtl: Path) -> None:
    edit(rtl / "mul_exact.v", "assign O = ", "reg [15:0] held; always @* if (A[0]) held = B; assign O = held ^ ")
    with pytest.raises(RedcaneError, match="latch"):
        check_products(TABLES, rtl)
    (rtl / "pe.v").write_text("module pe(input a, output b); assign b = a; endmodule")
    with pytest.raises(RedcaneError, match="ports are not those of a PE"):
        check_products(TABLES, rtl)
    (rtl / "pe.v").unlink()
    with pytest.raises(RedcaneError, match=r"pe\.v: no such file"):
        check_products(TABLES, rtl)
    (rtl / "accelerator.json").write_text("{}")
    with pytest.raises(RedcaneError, match="generate it again"):
        check_products(TABLES, rtl)
