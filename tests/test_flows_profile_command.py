"""`redcane library profile`: figures for uniform operands and for each operation's, and the plots."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flows import operands
from flows.main import main
from model.multipliers.error_figures import RANGE
from model.multipliers.library import import_folder

TEXT = "module {0}(input [7:0] A, input [7:0] B, output [15:0] O); assign O = {1}; endmodule\n"


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("REDCANE_HOME", str(tmp_path / "home"))
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "whole.v").write_text(TEXT.format("whole", "A * B"))
    (folder / "cut.v").write_text(TEXT.format("cut", "A * {B[7:4], 4'd0}"))
    import_folder(folder, "mine", signed=False)
    return "mine"


def counts(**pairs: int) -> np.ndarray:
    """Histogram with pairs such as a3b5=7."""
    found = np.zeros((256, 256), np.int64)
    for pair, count in pairs.items():
        a, b = pair[1:].split("b")
        found[int(a), int(b)] = count
    return found


def test_each_operation_has_its_columns(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                        capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    # `cut` loses a * (b mod 16): 100 * 9 of the pair that conv's products are made of, with either sign
    real = {
        "conv.mac": (counts(a100b9=3), counts(a100b9=1)),
        "caps.votes": (counts(a100b16=5), counts()),
    }
    monkeypatch.setattr(operands, "histograms", lambda *_: real)
    plots = tmp_path / "plots"
    assert main(["library", "profile", "--library", library, "--operands", "x.yaml", "--plots", str(plots)]) == 0
    said = capsys.readouterr().out
    assert "NA uniform  NM uniform  NA real  NM real" in said
    header = next(line for line in said.splitlines() if "NA conv.mac" in line)
    row = next(line for line in said.splitlines()[said.splitlines().index(header):] if line.startswith("cut"))
    uniform = (127.5 * 7.5 / RANGE, (np.arange(256)[:, None] * (np.arange(256) % 16)).std() / RANGE)
    mean, deviation = 900 * 0.5 / RANGE, 900 * np.sqrt(0.75) / RANGE
    expected = [*uniform, mean, deviation, 0, 0]
    assert row.split()[1:] == [f"{x:.4f}" for x in expected]
    assert header.split()[-4:] == ["NA", "caps.votes", "NM", "caps.votes"]
    assert "conv.mac 4, caps.votes 5" in said and "3 plots" in said
    assert {p.name for p in plots.iterdir()} == {"cut.svg", "operands.svg", "noise.svg"}


def test_table_iv_needs_its_components(library: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["library", "profile", "--library", library, "--paper"]) == 2
    assert "lacks mul8u_1JFF of the paper's Table IV: get EvoApproxLib v1.0" in capsys.readouterr().err
