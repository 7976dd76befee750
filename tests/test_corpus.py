"""The cases that fuzzing found, and the way they are found and kept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from model import qfile
from sim.programs import Case, Fault
from tests import fuzz

FAULT = {"image": 0, "boundary": "conv1.mac", "index": [0, 0, 0], "expected": 1, "got": 2}


@pytest.mark.parametrize("case", sorted(fuzz.CORPUS.glob("round_*")), ids=lambda case: case.name)
def test_what_was_found_stays_right(case: Path) -> None:
    assert fuzz.replay(case) is None


def test_a_difference_is_shrunk_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An accelerator that goes wrong where a batch has two images and the primary capsules have two elements."""

    def faulty(cases: list[Case]) -> list[Fault | None]:
        wrong = [len(case.images) > 1 and case.network.layers[1].capsule_dim > 1 for case in cases]
        return [FAULT if bad else None for bad in wrong]

    @contextmanager
    def on(chosen: fuzz.Build) -> Iterator[fuzz.Check]:
        yield faulty

    monkeypatch.setattr(fuzz, "on", on)
    monkeypatch.setattr(fuzz, "EMULATED", 1000)
    told = fuzz.one_round(2, 40, tmp_path)
    assert 0 < len(told["differences"]) < told["networks"] <= 40
    [kept] = tmp_path.iterdir()
    assert told["differences"][0] == told["differences"][0] | {"fault": FAULT, "kept": str(kept)}
    assert np.load(kept / "images.npy").shape[0] == 2
    network = qfile.load(kept / "qmodel")
    assert network.layers[1].capsule_dim == 2
    assert network.layers[1].conv.weights.shape == (2, 1, 1, 1)  # of one type, and by a kernel of one weight
    assert fuzz.replay(kept) == FAULT
    again = fuzz.one_round(2, 40, tmp_path)
    assert [d["network"] for d in again["differences"]] == [d["network"] for d in told["differences"]]


@pytest.mark.slow  # builds two accelerators
def test_a_wrong_gate_is_found_and_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = fuzz.Build.write

    def wrong(self: fuzz.Build, folder: Path) -> list[Path]:
        sources = right(self, folder)
        pe = folder / "pe.v"
        text, count = re.subn(r"(?<=\bproduct <= )(?=\\)", "17'd1 ^ ", pe.read_text())
        assert count == 1
        pe.write_text(text)
        return sources

    with monkeypatch.context() as patch:
        patch.setattr(fuzz.Build, "write", wrong)
        patch.setattr(fuzz, "SHRINKING", 20)
        told = fuzz.one_round(2, 20, tmp_path)
        kept = Path(told["differences"][0]["kept"])
        assert fuzz.replay(kept)
    assert fuzz.replay(kept) is None


def test_the_tally_counts_rounds_by_version(tmp_path: Path) -> None:
    path = tmp_path / "fuzz.jsonl"
    line = '{"version": "%s", "networks": 700, "images": 900, "build": %d, "differences": %s}\n'
    path.write_text(line % ("a", 1, "[]") + line % ("b", 1, "[]") + line % ("b", 2, "[{}]"))
    assert fuzz.tally(path, "b").splitlines() == [
        "version b: 1,400 networks, 1,800 images, 2 builds, 1 differ",
        "all: 2,100 networks, 2,700 images, 2 builds, 1 differ",
    ]
