"""Stages, as `make` has them: declared inputs and outputs, skipped when nothing changed, whole or not there at all.

One run is one folder. A stage writes into a scratch folder; when it is through, its outputs are renamed into the run's
folder and a record of what they were made from is written last. So a run that was killed anywhere just starts the
interrupted stage again. Outputs that a user edited by hand stay (their stage's inputs did not change) and everything
after them follows.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from model.errors import RedcaneError
from model.files import digest, read_bounded, write_atomic

RECORD_SCHEMA = 1
RECORD_LIMIT = 2**20  # bytes
_SCRATCH = ".work."
PARTIAL = ".partial"  # folder in which long stages keep how far they came

R = TypeVar("R")
Json = dict[str, Any]


class Failed(Exception):
    """A stage came to its end and found the design wrong, not the input; the command line's exit code is 1."""


@dataclass(frozen=True)
class Stage(Generic[R]):
    """One step of a run of kind R.

    `inputs` and `outputs` are names in the run's folder (files or folders); every input is an output of an earlier
    stage. `settings` gives the rest of what the outputs depend on, as JSON: configuration values, hashes of data.
    `make(run, scratch, about)` writes every output into the folder `scratch`; `about` is the provenance to put there.
    `check(run)` looks at outputs that are there and raises Failed when they tell of a failure.
    """

    name: str
    outputs: tuple[str, ...]
    make: Callable[[R, Path, Json], None]
    inputs: tuple[str, ...] = ()
    settings: Callable[[R], Json] = field(default=lambda run: {})
    check: Callable[[R], None] = field(default=lambda run: None)
    require: Callable[[R], None] = field(default=lambda run: None)  # raises RedcaneError when a tool is missing
    version: int = 1  # raised when the code changes what comes out


