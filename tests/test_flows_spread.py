"""The same experiment from several seeds: real runs of a tiny network, and how they are summed up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows import stages
from flows.main import main
from flows.reproduction import page
from flows.spread_command import Outcome, in_words

TINY = """
name: tiny
dataset: digits
copies: 0
network: {image: [8, 8, 1], classes: 10, conv_channels: 4, conv_kernel: 3, primary_types: 2, primary_dim: 4,
          primary_kernel: 3, primary_stride: 3, class_dim: 4, iterations: 2}
train: {epochs: 4}
analyze: {noise_magnitudes: [0.2, 0.02, 0.0], seeds: [0], images: 100}
assign: {budget_points: 5.0, images: 16, measurements: 2}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spread")
    (path / "tiny.yaml").write_text(TINY)
    return path


def spread(folder: Path, *seeds: str) -> int:
    return main(["spread", str(folder / "tiny.yaml"), "--runs", str(folder / "runs"), "--seeds", *seeds])


def test_every_seed_has_its_own_run_and_a_stopped_command_goes_on(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bring_up, begun = stages.bring_up, []

    def stopped(run, goal) -> None:  # type: ignore[no-untyped-def]
        begun.append(run.config.seed)
        if begun == [5, 7]:
            raise KeyboardInterrupt
        bring_up(run, goal)

    monkeypatch.setattr(stages, "bring_up", stopped)
    assert spread(folder, "5", "7") == 130
    weights = folder / "runs" / "tiny-seed-5" / "network.safetensors"
    first, written = weights.read_bytes(), weights.stat().st_mtime_ns
    assert not (folder / "runs" / "tiny-spread.json").exists()
    capsys.readouterr()
    assert spread(folder, "5", "7") == 0
    assert weights.stat().st_mtime_ns == written
    assert (folder / "runs" / "tiny-seed-7" / "network.safetensors").read_bytes() != first
    kept = json.loads((folder / "runs" / "tiny-spread.json").read_text())
    accuracy = json.loads((folder / "runs" / "tiny-seed-7" / "accuracy.json").read_text())
    assert [one["seed"] for one in kept["outcomes"]] == [5, 7]
    assert kept["outcomes"][1]["assigned"] == 100 * accuracy["assigned"]["test"]
    shown = capsys.readouterr().out
    assert "mean" in shown and "of 2 seeds" in shown and "tiny-spread.json" in shown


def test_means_and_deviations_by_hand() -> None:
    def one(seed: int, lost: float) -> Outcome:
        marks = {"MAC outputs": seed == 0}
        return Outcome(seed, 99.0, 98.5, 99.0 - lost, lost, lost / 2, 80.0 + seed, {"MAC outputs": 0.1}, marks, {})

    text = "\n".join(in_words([one(0, 0.2), one(1, 0.4), one(2, 1.2)], 0.5, "energy"))
    lines = {words[0]: words[1:] for line in text.splitlines() if (words := line.split())}
    assert lines["mean"] == ["99.00", "98.50", "98.40", "0.60", "0.30", "81.00"]
    assert lines["deviation"] == ["0.00", "0.00", "0.53", "0.53", "0.26", "1.00"]
    assert "budget of 0.5 points kept on the selection images: 2 of 3 seeds" in text
    assert "MAC outputs: resilient in 1 of 3 seeds, critical NM 0.1, 0.1, 0.1" in text


@pytest.mark.parametrize("seeds", [("3",), ("3", "3")])
def test_one_seed_has_no_spread(folder: Path, seeds: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert spread(folder, *seeds) == 2
    assert "--seeds: give two different numbers or more" in capsys.readouterr().err


def test_a_seed_that_is_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert spread(folder, "-1", "2") == 2
    assert "seed" in capsys.readouterr().err


def test_the_page_shows_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = folder / "runs" / "tiny-spread.json"
    (folder / "page").mkdir(exist_ok=True)
    (folder / "page" / "tiny.json").write_bytes(kept.read_bytes())
    monkeypatch.setattr(page, "SPREADS", folder / "page")
    text = "\n".join(page.spread_of("tiny"))
    assert "### Other seeds" in text and "| deviation |" in text
    assert not list(page.spread_of("other"))
