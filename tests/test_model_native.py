"""Compiling at first use: the cache, its damage, and compilers that are missing or fail."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

import pytest

from model import native
from model.errors import RedcaneError

ANSWER = 'extern "C" int answer() { return %d; }\n'

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="no g++")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REDCANE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path / "cache" / "native"


def write(folder: Path, answer: int) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "unit.cpp").write_text(ANSWER % answer)
    return folder / "unit.cpp"


@needs_compiler
def test_a_library_is_compiled_once_and_anew_when_its_source_changes(tmp_path: Path, cache: Path) -> None:
    assert native.load(write(tmp_path / "a", 1)).answer() == 1
    assert native.load(write(tmp_path / "b", 1)).answer() == 1
    (library,) = cache.iterdir()  # and nothing unfinished
    assert native.load(write(tmp_path / "c", 2)).answer() == 2
    assert len(list(cache.iterdir())) == 2 and library in cache.iterdir()


@needs_compiler
def test_a_cached_library_is_not_compiled(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native.load(write(tmp_path / "a", 1))
    run, commands = native._run, []

    def counted(command: list[str]) -> str:
        commands.append(command[1:])
        return run(command)

    monkeypatch.setattr(native, "_run", counted)
    native.load(write(tmp_path / "b", 1))
    assert commands == [["--version"]]


@needs_compiler
def test_a_damaged_library_is_made_anew(tmp_path: Path, cache: Path) -> None:
    native.load(write(tmp_path / "a", 1))
    (library,) = cache.iterdir()
    library.unlink()  # it is in use: a new file, not a change of it
    library.write_bytes(b"\x7fELF, once")
    assert native.load(write(tmp_path / "b", 1)).answer() == 1
    ctypes.CDLL(str(library))


@needs_compiler
def test_an_unwritable_cache_costs_time_only(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("REDCANE_CACHE", str(tmp_path / "file"))
    assert native.load(write(tmp_path / "a", 7)).answer() == 7


@needs_compiler
def test_a_source_that_does_not_compile(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "wrong.cpp").write_text("int answer( {")
    with pytest.raises(RedcaneError, match=r"g\+\+ fails: .*error: "):
        native.load(tmp_path / "wrong.cpp")
    assert not list(cache.iterdir())


def test_no_compiler(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RedcaneError, match=r"no C\+\+ compiler \(g\+\+, clang\+\+, c\+\+\) is installed"):
        native.load(write(tmp_path / "a", 1))


def test_a_compiler_that_is_asked_for(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'error: out of order' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(RedcaneError, match="broken fails: error: out of order"):
        native.load(write(tmp_path / "a", 1))
