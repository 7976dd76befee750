"""Ctrl-C, also where a library makes an error of its own out of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptions() -> Iterator[list[int]]:
    """A list that grows by a signal number with every Ctrl-C that comes while the block runs.

    KeyboardInterrupt is raised as always, but code between may turn it into something else: pydantic's serializer, for
    one, into PydanticSerializationError. Then the list still tells what it was. It stays empty outside the main thread
    and where somebody else answers Ctrl-C.
    """
    seen: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        signal.default_int_handler(number, frame)

    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, remember)
    try:
        yield seen
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
