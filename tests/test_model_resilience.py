"""Steps 2-5: the rule, the sweep, its file, its resume and its plots."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model import resilience
from model.capsnet import CapsNet, CapsNetShape
from model.datasets import Split, load
from model.errors import RedcaneError
from model.noise import Injection, noise_tap
from model.operations import GROUPS, operations
from model.resilience import Resilience, ResilienceSettings, analyze, critical_nm
from model.resilience_plots import plot_groups, plot_layers
from model.training import TrainingRecipe, accuracy, initial, train

SHAPE = CapsNetShape(
    image=(8, 8, 1), conv_channels=16, conv_kernel=3, primary_types=4, primary_dim=4,
    primary_kernel=3, primary_stride=2, classes=10, class_dim=8,
)  # fmt: skip
SETTINGS = ResilienceSettings(
    noise_magnitudes=(0.5, 0.05, 0.005, 0.0), seeds=(3, 1), resilient_nm=0.05, batch=64, images=100
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


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ({0.5: 0.2, 0.1: 0.896, 0.01: 0.9, 0.0: 0.9}, 0.1),
        ({0.5: 0.9, 0.1: 0.894, 0.01: 0.9, 0.0: 0.9}, 0.01),  # what recovers beyond a failure does not count
        ({0.5: 0.2, 0.1: 0.3, 0.01: 0.4}, 0.0),
        ({0.5: 0.95, 0.1: 0.95}, 0.5),
        ({0.1: 0.895}, 0.1),  # exactly at the tolerance
    ],
)
def test_the_rule(means: dict[float, float], expected: float) -> None:
    assert critical_nm(0.9, means, 0.5) == expected


@given(st.dictionaries(st.sampled_from(resilience.PAPER_MAGNITUDES), st.floats(0, 1), min_size=1), st.floats(0, 100))
def test_the_rule_for_any_curve(means: dict[float, float], tolerance: float) -> None:
    critical = critical_nm(0.9, means, tolerance)
    within = {nm: 100 * (0.9 - mean) <= tolerance + 1e-9 for nm, mean in means.items()}
    assert critical == max((nm for nm in means if all(within[m] for m in means if m <= nm)), default=0.0)


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
    network, split = trained
    images, labels = split.images[:100], split.labels[:100]
    assert result.clean_accuracy == accuracy(network, images, labels)
    injection = Injection(frozenset(result.groups["mac"].operations), 0.05)
    alone = accuracy(network, images, labels, 64, lambda index: noise_tap(injection, 1, index))
    assert alone == result.groups["mac"].accuracies[0.05][1]  # seeds are (3, 1)
    assert result.groups["mac"].accuracies[0.0] == (result.clean_accuracy,) * 2
    assert result.groups["mac"].mean(0.5) < 0.5 < result.groups["mac"].mean(0.005)


def test_a_killed_analysis_goes_on(
    trained: tuple[CapsNet, Split], result: Resilience, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = tmp_path / "partial.jsonl"
    calls = 0

    def dies(*arguments):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls == 9:
            raise KeyboardInterrupt
        return accuracy(*arguments)

    monkeypatch.setattr(resilience, "accuracy", dies)
    with pytest.raises(KeyboardInterrupt):
        analyze(*trained, SETTINGS, partial)
    lines = partial.read_text().split("\n")
    partial.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:30])  # cut off while it was written
    calls = 100
    assert analyze(*trained, SETTINGS, partial) == result
    curves = [*result.groups.values(), *(curve for layers in result.layers.values() for curve in layers.values())]
    points = 2 * 3 * len({curve.operations for curve in curves})  # a group of one layer is swept once
    assert calls - 100 == 1 + points - 6  # the clean accuracy, and all points but the six whole lines
    calls = 100
    assert analyze(*trained, SETTINGS, partial) == result
    assert calls - 100 == 1


def test_points_of_other_weights_or_nonsense_are_not_believed(
    trained: tuple[CapsNet, Split], result: Resilience, tmp_path: Path
) -> None:
    partial = tmp_path / "partial.jsonl"
    analyze(initial(SHAPE, 5), trained[1], SETTINGS, partial)
    name = json.loads(partial.read_text().split("\n")[1])["point"]
    with partial.open("a") as stream:
        stream.write(f"\n[]\n3\n{'[' * 10_000}\nnonsense\n{json.dumps({'point': name, 'accuracy': float('nan')})}")
    assert analyze(*trained, SETTINGS, partial) == result


def test_json_there_and_back(result: Resilience) -> None:
    text = json.dumps(result.to_json())
    assert Resilience.from_json(json.loads(text)) == result
    point = result.to_json()["groups"]["mac"]["points"][1]
    assert point["nm"] == 0.05 and point["mean"] == np.mean(point["accuracies"])
    assert point["std"] == pytest.approx(np.std(point["accuracies"], ddof=1))
    damages = [("schema", 2), ("groups", 3), ("layers", {}), ("settings", {}), ("clean_accuracy", "high")]
    for damaged in (None, [], "text", *(json.loads(text) | {key: value} for key, value in damages)):
        with pytest.raises(RedcaneError, match="analyse again"):
            Resilience.from_json(damaged)


def test_plots_are_the_same_bytes_every_time(result: Resilience, tmp_path: Path) -> None:
    for plot in (plot_groups, plot_layers):
        plot(result, tmp_path / "one.svg")
        plot(result, tmp_path / "two.svg")
        content = (tmp_path / "one.svg").read_bytes()
        assert content == (tmp_path / "two.svg").read_bytes()
        assert ElementTree.fromstring(content).tag.endswith("svg")
    plot_groups(result, tmp_path / "groups.svg")
    assert all(f"<!-- {title} -->" in (tmp_path / "groups.svg").read_text() for title in GROUPS.values())


@pytest.mark.parametrize(
    "wrong",
    [
        {"noise_magnitudes": ()}, {"noise_magnitudes": (0.1, -0.1)}, {"noise_magnitudes": (0.1, 0.1)}, {"seeds": ()},
        {"seeds": (1, 1)}, {"seeds": (-1,)}, {"tolerance_points": -1.0}, {"batch": 0}, {"images": -1},
        {"resilient_nm": float("nan")},
    ],
)  # fmt: skip
def test_bad_settings(wrong: dict) -> None:
    with pytest.raises(RedcaneError, match="analysis"):
        ResilienceSettings(**wrong)


def test_threads_do_not_matter_to_the_draws(trained: tuple[CapsNet, Split]) -> None:
    threads = torch.get_num_threads()
    tap = noise_tap(Injection(frozenset({"a.mac"}), 0.1), 0, 0)
    x = torch.linspace(0, 1, 100_000)
    try:
        draws = []
        for count in (1, 2):
            torch.set_num_threads(count)
            draws.append(tap("a", "mac", x, 0, (x,)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*draws)
