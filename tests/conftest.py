"""What all tests share: two cores are not many, and the user's own libraries and their costs are not the tests'."""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors; set before torch loads

_HOME = tempfile.TemporaryDirectory(prefix="redcane-tests-")  # lives as long as this module
os.environ["REDCANE_HOME"] = _HOME.name
