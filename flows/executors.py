"""Who measures the points of the analysis: this process, processes of this machine, or a Dask cluster.

A Dask cluster is trusted: its scheduler and workers run what they are sent (docs/resilience.md).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from model.errors import RedcaneError
from model.operations import operations, total
from model.points import MEMORY, InProcess, Subject, Unit, Workers, install, measure

_SMALL = 10**12  # multiplications of a clean pass over all images, below which processes take longer to start than help
_CONNECT = "20s"


@contextmanager
def workers(subject: Subject, count: int | None = None, scheduler: str | None = None) -> Iterator[Workers]:
    """Workers that measure the subject's units: those of the Dask cluster at `scheduler`, else `count` local processes.

    By default one process a core, or none where the network and the images are small. A result is the same whoever
    measures. Raises RedcaneError when there is no cluster at that address, or no Dask here.
    """
    if scheduler is not None:
        with _cluster(subject, scheduler) as found:
            yield found
        return
    if count is None:
        work = total(operations(subject.network)).multiplications * len(subject.split)
        count = 1 if work < _SMALL else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    if count == 1:
        yield InProcess(subject)
        return
    local = _Processes(subject, count)
    try:
        yield local
    finally:
        local.close()


class _Processes:
    """A pool of processes, made anew when one of them is killed."""

    def __init__(self, subject: Subject, count: int) -> None:
        self.subject, self.count = subject, count
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        theirs, self._leash = context.Pipe(duplex=False)
        arguments = (self.subject, MEMORY // self.count, theirs)
        self._pool = ProcessPoolExecutor(self.count, context, _begin, arguments)

    def submit(self, units: tuple[Unit, ...]) -> Future[list[bytes]]:
        """See model.points.Workers."""
        try:
            return self._pool.submit(measure, self.subject.name, units)
        except BrokenExecutor:
            self.close()
            self._start()
            return self._pool.submit(measure, self.subject.name, units)

    def close(self) -> None:
        """End the processes."""
        self._leash.close()
        self._pool.shutdown(cancel_futures=True)


def _begin(subject: Subject, memory: int, leash: Connection) -> None:
    """The start of a worker process. It ends with ours, even a killed one, and when the pool is closed: what Python
    has for that leaves processes behind, or waits for ever, when one of them was killed.
    """

    def follow() -> None:
        leash.poll(None)  # until the other end is closed
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is ours to answer
    threading.Thread(target=follow, daemon=True).start()
    install(subject, memory)


@contextmanager
def _cluster(subject: Subject, address: str) -> Iterator[Workers]:
    try:
        from distributed import Client, WorkerPlugin
    except ImportError:
        raise RedcaneError("--scheduler: Dask is not installed; pip install 'redcane[cluster]'") from None

    class Install(WorkerPlugin):  # reaches workers that join later, too
        def setup(self, worker: object) -> None:
            install(subject)

    try:
        client = Client(address, timeout=_CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise RedcaneError(f"--scheduler: no Dask scheduler answers at {address} ({error})") from None
    with client:
        name = f"redcane-{subject.name[:16]}"
        try:
            client.register_plugin(Install(), name=name)
        except Exception as error:  # whatever a worker has to say
            raise RedcaneError(
                f"--scheduler: the workers of {address} cannot take part ({error}); install the same redcane there"
            ) from None
        try:
            yield _Dask(client, subject)
        finally:
            client.unregister_worker_plugin(name)


class _Dask:
    """The workers of a Dask cluster. A lost worker's units are measured by another."""

    def __init__(self, client: Any, subject: Subject) -> None:
        self._client, self._subject = client, subject.name

    @property
    def count(self) -> int:
        """How many there are at the moment; none count as one, for which the first units wait."""
        return max(1, sum(self._client.nthreads().values()))

    def submit(self, units: tuple[Unit, ...]) -> Future[list[bytes]]:
        """See model.points.Workers."""
        result: Future[list[bytes]] = Future()

        def done(task: Any) -> None:
            error = task.exception() if task.status == "error" else None
            if task.status == "finished":
                result.set_result(task.result())
            elif error is None or type(error).__name__ in ("KilledWorker", "CommClosedError"):
                result.set_exception(BrokenExecutor(str(error or task.status)))
            else:
                result.set_exception(RedcaneError(f"--scheduler: a worker fails: {error}"))

        self._client.submit(measure, self._subject, units, pure=False).add_done_callback(done)
        return result
