"""`redcane library evolve` on the command line: a component in the user's library, or one sentence."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flows.main import main
from model.multipliers.library import load_library

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REDCANE_HOME", str(tmp_path))
    return tmp_path


def evolve(*options: str) -> int:
    return main(["library", "evolve", *options])


@pytest.mark.skipif(shutil.which("g++") is None, reason="the kernel needs g++")
def test_a_component_is_added(capsys: pytest.CaptureFixture[str]) -> None:
    assert evolve("--mae", "2", "--wce", "20", "--evaluations", "4000", "--seed", "3", "--name", "own") == 0
    first = load_library("own")
    name = list(first.components)[1]
    assert name.startswith("mul8u_") and name in capsys.readouterr().out
    found = first.get(name)
    assert found.figures.mae_percent <= 2 and found.figures.wce_percent <= 20
    assert found.provenance.startswith("redcane library evolve --mae 2 --wce 20 --evaluations 4000 --seed 3")
    options = ("--weighted-mae", "0.1", "--mae", "2", "--half-normal", "48", "--zero", "--evaluations", "2000")
    assert evolve(*options, "--name", "own", "--component", "small") == 0
    assert set(load_library("own").components) == {"mul8u_exact", "small", name}
    small = load_library("own").get("small")
    assert not small.table[0].any() and not small.table[:, 0].any() and " --zero " in small.provenance


@pytest.mark.parametrize(("options", "told"), [
    ((), "give at least one of mae"),
    (("--mae", "nan"), "a percentage of 65536"),
    (("--mae", "1", "--name", "embedded"), "cannot be a library's name"),
    (("--mae", "1", "--component", "a b"), "cannot be a component's name"),
    (("--mae", "1", "--seed", "-1"), "a seed of 0 or more"),
    (("--mae", "1", "--evaluations", "0"), "1 to"),
    (("--mae", "1", "--start", "mul8u_nothing"), "has no component"),
    (("--mae", "1", "--start", "mul8s_exact"), "evolution is of unsigned ones"),
    (("--mae", "0.001", "--start", "mul8u_e20"), "start from an exact one"),
    (("--mae", "1", "--operation", "conv1.mac"), "go together"),
    (("--weighted-mae", "1"), "go together"),
    (("--mae", "1", "--operands", str(ROOT / "configs" / "digits.yaml"), "--operation", "conv1.mach"), "conv1.mac"),
    (("--mae", "1", "--operands", "nowhere.yaml", "--operation", "conv1.mac"), "nowhere.yaml"),
])
def test_what_makes_no_sense_is_told(options: tuple[str, ...], told: str, home: Path,
                                     capsys: pytest.CaptureFixture[str]) -> None:
    assert evolve(*options) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("redcane: ") and told in last
    assert not list(home.rglob("*.v"))