class Pipeline(Generic[R]):
    """The stages of a run in an order in which they can be made, on one folder."""

    def __init__(
        self,
        stages: Sequence[Stage[R]],
        folder: Path,
        run: R,
        provenance: Callable[[], Json] = dict,
        tell: Callable[[str], None] = print,
    ) -> None:
        """`provenance` gives what a record carries beside the hashes: tool versions, seed. `tell` shows progress."""
        self.stages, self.folder, self.run, self.provenance, self.tell = list(stages), folder, run, provenance, tell
        maker: dict[str, str] = {}
        for stage in self.stages:
            for name in stage.inputs:
                assert name in maker, f"{stage.name}: nothing before it makes {name}"
            maker |= dict.fromkeys(stage.outputs, stage.name)
        self._maker = maker

    def up_to(self, target: str) -> list[Stage[R]]:
        """The stages that the target needs, itself last."""
        wanted = {target}
        for stage in reversed(self.stages):
            if stage.name in wanted:
                wanted |= {self._maker[name] for name in stage.inputs}
        return [stage for stage in self.stages if stage.name in wanted]

    def bring_up(self, target: str) -> None:
        """Make whatever is stale, up to and with the target.

        Raises RedcaneError for bad input, a missing tool (before any work starts), or another process in the folder;
        Failed when a stage's check finds a failure.
        """
        needed = self.up_to(target)
        with locked(self.folder):
            self._sweep()
            self._require(needed)
            for stage in needed:
                if self.is_fresh(stage):
                    self.tell(f"{stage.name}: up to date{self._edits(stage)}")
                else:
                    self.tell(f"{stage.name} ...")
                    self._make(stage)
                stage.check(self.run)

    def is_fresh(self, stage: Stage[R]) -> bool:
        """Whether the stage's record matches what it would be made from now, and its outputs exist."""
        if not all((self.folder / name).exists() for name in (*stage.outputs, *stage.inputs)):
            return False
        return self.record(stage.name).get("made_from") == self._made_from(stage)

    def take_over(self, folder: Path, target: str) -> None:
        """Copy what another run's folder has up to a stage, unless it is here; the record last, as when it is made."""
        with locked(self.folder):
            for stage in self.up_to(target):
                if not self.is_fresh(stage):
                    record = self._record_path(stage.name)
                    record.unlink(missing_ok=True)
                    for name in stage.outputs:
                        _copy(folder / name, self.folder / name)
                    write_atomic(record, (folder / record.relative_to(self.folder)).read_bytes())

    def record(self, stage: str) -> Json:
        """The record of a stage: what its outputs were made from, and their hashes; {} when there is none."""
        path = self._record_path(stage)
        if not path.exists():
            return {}
        try:
            record = json.loads(read_bounded(path, RECORD_LIMIT))
        except (ValueError, RecursionError):
            return {}
        return record if isinstance(record, dict) else {}

    def _record_path(self, stage: str) -> Path:
        return self.folder / ".stages" / f"{stage}.json"

    def _made_from(self, stage: Stage[R]) -> Json:
        return {
            "stage": stage.name,
            "version": stage.version,
            "inputs": {name: digest(self.folder / name) for name in stage.inputs},
            "settings": stage.settings(self.run),
        }

    def _make(self, stage: Stage[R]) -> None:
        made_from = self._made_from(stage)
        about = {"made_from": made_from, **self.provenance()}
        scratch = Path(tempfile.mkdtemp(dir=self.folder, prefix=_SCRATCH))
        try:
            stage.make(self.run, scratch, about)
            for name in stage.outputs:
                assert (scratch / name).exists(), f"{stage.name} did not make {name}"
            self._keep_edits(stage)
            self._record_path(stage.name).unlink(missing_ok=True)  # from here on the outputs are of two makings
            for name in stage.outputs:
                _replace(scratch / name, self.folder / name, scratch)
            outputs = {name: digest(self.folder / name) for name in stage.outputs}
            text = json.dumps({"schema": RECORD_SCHEMA, **about, "outputs": outputs}, indent=1)
            write_atomic(self._record_path(stage.name), text + "\n")
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _edited(self, stage: Stage[R]) -> list[str]:
        """The outputs that differ from what the stage wrote."""
        written = self.record(stage.name).get("outputs")
        if not isinstance(written, dict):
            return []
        return [n for n in stage.outputs if (self.folder / n).exists() and digest(self.folder / n) != written.get(n)]

    def _edits(self, stage: Stage[R]) -> str:
        edited = self._edited(stage)
        return f" ({', '.join(edited)} edited by hand: kept)" if edited else ""

    def _keep_edits(self, stage: Stage[R]) -> None:
        """Before outputs that a user edited are made anew, put a copy aside."""
        for name in self._edited(stage):
            aside = self.folder / f"{name}.edited"
            _remove(aside)
            os.replace(self.folder / name, aside)
            self.tell(
                f"{stage.name}: {name} was edited by hand but what it depends on changed; your version is now {aside}"
            )

    def _require(self, needed: list[Stage[R]]) -> None:
        """Before long work starts: can all settings be read, and are the tools there that will be called?"""
        for stage in needed:
            stage.settings(self.run)
        stale: set[str] = set()
        for stage in needed:
            if stale & {self._maker[name] for name in stage.inputs} or not self.is_fresh(stage):
                stale.add(stage.name)
                stage.require(self.run)

    def _sweep(self) -> None:
        """Remove what a killed process left half-written."""
        for leftover in self.folder.glob(f"{_SCRATCH}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        for folder in (".stages", PARTIAL):
            for leftover in (self.folder / folder).glob(".*"):
                leftover.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> None:
    _remove(target)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def _replace(new: Path, old: Path, scratch: Path) -> None:
    """Put `new` where `old` is; a folder cannot be renamed over another, so the old one first steps aside."""
    if old.is_dir() and not old.is_symlink():
        os.replace(old, scratch / f"old {old.name}")
    os.replace(new, old)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder, made if need be, for this process alone; the lock goes with the process, even a killed one.

    Raises RedcaneError when the folder cannot be made or written, or another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RedcaneError(
            f"{folder}: cannot be written ({error.strerror}); choose another place with --runs"
        ) from None
    try:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # lockf: not inherited by worker processes
        except OSError:
            raise RedcaneError(
                f"{folder}: another redcane is working here; wait for it, or choose another --runs"
            ) from None
        yield
    finally:
        os.close(handle)
