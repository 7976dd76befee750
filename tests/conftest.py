"""What all tests share: two cores are not many, and the user's own libraries and their costs are not the tests'."""

from __future__ import annotations

import os
import tempfile

from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors; set before torch loads

_HOME = tempfile.TemporaryDirectory(prefix="redcane-tests-")  # lives as long as this module
os.environ["REDCANE_HOME"] = _HOME.name

# A machine that is busy with other things is slow, and that is no failure of ours.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_make_parametrize_id(val: object) -> str | None:
    """Names of tests are the same in every process: bytes may hold the time at which they were packed."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None
