"""Stages: skipped when fresh, made again when stale, never half-made."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from flows import stage as stage_module
from flows.stage import Failed, Pipeline, Stage, locked
from model.errors import RedcaneError
from model.files import digest


@dataclass
class Numbers:
    """A run: a configured number, and what was made, in order."""

    number: int = 3
    folder: Path = Path()
    made: list[str] = field(default_factory=list)


def _first(run: Numbers, scratch: Path, about: dict) -> None:
    run.made.append("first")
    (scratch / "number.txt").write_text(str(run.number))


def _second(run: Numbers, scratch: Path, about: dict) -> None:
    run.made.append("second")
    (scratch / "squares").mkdir()
    number = int((run.folder / "number.txt").read_text())
    for k in range(number):
        (scratch / "squares" / f"{k}.txt").write_text(str(k * k))
    (scratch / "count.json").write_text(json.dumps(number))


def _third(run: Numbers, scratch: Path, about: dict) -> None:
    run.made.append("third")
    (scratch / "sum.txt").write_text(str(sum(int(p.read_text()) for p in (run.folder / "squares").iterdir())))


STAGES = [
    Stage("first", ("number.txt",), _first, settings=lambda run: {"number": run.number}),
    Stage("second", ("squares", "count.json"), _second, inputs=("number.txt",)),
    Stage("third", ("sum.txt",), _third, inputs=("squares",)),
]


def pipeline(folder: Path, number: int = 3, stages: list[Stage] = STAGES) -> Pipeline[Numbers]:
    return Pipeline(stages, folder, Numbers(number, folder), lambda: {"seed": 0}, tell=lambda text: None)


def made(folder: Path, number: int = 3, target: str = "third", stages: list[Stage] = STAGES) -> list[str]:
    line = pipeline(folder, number, stages)
    line.bring_up(target)
    return line.run.made


def test_makes_only_what_the_target_needs(tmp_path: Path) -> None:
    assert made(tmp_path, target="first") == ["first"]
    assert made(tmp_path, target="third") == ["second", "third"]
    assert (tmp_path / "sum.txt").read_text() == "5"


def test_nothing_is_made_twice(tmp_path: Path) -> None:
    made(tmp_path)
    before = digest(tmp_path)
    assert made(tmp_path) == []
    assert digest(tmp_path) == before


def test_a_changed_setting_goes_through(tmp_path: Path) -> None:
    made(tmp_path)
    assert made(tmp_path, number=4) == ["first", "second", "third"]
    assert (tmp_path / "sum.txt").read_text() == "14"
    assert len(list((tmp_path / "squares").iterdir())) == 4


def test_the_same_content_made_anew_stops_the_wave(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / "number.txt").unlink()
    assert made(tmp_path) == ["first"]


def test_a_missing_output_is_made_again(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / "count.json").unlink()
    assert made(tmp_path) == ["second"]


def test_a_new_version_of_the_code_makes_a_stage_stale(tmp_path: Path) -> None:
    made(tmp_path)
    assert made(tmp_path, stages=[STAGES[0], replace(STAGES[1], version=2), STAGES[2]]) == ["second"]


def test_an_edited_output_is_kept_and_flows_on(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / "number.txt").write_text("2")
    assert made(tmp_path) == ["second", "third"]
    assert (tmp_path / "number.txt").read_text() == "2"
    assert (tmp_path / "sum.txt").read_text() == "1"


def test_an_edited_output_that_must_be_made_anew_is_put_aside(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / "number.txt").write_text("2")
    assert made(tmp_path, number=4)[0] == "first"
    assert (tmp_path / "number.txt").read_text() == "4"
    assert (tmp_path / "number.txt.edited").read_text() == "2"


def test_another_run_goes_on_from_what_one_has_made(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    assert made(one) == ["first", "second", "third"]
    pipeline(other).take_over(one, "second")
    assert made(other) == ["third"]
    assert (other / "sum.txt").read_text() == (one / "sum.txt").read_text() == "5"
    assert made(one, number=4) == ["first", "second", "third"]
    pipeline(other, number=4).take_over(one, "second")  # what is stale is copied again
    assert made(other, number=4) == ["third"]
    assert len(list((other / "squares").iterdir())) == 4
    (one / "squares" / "0.txt").write_text("7")
    pipeline(other, number=4).take_over(one, "second")  # what is fresh is not
    assert made(other, number=4) == []


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_take_over_that_stops_in_the_middle_leaves_nothing_half_fresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    made(one)
    copied: list[Path] = []

    def stop(source: Path, target: Path) -> None:
        copied.append(source)
        if len(copied) == at:
            raise KeyboardInterrupt
        copy(source, target)

    copy = stage_module._copy
    monkeypatch.setattr(stage_module, "_copy", stop)
    with pytest.raises(KeyboardInterrupt):
        pipeline(other).take_over(one, "second")
    line = pipeline(other)
    assert [line.is_fresh(stage) for stage in STAGES] == [at > 1, False, False]
    monkeypatch.setattr(stage_module, "_copy", copy)
    line.take_over(one, "second")
    assert made(other) == ["third"]


@pytest.mark.parametrize("record", ["", "{", "[]", '{"made_from": 1}', "[" * 100_000])
def test_a_damaged_record_makes_the_stage_stale(tmp_path: Path, record: str) -> None:
    made(tmp_path)
    (tmp_path / ".stages" / "second.json").write_text(record)
    assert made(tmp_path) == ["second"]


def test_a_failing_stage_leaves_what_was_there(tmp_path: Path) -> None:
    made(tmp_path)
    before = digest(tmp_path)

    def breaks(run: Numbers, scratch: Path, about: dict) -> None:
        (scratch / "sum.txt").write_text("half")
        raise RedcaneError("no")

    stages = [*STAGES[:2], replace(STAGES[2], make=breaks, version=2)]
    with pytest.raises(RedcaneError, match="no"):
        made(tmp_path, stages=stages)
    assert digest(tmp_path) == before


def test_a_check_fails_again_when_the_stage_is_fresh(tmp_path: Path) -> None:
    def check(run: Numbers) -> None:
        raise Failed((run.folder / "sum.txt").read_text())

    stages = [*STAGES[:2], replace(STAGES[2], check=check)]
    for _ in range(2):
        with pytest.raises(Failed, match="5"):
            made(tmp_path, stages=stages)


def test_missing_tools_are_told_before_any_work(tmp_path: Path) -> None:
    def require(run: Numbers) -> None:
        raise RedcaneError("a tool is missing")

    line = pipeline(tmp_path, stages=[*STAGES[:2], replace(STAGES[2], require=require)])
    with pytest.raises(RedcaneError, match="tool"):
        line.bring_up("third")
    assert line.run.made == []
    line.bring_up("second")  # which does not need it
    assert line.run.made == ["first", "second"]


CHILD = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    sys.path[:0] = [{tests!r}]
    import test_flows_stage as t

    # Die at the n-th of the points where a kill could hurt.
    left = int(sys.argv[2])
    def point():
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def before_and_after(function):
        def wrapped(*a, **k):
            point()
            result = function(*a, **k)
            point()
            return result
        return wrapped
    os.replace = before_and_after(os.replace)
    Path.write_text = before_and_after(Path.write_text)
    Path.unlink = before_and_after(Path.unlink)
    t.made(Path(sys.argv[1]), number=int(sys.argv[3]))
    """
)


