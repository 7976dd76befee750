"""Seeds that depend on what they are for, and on nothing that happened before."""

from __future__ import annotations

import hashlib


def derive_seed(*purpose: object) -> int:
    """A seed in 0..2**63 - 1 from the SHA-256 of the parts' texts: the same parts, the same seed, everywhere."""
    text = "\0".join(str(part) for part in purpose)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1
