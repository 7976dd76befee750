"""Who measures does not matter, and neither does who dies while measuring."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from test_flows_main import TINY

from flows.executors import workers
from flows.main import main
from model.capsnet import CapsNetShape
from model.datasets import Split
from model.errors import RedcaneError
from model.network import Network
from model.points import InProcess, Unit, Workers
from model.resilience import Resilience, ResilienceSettings, analyze, subject
from model.store import Store
from model.training import initial

SHAPE = CapsNetShape(
    image=(8, 8, 1), conv_channels=8, conv_kernel=3, primary_types=2, primary_dim=4,
    primary_kernel=3, primary_stride=2, classes=10, class_dim=4,
)  # fmt: skip
SETTINGS = ResilienceSettings(
    noise_magnitudes=(0.3, 0.1, 0.03, 0.01, 0.003), seeds=(0, 1), batch=40, tolerance_points=2.0
)


def case() -> tuple[Network, Split]:
    """A network that classifies 400 images of nothing right, because the labels are what it says."""
    network = initial(SHAPE, 0).eval()
    images = np.random.default_rng(0).random((400, 1, 8, 8), np.float32)
    with torch.inference_mode():
        return network, Split(images, network.classify(torch.from_numpy(images)).numpy())


@pytest.fixture(scope="module")
def serial() -> tuple[Resilience, Store]:
    store = Store()
    return analyze(*case(), SETTINGS, store), store


class After:
    """Workers with which something happens after so many tasks."""

    def __init__(self, workers: Workers, tasks: int, event: Callable[[], None]) -> None:
        self.workers, self.tasks, self.event = workers, tasks, event

    @property
    def count(self) -> int:
        return self.workers.count

    def submit(self, units: tuple[Unit, ...]) -> Future[list[bytes]]:
        self.tasks -= 1
        if self.tasks == 0:
            self.event()
        return self.workers.submit(units)


def test_the_search_is_one(serial: tuple[Resilience, Store]) -> None:
    """What the other tests compare with has something to tell."""
    result, store = serial
    assert {curve.resilient for curve in result.groups.values()} == {True, False}
    assert len(list(store.rows())) > 100


def test_small_work_stays_in_this_process() -> None:
    with workers(subject(*case(), SETTINGS)) as here:
        assert isinstance(here, InProcess)


def test_processes_one_of_which_is_killed(serial: tuple[Resilience, Store]) -> None:
    with workers(subject(*case(), SETTINGS), 2) as local, Store() as store:

        def kill() -> None:
            os.kill(next(iter(local._pool._processes)), signal.SIGKILL)  # type: ignore[attr-defined]  # the pool's own

        result = analyze(*case(), SETTINGS, store, After(local, 30, kill))
        assert result == serial[0] and list(store.rows()) == list(serial[1].rows())


@pytest.mark.slow
def test_workers_that_keep_dying_are_given_up() -> None:
    with workers(subject(*case(), SETTINGS), 2) as local:

        class Deadly(After):
            def submit(self, units: tuple[Unit, ...]) -> Future[list[bytes]]:
                future = local.submit(units)
                for process in list(local._pool._processes):  # type: ignore[attr-defined]  # the pool's own
                    with suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
                return future

        with pytest.raises(RedcaneError, match="workers died"):
            analyze(*case(), SETTINGS, None, Deadly(local, 0, lambda: None))


KILLED = """
import sys
from pathlib import Path
from test_flows_executors import SETTINGS, case
from flows.executors import workers
from model.resilience import analyze, subject
from model.store import Store

if __name__ == "__main__":
    with Store(Path(sys.argv[1])) as store, workers(subject(*case(), SETTINGS), int(sys.argv[2])) as measuring:
        analyze(*case(), SETTINGS, store, measuring)
"""


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_whole_run_killed_goes_on(serial: tuple[Resilience, Store], tmp_path: Path, count: int) -> None:
    script, path = tmp_path / "run.py", tmp_path / "points.sqlite"
    script.write_text(KILLED)
    places = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    process = subprocess.Popen(
        [sys.executable, str(script), str(path), str(count)],
        env=os.environ | {"PYTHONPATH": places}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while measured(path) < 40:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = measured(path)
    assert 40 <= before < len(list(serial[1].rows()))
    asked: list[Unit] = []

    class Counting(InProcess):
        def submit(self, units: tuple[Unit, ...]) -> Future[list[bytes]]:
            asked.extend(units)
            return super().submit(units)

    with Store(path) as store:
        assert analyze(*case(), SETTINGS, store, Counting(subject(*case(), SETTINGS))) == serial[0]
        assert list(store.rows()) == list(serial[1].rows())
        assert len(asked) == len(list(store.rows())) - before


def measured(path: Path) -> int:
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as file:
            return int(file.execute("SELECT count(*) FROM units").fetchone()[0])
    except sqlite3.Error:  # not there yet
        return 0


def test_a_cluster_one_of_whose_workers_is_killed(serial: tuple[Resilience, Store]) -> None:
    distributed = pytest.importorskip("distributed", reason="needs the extra `cluster`")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(2, timeout=120)
        with workers(subject(*case(), SETTINGS), scheduler=cluster.scheduler_address) as measuring, Store() as store:
            assert measuring.count == 2
            victim = next(iter(client.run(os.getpid).values()))
            result = analyze(*case(), SETTINGS, store, After(measuring, 30, lambda: os.kill(victim, signal.SIGKILL)))
            assert result == serial[0] and list(store.rows()) == list(serial[1].rows())


@pytest.mark.parametrize(
    ("options", "words"),
    [(("--workers", "0"), "--workers: 0 should be"), (("--scheduler", "nonsense://"), "no Dask scheduler answers")],
)
def test_the_command_says_what_is_wrong(
    options: tuple[str, str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("distributed", reason="needs the extra `cluster`")
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY)
    assert main(["analyze", str(config), "--runs", str(tmp_path), *options]) == 2
    assert words in capsys.readouterr().err


def test_no_cluster_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="needs the extra `cluster`")
    for address in ("tcp://127.0.0.1:9", "nonsense://"):
        monkeypatch.setattr("flows.executors._CONNECT", "1s")
        with pytest.raises(RedcaneError, match="no Dask scheduler answers"), workers(
            subject(*case(), SETTINGS), scheduler=address
        ):
            pass


def test_no_dask_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(RedcaneError, match="Dask is not installed"), workers(
        subject(*case(), SETTINGS), scheduler="tcp://127.0.0.1:9"
    ):
        pass
