"""Measured units of the analysis in a SQLite file, keyed by content: what was measured once is not measured again."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

from model.errors import RedcaneError
from model.points import Subject, Unit

_SCHEMA = 1
_KEY = "network, data, operations, nm, na, seed, batch"
_TABLE = """
CREATE TABLE IF NOT EXISTS units (
    network TEXT, data TEXT,                  -- SHA-256: points.Subject.network_digest, data_digest
    operations TEXT, nm REAL, na REAL,        -- the noise: JSON list of "layer.name", its magnitude and average
    seed INTEGER, batch INTEGER,
    right BLOB,                               -- which of the batch's images are classified right: numpy.packbits
    PRIMARY KEY (network, data, operations, nm, na, seed, batch)
) WITHOUT ROWID
"""


class Store:
    """A file of measured units; one process at a time writes it. `path` None keeps them in memory only."""

    def __init__(self, path: Path | None = None) -> None:
        """Open it, or make it. Raises RedcaneError for a file that is no such store, or cannot be written."""
        self.path = path
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(":memory:" if path is None else path, isolation_level=None)
            self._file.execute("PRAGMA journal_mode=WAL")  # a killed process leaves whole transactions
            self._file.execute("PRAGMA synchronous=NORMAL")
            version = self._file.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, _SCHEMA):
                raise RedcaneError(f"{path}: a store of version {version}, not {_SCHEMA}; delete it to measure again")
            self._file.execute(_TABLE)
            self._file.execute(f"PRAGMA user_version={_SCHEMA}")
        except sqlite3.Error as error:
            raise RedcaneError(f"{path}: no store of measured points ({error}); delete it to measure again") from None

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def delete(self) -> None:
        """Close it, and remove its files."""
        self.close()
        for end in ("", "-wal", "-shm") if self.path else ():
            Path(f"{self.path}{end}").unlink(missing_ok=True)

    def add(self, subject: Subject, results: Mapping[Unit, bytes]) -> None:
        """Keep what units came to (see points.Prober.measure), all of them or none."""
        rows = [(*_key(subject, unit), right) for unit, right in results.items()]
        try:
            self._file.execute("BEGIN")
            self._file.executemany(f"INSERT OR REPLACE INTO units ({_KEY}, right) VALUES (?,?,?,?,?,?,?,?)", rows)
            self._file.execute("COMMIT")
        except sqlite3.Error as error:
            raise RedcaneError(f"{self.path}: cannot be written ({error}); free some space, then run again") from None

    def find(self, subject: Subject, units: Iterable[Unit]) -> dict[Unit, bytes]:
        """Those of the units that are there; what is not of the length that it should be is not believed."""
        found = {}
        where = " AND ".join(f"{name.strip()}=?" for name in _KEY.split(","))
        try:
            for unit in units:
                query = f"SELECT right FROM units WHERE {where} AND typeof(right)='blob' AND length(right)=?"
                row = self._file.execute(query, (*_key(subject, unit), -(-subject.size(unit.batch) // 8))).fetchone()
                if row is not None:
                    found[unit] = row[0]
        except sqlite3.Error as error:
            raise RedcaneError(f"{self.path}: damaged ({error}); delete it to measure again") from None
        return found

    def rows(self) -> Iterator[tuple[object, ...]]:
        """All that is there, by key."""
        yield from self._file.execute(f"SELECT {_KEY}, right FROM units ORDER BY {_KEY}")


def _key(subject: Subject, unit: Unit) -> tuple[object, ...]:
    noise = (json.dumps(unit.operations), unit.nm, unit.na)
    return (subject.network_digest, subject.data_digest, *noise, unit.seed, unit.batch)
