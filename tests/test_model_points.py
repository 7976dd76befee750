"""Units: their results depend on themselves alone; and the store of what was measured."""

import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model import points
from model.capsnet import CapsNetShape
from model.datasets import Split
from model.errors import RedcaneError
from model.points import InProcess, Prober, Subject, Unit, clean_unit, install, measure
from model.store import Store
from model.training import initial

SHAPE = CapsNetShape(
    image=(6, 6, 1), conv_channels=4, conv_kernel=3, primary_types=2, primary_dim=4,
    primary_kernel=2, primary_stride=2, classes=3, class_dim=4,
)  # fmt: skip
UNITS = [
    Unit(operations, nm, 0.0, seed, batch)
    for operations in (("conv1.mac",), ("classcaps.softmax", "classcaps.votes"), ("primary.squash",))
    for nm in (0.3, 0.05)
    for seed in (0, 4)
    for batch in (0, 1, 2)
] + [clean_unit(batch) for batch in range(3)]


@pytest.fixture(scope="module")
def subject() -> Subject:
    rng = np.random.default_rng(0)
    images = rng.random((50, 1, 6, 6), np.float32)
    return Subject(initial(SHAPE, 0).eval(), Split(images, rng.integers(0, 3, 50)), 20)


@pytest.fixture(scope="module")
def alone(subject: Subject) -> dict[Unit, bytes]:
    """Each by a prober of its own."""
    return {unit: Prober(subject).measure([unit])[0] for unit in UNITS}


@pytest.mark.parametrize("memory", [0, 3000, points.MEMORY])
def test_neither_order_nor_company_nor_memory_matters(
    subject: Subject, alone: dict[Unit, bytes], memory: int
) -> None:
    assert [subject.size(batch) for batch in range(subject.batches)] == [20, 20, 10]
    assert len(set(alone.values())) > 6
    prober, order = Prober(subject, memory), list(UNITS)
    np.random.default_rng(memory).shuffle(order)
    found: dict[Unit, bytes] = {}
    for batch, some in ((0, slice(6)), (2, slice(None)), (1, slice(None)), (0, slice(6, None))):
        units = [unit for unit in order if unit.batch == batch][some]
        found |= dict(zip(units, prober.measure(units), strict=True))
        assert sum(tensor.nbytes for tensor in prober._prefixes.values()) <= memory
    assert found == {unit: alone[unit] for unit in found} and len(found) == len(UNITS)


def test_the_clean_prefix_is_computed_once(subject: Subject) -> None:
    prober = Prober(subject)
    late = Unit(("classcaps.agreement",), 0.1, 0.0, 0, 0)
    spent = []
    for unit in (clean_unit(0), late, replace(late, nm=0.2, seed=9), replace(late, batch=1)):
        prober.measure([unit])
        spent.append(prober.macs - sum(spent))
    whole, first, again, elsewhere = spent
    assert again <= first < 0.3 * whole and elsewhere == whole


def test_installed_where_torch_is_the_same(subject: Subject, alone: dict[Unit, bytes]) -> None:
    install(subject)
    assert measure(subject.name, tuple(UNITS[:1])) == [alone[UNITS[0]]]
    assert InProcess(subject).submit(tuple(UNITS[:1])).result() == [alone[UNITS[0]]]
    with pytest.raises(RedcaneError, match="torch"):
        install(replace(subject, torch="1.0"))


def test_the_names_of_subjects(subject: Subject) -> None:
    other = initial(SHAPE, 0).eval()
    with torch.no_grad():
        other.conv1.bias[0] += 1e-3
    images = subject.split.images.copy()
    images[3, 0, 2, 2] += 1e-3
    changed = [replace(subject, batch=21), replace(subject, network=other)]
    changed += [replace(subject, split=Split(images, subject.split.labels))]
    changed += [replace(subject, split=Split(subject.split.images, (subject.split.labels + 1) % 3))]
    assert len({each.name for each in (subject, *changed)}) == 5
    assert replace(subject, network=initial(SHAPE, 0).eval()).name == subject.name


def test_the_store_keeps_what_is_sound(subject: Subject, alone: dict[Unit, bytes], tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    with Store(path) as store:
        store.add(subject, alone)
        store.add(subject, dict(list(alone.items())[:2]))
        assert store.find(replace(subject, batch=10), UNITS) == {}
    with Store(path) as store:
        assert store.find(subject, UNITS) == alone and len(list(store.rows())) == len(UNITS)
        assert store.find(subject, [replace(UNITS[0], nm=0.31)]) == {}
    with sqlite3.connect(path) as file:
        file.execute("UPDATE units SET right=zeroblob(1000000) WHERE batch=2")
        file.execute("UPDATE units SET right='text' WHERE batch=1")
    with Store(path) as store:
        assert {unit.batch for unit in store.find(subject, UNITS)} == {0}
        store.delete()
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_store(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    path.write_bytes(b"something else altogether" * 50)
    with pytest.raises(RedcaneError, match="no store of measured points"):
        Store(path)
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("PRAGMA user_version=77")
    other.close()
    with pytest.raises(RedcaneError, match="version 77"):
        Store(tmp_path / "other.sqlite")
