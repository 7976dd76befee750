"""`redcane map`: cycles of the configuration alone, designs side by side, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.config import Config
from flows.main import main
from flows.map_command import compiler_of
from hw.cycles import predict

CONFIGS = Path(__file__).parents[1] / "configs"
DIGITS = str(CONFIGS / "digits.yaml")


def test_neither_data_nor_training_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REDCANE_DATA", str(tmp_path))
    assert main(["map", str(CONFIGS / "compact-mnist.yaml")]) == 0
    assert "primary.mac" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_designs_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["map", DIGITS, "--arrays", "4x8", "8x8", "--batches", "1", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()[4:]
    assert [line.split()[:4] for line in lines] == [
        ["4", "x", "8", "1"], ["4", "x", "8", "3"], ["8", "x", "8", "1"], ["8", "x", "8", "3"],
    ]  # fmt: skip
    config = Config.load(CONFIGS / "digits.yaml", {"accelerator.rows": 8, "accelerator.columns": 8})
    program = compiler_of(config)(config.accelerator.size())
    cycles = sum(cost.cycles for cost in predict(program).values())
    _, limit = (int(cell.replace(",", "")) for cell in lines[2].split()[4:6])
    assert lines[2].split()[4] == f"{cycles:,}" and limit <= cycles
    assert lines[2].split()[-3:] == [f"{count:,}" for count in program.parameters.memories]


def test_the_ways_that_lost(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["map", str(CONFIGS / "capsnet-mnist.yaml"), "--why"]) == 0
    told = capsys.readouterr().out
    assert "16 x 16 packed" in told and "16 x 16 split" in told
    ways = [line.split() for line in told.partition("those that lost")[2].splitlines()[4:]]
    assert ways[0][:6] == ["conv1", "packed", "1", "1", "20", "41"]
    assert ways[1][:6] == ["by", "kernel", "rows", "1", "1", "20"]
    assert int(ways[1][7].replace(",", "")) - int(ways[0][6].replace(",", "")) == 19_200


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--arrays", "16"], "--arrays: 16 is no size; give rows and columns, such as 16x16"),
        (["--arrays", "5x8"], "accelerator: rows is 5; the array takes 4, 8, 16, 32 or 64"),
        (["--arrays", "8x8", "--why"], "--why is about one design; leave out --arrays and --batches"),
        (["--batches", "0"], "accelerator: batch is 0; it should be 1 to 64"),
    ],
)
def test_what_is_no_design(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["map", DIGITS, *arguments]) == 2
    output = capsys.readouterr()
    assert told in output.err and output.out == ""
