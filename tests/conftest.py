"""What all tests share: two cores are not many."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors; set before torch loads