def run_child(folder: Path, kill_at: int, number: int) -> int:
    tests = Path(__file__).parent
    return subprocess.run(
        [sys.executable, "-c", CHILD.format(tests=str(tests)), str(folder), str(kill_at), str(number)],
        cwd=tests.parent, check=False,
    ).returncode  # fmt: skip


def test_killed_anywhere_and_started_again_ends_the_same(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    made(whole, number=2)
    made(whole, number=3)
    points = 0
    while True:
        points += 1
        folder = tmp_path / f"killed {points}"
        made(folder, number=2)  # so that there are old outputs to mix up with new ones
        status = run_child(folder, points, number=3)
        if status == 0:  # it had fewer points than that
            break
        assert status == -9
        made(folder, number=3)
        assert digest(folder) == digest(whole), f"killed at point {points}"
    assert points > 20


def test_going_back_after_a_kill_does_not_trust_mixed_outputs(tmp_path: Path) -> None:
    made(tmp_path / "whole", number=2)
    for point in (6, 10, 14, 18, 22):
        folder = tmp_path / str(point)
        made(folder, number=2)
        assert run_child(folder, point, number=3) == -9
        made(folder, number=2)
        assert digest(folder) == digest(tmp_path / "whole")


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from flows.stage import locked
with locked(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    ) as other:  # fmt: skip
        assert other.stdout is not None and other.stdout.readline() == b"in\n"
        with pytest.raises(RedcaneError, match="another redcane is working here"):
            made(tmp_path)
        other.kill()  # a killed process holds no lock
    assert made(tmp_path) == ["first", "second", "third"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RedcaneError, match="cannot be written"), locked(tmp_path / "file" / "run"):
        pass
