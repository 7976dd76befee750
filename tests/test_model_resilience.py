"""Steps 2-5: the rule, the sweep, its file, its resume and its plots."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from model.augmentation import moved_about
from model.capsnet import CapsNet, CapsNetShape
from model.datasets import Split, load
from model.errors import RedcaneError
from model.noise import Injection, noise_tap
from model.operations import GROUPS, operations
from model.points import InProcess, Unit
from model.recipe import TrainingRecipe
from model.resilience import PAPER_MAGNITUDES, Resilience, ResilienceSettings, analyze, critical_nm, subject
from model.resilience_plots import plot_groups, plot_layers
from model.store import Store
from model.training import accuracy, initial, train

SHAPE = CapsNetShape(
    image=(8, 8, 1), conv_channels=16, conv_kernel=3, primary_types=4, primary_dim=4,
    primary_kernel=3, primary_stride=2, classes=10, class_dim=8,
)  # fmt: skip
SETTINGS = ResilienceSettings(
    noise_magnitudes=(0.5, 0.05, 0.005, 0.0), seeds=(3, 1), resilient_nm=0.05, batch=64, images=100, search="exhaustive"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[CapsNet, Split]:
    digits = load("digits")
    network = initial(SHAPE, 0)
    train(network, digits, TrainingRecipe(epochs=12), tmp_path_factory.mktemp("c") / "c")
    return network, digits.validation


@pytest.fixture(scope="module")
def result(trained: tuple[CapsNet, Split]) -> Resilience:
    return analyze(*trained, SETTINGS)


@given(st.dictionaries(st.sampled_from(PAPER_MAGNITUDES), st.booleans(), min_size=1))
@settings(phases=[Phase.generate])
def test_the_rule(within: dict[float, bool]) -> None:
    """What recovers beyond a failure does not count."""
    expected = max((nm for nm in within if all(within[m] for m in within if m <= nm)), default=0.0)
    assert critical_nm(within) == expected


def test_every_operation_is_analysed(trained: tuple[CapsNet, Split], result: Resilience) -> None:
    network, _ = trained
    assert list(result.groups) == list(GROUPS) and result.images == 100
    found = operations(network)
    assert sorted(o for c in result.groups.values() for o in c.operations) == sorted(o.key for o in found)
    for operation in found:
        group = result.groups[operation.group]
        assert (
            (operation.group in result.layers) == (not group.resilient) == (group.critical_nm < SETTINGS.resilient_nm)
        )
        curve = group if group.resilient else result.layers[operation.group][operation.layer]
        assert operation.key in curve.operations
        assert result.tolerated_nm(operation.key) == curve.critical_nm
    with pytest.raises(RedcaneError, match="was not analysed"):
        result.tolerated_nm("conv9.mac")
    assert "mac" in result.layers and set(result.layers["mac"]) == {"conv1", "primary", "classcaps"}
    assert result.layers["mac"]["classcaps"].operations == ("classcaps.votes", "classcaps.weighted_sum")


def test_a_point_stands_for_itself(trained: tuple[CapsNet, Split], result: Resilience) -> None:
    network, _ = trained
    split = subject(*trained, SETTINGS).split
    assert sorted(split.images.sum((1, 2, 3))) == sorted(trained[1].images[:100].sum((1, 2, 3)))
    assert result.clean_accuracy == accuracy(network, split.images, split.labels)
    injection = Injection(frozenset(result.groups["mac"].operations), 0.05)
    alone = accuracy(network, split.images, split.labels, 64, lambda index: noise_tap(injection, 1, index))
    assert alone == result.groups["mac"].accuracies[0.05][1]  # seeds are (3, 1)
    assert result.groups["mac"].accuracies[0.0] == (result.clean_accuracy,) * 2
    assert result.groups["mac"].mean(0.5) < 0.5 < result.groups["mac"].mean(0.005)
    for point in result.groups["mac"].points.values():
        lost = 100 * (result.clean_accuracy - result.groups["mac"].mean(point.nm))
        assert point.lost == pytest.approx(lost * 2) and point.within == (lost <= 0.5) and point.pairs == 200


class Dying(InProcess):
    """Fails after so many tasks."""

    def __init__(self, *of: Any, tasks: int) -> None:
        super().__init__(subject(*of))
        self.tasks, self.measured = tasks, set[Unit]()

    def submit(self, units: tuple[Unit, ...]) -> Any:
        if self.tasks == 0:
            raise KeyboardInterrupt
        self.tasks -= 1
        assert not self.measured.intersection(units), "measured twice"
        self.measured |= set(units)
        return super().submit(units)


@pytest.mark.parametrize("search", ["adaptive", "exhaustive"])
def test_a_killed_analysis_goes_on(trained: tuple[CapsNet, Split], tmp_path: Path, search: Any) -> None:
    wanted = replace(SETTINGS, search=search)
    whole = Store()
    result = analyze(*trained, wanted, whole)
    path = tmp_path / "folder" / "points.sqlite"
    first, second = Dying(*trained, wanted, tasks=9), Dying(*trained, wanted, tasks=-1)
    with Store(path) as store, pytest.raises(KeyboardInterrupt):
        analyze(*trained, wanted, store, first)
    with Store(path) as store:
        assert len(list(store.rows())) == len(first.measured)
        assert analyze(*trained, wanted, store, second) == result
        assert not first.measured & second.measured
        assert list(store.rows()) == list(whole.rows())
    with Store(path) as store:
        assert analyze(*trained, wanted, store, Dying(*trained, wanted, tasks=0)) == result
        other = initial(SHAPE, 5)  # other weights
        with pytest.raises(KeyboardInterrupt):
            analyze(other, trained[1], wanted, store, Dying(other, trained[1], wanted, tasks=0))


@pytest.fixture(scope="module")
def many(trained: tuple[CapsNet, Split]) -> tuple[CapsNet, Split]:
    """More images, so that there is something to save."""
    return trained[0], moved_about(trained[1], TrainingRecipe(), 1)


@pytest.mark.parametrize("average", [0.0, 0.002])
def test_adaptive_and_exhaustive_agree_at_less_cost(many: tuple[CapsNet, Split], average: float) -> None:
    costs, results = {}, {}
    for search in ("adaptive", "exhaustive"):
        chosen = replace(SETTINGS, search=search, noise_average=average, images=0, batch=72, tolerance_points=2.0,
                         noise_magnitudes=(0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005))  # fmt: skip
        workers = InProcess(subject(*many, chosen))
        results[search] = analyze(*many, chosen, workers=workers)
        costs[search] = workers.prober.macs
    adaptive, exhaustive = results["adaptive"], results["exhaustive"]
    assert adaptive.clean_accuracy == exhaustive.clean_accuracy
    assert marks(adaptive) == marks(exhaustive)
    assert len({critical for critical, _ in marks(adaptive).values()}) > 2
    assert costs["adaptive"] < costs["exhaustive"] / 1.5
    for operation in operations(many[0]):
        assert adaptive.tolerated_nm(operation.key) == exhaustive.tolerated_nm(operation.key)
    assert Resilience.from_json(json.loads(json.dumps(adaptive.to_json()))) == adaptive


def marks(result: Resilience) -> dict[str, tuple[float, bool]]:
    curves = result.groups | {f"{g}/{n}": c for g, layers in result.layers.items() for n, c in layers.items()}
    return {name: (curve.critical_nm, curve.resilient) for name, curve in curves.items()}


def test_json_there_and_back(result: Resilience) -> None:
    text = json.dumps(result.to_json())
    assert Resilience.from_json(json.loads(text)) == result
    point = result.to_json()["groups"]["mac"]["points"][1]
    assert point["nm"] == 0.05 and point["mean"] == np.mean(point["accuracies"])
    assert point["std"] == pytest.approx(np.std(point["accuracies"], ddof=1))
    damages = [("schema", 1), ("groups", 3), ("layers", {}), ("settings", {}), ("clean_accuracy", "high")]
    for damaged in (None, [], "text", *(json.loads(text) | {key: value} for key, value in damages)):
        with pytest.raises(RedcaneError, match="analyse again"):
            Resilience.from_json(damaged)


def test_plots_are_the_same_bytes_every_time(
    trained: tuple[CapsNet, Split], result: Resilience, tmp_path: Path
) -> None:
    plot_groups(analyze(*trained, replace(SETTINGS, search="adaptive")), tmp_path / "in parts.svg")
    ElementTree.parse(tmp_path / "in parts.svg")
    for plot in (plot_groups, plot_layers):
        plot(result, tmp_path / "one.svg")
        plot(result, tmp_path / "two.svg")
        content = (tmp_path / "one.svg").read_bytes()
        assert content == (tmp_path / "two.svg").read_bytes()
        assert ElementTree.fromstring(content).tag.endswith("svg")
    plot_groups(result, tmp_path / "groups.svg")
    assert all(f"<!-- {title} -->" in (tmp_path / "groups.svg").read_text() for title in GROUPS.values())


@pytest.mark.filterwarnings("error")  # the layout warns where the legend leaves the curves no room
def test_many_layers_have_their_legend_beside_them(result: Resilience, tmp_path: Path) -> None:
    curves = next(iter(result.groups.values()))
    layers = {f"cell{number // 4}.conv{number % 4}": curves for number in range(24)}
    plot_layers(replace(result, layers={"mac": layers, "activation": layers}), tmp_path / "layers.svg")
    drawn = (tmp_path / "layers.svg").read_text()
    assert all(f"<!-- {name} -->" in drawn for name in layers)


@pytest.mark.parametrize(
    "wrong",
    [
        {"noise_magnitudes": ()}, {"noise_magnitudes": (0.1, -0.1)}, {"noise_magnitudes": (0.1, 0.1)}, {"seeds": ()},
        {"seeds": (1, 1)}, {"seeds": (-1,)}, {"tolerance_points": -1.0}, {"batch": 0}, {"images": -1},
        {"resilient_nm": float("nan")}, {"search": "guess"}, {"confidence": 0.3},
    ],
)  # fmt: skip
def test_bad_settings(wrong: dict) -> None:
    with pytest.raises(RedcaneError, match="analysis"):
        ResilienceSettings(**wrong)
