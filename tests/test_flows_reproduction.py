"""The paper's experiments: end to end on a tiny network, interrupted and resumed; verdicts from made-up results."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import pytest

from flows.main import main
from flows.reproduction import designs, page
from flows.reproduction.designs import by_noise_magnitude, pareto
from flows.reproduction.findings import Finding, Verdict, findings, wilson
from flows.reproduction.operations import as_the_paper_counts, saved_by_multiplier
from flows.reproduction.page import write_page
from model.multipliers.library import load_library
from model.multipliers.profile import TABLE_IV
from model.operations import GROUPS
from model.resilience import Curve, Resilience, ResilienceSettings
from model.sweep import Measured

TINY = """
name: tiny
dataset: digits
copies: 0
network: {image: [8, 8, 1], classes: 10, conv_channels: 4, conv_kernel: 3, primary_types: 2, primary_dim: 4,
          primary_kernel: 3, primary_stride: 3, class_dim: 4, iterations: 2}
train: {epochs: 6, patience: 6}
analyze: {noise_magnitudes: [0.2, 0.02, 0.0], seeds: [0], images: 100}
assign: {budget_points: 5.0, images: 16, measurements: 12}
simulate: {images: 2}
"""
OPTIONS = ("--trial-images", "20", "--curve-images", "100")


def redcane(folder: Path, command: str, *options: str) -> int:
    return main([command, str(folder / "tiny.yaml"), "--runs", str(folder / "runs"), *options])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run, whose reproduction was interrupted among the designs and then went on."""
    path = tmp_path_factory.mktemp("reproduction")
    (path / "tiny.yaml").write_text(TINY)
    assert redcane(path, "train") == 0
    return path


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    measured: list[str] = []
    right = designs._Measured.right

    def interrupted(self: Any, network: Any, split: Any) -> int:
        if len(measured) == 5:
            raise KeyboardInterrupt
        measured.append(network.layers[0].conv.mac.component)
        return right(self, network, split)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(designs._Measured, "right", interrupted)
        assert redcane(folder, "reproduce", *OPTIONS) == 130
    kept = json.loads((folder / "runs" / "tiny" / ".partial" / "reproduction-designs.json").read_text())
    assert 3 <= len(kept) <= 5  # the paper's method may have ended with exact multipliers
    measured.clear()

    def watched(self: Any, network: Any, split: Any) -> int:
        before = set(self.found)
        found = right(self, network, split)
        measured.extend(set(self.found) - before)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(designs._Measured, "right", watched)
        assert redcane(folder, "reproduce", *OPTIONS) == 0
    assert measured and not set(measured) & set(kept)  # what was measured is not measured again
    found: dict[str, Any] = json.loads((folder / "runs" / "tiny" / "reproduction.json").read_text())
    return found


def test_everything_is_in_the_results(folder: Path, results: dict[str, Any]) -> None:
    run = folder / "runs" / "tiny"
    assert [f["verdict"] in get_args(Verdict) and bool(f["evidence"]) for f in results["findings"]] == [True] * 12
    assert results["operations"]["deepcaps"]["multiplications"] == 1_348_421_504
    embedded = [c for c in load_library("embedded").components.values() if not c.signed and not c.is_exact]
    assert results["multipliers"]["inexact"] == len(embedded) and len(results["multipliers"]["shown"]) == 3
    shown = [profile for profiles in results["multipliers"]["shown"].values() for profile in profiles]
    assert [sum(profile["histogram"]["counts"]) for profile in shown] == [100_000] * 9
    curves = Resilience.from_json(results["curves"])
    assert curves.images == 100 and {"mac", "activation", "softmax", "logits"} == set(curves.groups)
    assert all(set(curve.points) == {0.2, 0.02, 0.0} for curve in curves.groups.values())  # measured wholly
    kinds = {design["kind"] for design in results["designs"]["designs"]}
    assert kinds == {"ours", "paper", "exact", "everywhere"}
    accuracy = json.loads((run / "accuracy.json").read_text())
    ours, anew = (d for d in results["designs"]["designs"] if d["kind"] == "ours")
    assert (ours["chosen_by"], anew["chosen_by"]) == ("switched transistors", load_library("embedded").cost_name)
    assert anew["energy"] < 1 and anew["test"]["images"] == 360
    assert not list((run / ".partial").iterdir())  # nothing is left of the folder in which it was made
    assert ours["test"]["right"] / ours["test"]["images"] == pytest.approx(accuracy["assigned"]["test"])
    exact = {min(d["formats"].values()): d for d in results["designs"]["designs"] if d["kind"] == "exact"}
    assert exact["sign-magnitude"]["test"]["right"] == round(360 * accuracy["exact_8_bit"]["test"])
    assert exact["affine"]["energy"] == exact["sign-magnitude"]["energy"] == 1.0
    assert exact["affine"]["switched"] != exact["sign-magnitude"]["switched"] == 1.0  # other operands
    spent = accuracy["costs"]["operations"].values()
    assert ours["switched"] == pytest.approx(sum(c["assigned"] for c in spent) / sum(c["exact"] for c in spent))
    assert "spent" not in ours
    text = (run / "reproduction.md").read_text()
    for name in ("energy", "groups", "layers", "profiles", "operands", "pareto"):
        assert ElementTree.parse(run / f"tiny-{name}.svg").getroot().tag.endswith("svg")
        assert f"tiny-{name}.svg" in text
    assert "Table IV and the paper's Fig. 6 want EvoApproxLib" in text


def test_gains_are_counted_image_by_image(results: dict[str, Any]) -> None:
    points = {(g, p["nm"]): p for g, c in results["curves"]["groups"].items() for p in c["points"] if p["nm"]}
    gains = {(row["group"], row["nm"]): row for row in results["curves"]["gains"]}
    assert set(gains) == set(points)
    for place, row in gains.items():  # with one seed, what is lost on the whole is the difference
        assert row["worse"] - row["better"] == points[place]["lost"] and 0 <= row["p"] <= 1


def test_nothing_is_made_twice(folder: Path, results: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    before = (folder / "runs" / "tiny" / "reproduction.json").read_bytes()
    assert redcane(folder, "reproduce", *OPTIONS) == 0
    output, errors = capfd.readouterr()
    assert "..." not in errors and "[designs: up to date]" in errors
    assert "Fig. 9" in output and "of processor time" in output
    assert (folder / "runs" / "tiny" / "reproduction.json").read_bytes() == before


def test_the_page_is_the_same_for_the_same_results(results: dict[str, Any], tmp_path: Path) -> None:
    first, second = (write_page([results], tmp_path / n / "page.md", tmp_path / n / "plots") for n in "ab")
    assert first.read_bytes() == second.read_bytes()
    for plot in (tmp_path / "a" / "plots").iterdir():
        assert plot.read_bytes() == (tmp_path / "b" / "plots" / plot.name).read_bytes()


def test_the_page_says_what_was_done_to_the_network_for_its_multipliers(
    results: dict[str, Any], tmp_path: Path
) -> None:
    def said(**changed: Any) -> str:
        return write_page([{**results, "designs": {**others, **changed}}], tmp_path / "page.md", tmp_path).read_text()

    others = {key: value for key, value in results["designs"].items() if key not in ("fitted", "finetune_epochs")}
    assert (results["designs"]["fitted"], results["designs"]["finetune_epochs"]) == (True, 0)
    assert "its constants are [fitted]" in said(fitted=True, finetune_epochs=0)
    assert "its constants are not [fitted]" in (text := said(fitted=False, finetune_epochs=4))
    assert "it is fine-tuned for 4 epochs" in text
    assert "a version that did not fit its constants" in said(), "of results from before they were"


@pytest.mark.parametrize(
    ("benchmark", "sentence"), [("capsnet-mnits", "there is capsnet-mnist"), ("none.yaml", "no such file")]
)
def test_unknown_benchmarks(benchmark: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", benchmark, "--runs", str(tmp_path)]) == 2
    assert sentence in capsys.readouterr().err


def test_a_network_that_nobody_trained(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", str(folder / "tiny.yaml"), "--runs", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "no published weights" in said and "`redcane train CONFIG` trains it there" in said


def test_counts_and_savings_of_the_paper() -> None:
    assert as_the_paper_counts() == {"multiplications": 2_146_959_360, "additions": 1_908_408_320}
    assert saved_by_multiplier(96.4) == pytest.approx(28.35, abs=0.01)


def test_wilson() -> None:
    low, high = wilson(90, 100)  # statsmodels: proportion_confint(90, 100, method="wilson")
    assert (low, high) == (pytest.approx(0.82563, abs=1e-4), pytest.approx(0.94477, abs=1e-4))
    assert wilson(100, 100)[1] == pytest.approx(1.0)


def test_the_papers_method_looks_at_nm_alone() -> None:
    costs, magnitudes = {"exact": 10.0, "good": 5.0, "bad": 1.0}, {"exact": 0.0, "good": 0.001, "bad": 0.05}
    tolerated = {"a": 0.1, "b": 0.01, "c": 0.0}
    assert by_noise_magnitude(tolerated, magnitudes, costs, lambda key, name: True) == {
        "a": "bad", "b": "good", "c": "exact"
    }  # fmt: skip
    assert by_noise_magnitude(tolerated, magnitudes, costs, lambda key, name: name != "bad")["a"] == "good"


def test_pareto() -> None:
    rows = [{"energy": e, "trial": {"right": r}} for e, r in ((3, 9), (1, 5), (2, 4), (2, 7), (4, 9))]
    assert [(row["energy"], row["trial"]["right"]) for row in pareto(rows)] == [(1, 5), (2, 7), (3, 9)]


# Made-up results of a network whose softmax and logits forgive more than the rest, and whose first layer forgives least

MAGNITUDES = (0.5, 0.1, 0.01)
ROBUST, MIDDLE, FRAGILE = (0.9, 0.95, 0.95), (0.3, 0.9, 0.95), (0.1, 0.5, 0.95)


def curve(accuracies: tuple[float, ...]) -> Curve:
    points = {nm: Measured(nm, (a,), 1000, 0, a > 0.9) for nm, a in zip(MAGNITUDES, accuracies, strict=True)}
    return Curve(("x.mac",), points, max([nm for nm, p in points.items() if p.within], default=0.0), False)


def made_up(change: dict[str, Any]) -> dict[str, Finding]:
    """The findings, by the place in the paper and the claim's first words, of good results with a change."""
    accuracies = {
        "mac": MIDDLE, "activation": MIDDLE, "softmax": ROBUST, "logits": ROBUST,
        "conv1": FRAGILE, "primary": MIDDLE, "classcaps": ROBUST,
    } | change.get("curves", {})  # fmt: skip
    layers = {name: curve(accuracies[name]) for name in accuracies if name not in GROUPS}
    settings = ResilienceSettings(noise_magnitudes=MAGNITUDES, seeds=(0,), resilient_nm=0.2)
    groups = {name: replace(curve(accuracies[name]), operations=()) for name in GROUPS}
    resilience = Resilience(settings, 1000, 0.95, groups, {"mac": layers, "activation": layers})
    gain = {"group": "mac", "nm": 0.01, "better": 20, "worse": 2, "p": 6e-5}
    noise = [
        {"name": name, "uniform": {"na": na, "nm": nm}, "real": {"na": na_real, "nm": nm_real}, "cost": 1.0}
        for name, (na, nm, na_real, nm_real) in TABLE_IV.items()
    ]
    design = {"formats": {"conv1.mac": "affine"}, "components": {"conv1.mac": "m"}, "energy": 0.5}
    pairs = [("groups", a, b) for a in ("softmax", "logits") for b in ("mac", "activation")]
    pairs += [(g, a, b) for g in ("mac", "activation") for a in layers for b in layers if a != b]
    differences = [
        {"in": where, "one": a, "other": b, "nm": nm, "points": 100 * (x - y), "error": change.get("error", 1.0)}
        for where, a, b in pairs
        for nm, x, y in zip(MAGNITUDES, accuracies[a], accuracies[b], strict=True)
    ]
    results: dict[str, Any] = {
        "accuracy": {"right": 9967, "images": 10_000, "paper": 99.67},
        "operations": {"shares": {"deepcaps": {"multiplications": 96.3, "additions": 3.6}}},
        "multipliers": {"library": "evoapprox", "inexact": 35, "gaussian_like": {"1": 21, "9": 31, "81": 35},
                        "noise": noise, "missing_of_table_iv": []},
        "curves": {**resilience.to_json(), "gains": [gain], "differences": differences},
        "designs": {"float": {"right": 99, "images": 100}, "budget_points": 0.5,
                    "designs": [{**design, "kind": "paper", "test": {"right": 99, "images": 100}}]},
    }  # fmt: skip
    for path, value in change.items():
        place = results
        *parts, last = path.split(".")
        if not parts:  # it went into the curves
            continue
        for part in parts:
            place = place[int(part) if isinstance(place, list) else part]
        place[last] = value
    return {f"{f.where}: {' '.join(f.claim.split()[:3])}": f for f in findings(results)}


GOOD = [
    "Table II: The accuracy of",
    "Fig. 4: Multiplications take 96",
    "Fig. 5: The multiplier NGR",
    "Sec. III-B: 31 of 35",
    "Table IV: NA and NM",
    "Sec. VI-B: Where real operands",
    "Fig. 9, 12: Softmax and logits",
    "Fig. 10: The first convolution",
    "Sec. VI-D: Layers with dynamic",
    "Fig. 9: Slight noise can",
    "Sec. VI-B, VII: Components chosen by",
]


def test_what_the_paper_says_is_found_where_it_is_so() -> None:
    found = made_up({})
    assert {name for name, finding in found.items() if finding.verdict == "reproduced"} == set(GOOD)
    assert found["Fig. 10: Caps3D, which routes"].verdict == "not tested"
    with_caps3d = made_up({"curves": {"cell4.skip": (0.95, 0.95, 0.95)}})
    assert with_caps3d["Fig. 10: Caps3D, which routes"].verdict == "reproduced"


@pytest.mark.parametrize(
    ("change", "finding", "verdict"),
    [
        ({"accuracy.right": 9900}, GOOD[0], "not reproduced"),
        ({"accuracy.paper": None}, GOOD[0], "not tested"),
        ({"operations.shares.deepcaps": {"multiplications": 90.0, "additions": 9.0}}, GOOD[1], "not reproduced"),
        ({"operations.shares.deepcaps": {"multiplications": 90.0, "additions": 9.0}}, GOOD[2], "not reproduced"),
        ({"multipliers.gaussian_like": {"1": 21, "9": 32, "81": 35}}, GOOD[3], "not reproduced"),
        ({"multipliers.missing_of_table_iv": ["mul8u_NGR"]}, GOOD[3], "not tested"),
        ({"multipliers.missing_of_table_iv": ["mul8u_NGR"]}, GOOD[4], "not tested"),
        ({"multipliers.noise.3.uniform.nm": 0.5}, GOOD[4], "not reproduced"),
        ({"multipliers.noise": [{"name": "m", "uniform": {"nm": 0.1}, "real": {"nm": 0.2}}],
          "multipliers.missing_of_table_iv": ["x"]}, GOOD[5], "not reproduced"),
        ({"error": 40.0}, GOOD[6], "undecided"),  # not told apart
        ({"curves": {"softmax": FRAGILE}}, GOOD[6], "not reproduced"),
        ({"curves": {"mac": ROBUST}}, GOOD[6], "undecided"),
        ({"curves": {"mac": ROBUST, "softmax": MIDDLE}}, GOOD[6], "not reproduced"),
        ({"curves": {"conv1": MIDDLE}}, GOOD[7], "undecided"),
        ({"curves": {"primary": (0.1, 0.1, 0.1)}}, GOOD[7], "not reproduced"),
        ({"curves": {"classcaps": FRAGILE}}, GOOD[8], "not reproduced"),
        ({"curves": {"cell4.skip": FRAGILE}}, "Fig. 10: Caps3D, which routes", "not reproduced"),
        ({"curves.gains.0.p": 0.2}, GOOD[9], "not reproduced"),
        ({"designs.designs.0.test.right": 98}, GOOD[10], "not reproduced"),
    ],
)  # fmt: skip
def test_what_is_not_so_is_not_reproduced(change: dict[str, Any], finding: str, verdict: str) -> None:
    assert made_up(change)[finding].verdict == verdict


def test_chance_is_shared_by_all_points() -> None:
    one = {"group": "mac", "nm": 0.01, "better": 8, "worse": 1, "p": 0.02}
    other = {**one, "group": "softmax", "better": 5, "worse": 5, "p": 0.6}
    assert made_up({"curves.gains": [one]})[GOOD[9]].verdict == "reproduced"
    assert made_up({"curves.gains": [one, other, other]})[GOOD[9]].verdict == "not reproduced"


def test_small_differences_count_with_enough_images() -> None:
    near = {"curves": {"conv1": (0.1, 0.88, 0.95)}}
    assert made_up({**near, "error": 1.0})[GOOD[7]].verdict == "undecided"  # 2 points from primary's 0.9
    assert made_up({**near, "error": 0.1})[GOOD[7]].verdict == "reproduced"


def test_broken_networks_are_not_compared() -> None:
    """At NM 0.5 the first layer guesses better than the second, but both have lost more than can be told apart."""
    found = made_up({"curves": {"conv1": (0.4, 0.5, 0.95), "primary": (0.3, 0.9, 0.95)}})[GOOD[7]]
    assert found.verdict == "reproduced" and "conv1 stands less than primary" in found.evidence
    found = made_up({"curves": {"conv1": (0.94, 0.5, 0.95), "primary": (0.3, 0.9, 0.95)}})[GOOD[7]]
    assert found.verdict == "not reproduced"
    assert "conv1 against primary, classcaps: it depends on the magnitude" in found.evidence


def test_differences_are_of_the_same_images(results: dict[str, Any]) -> None:
    curves = Resilience.from_json(results["curves"])
    rows = results["curves"]["differences"]
    assert {(row["one"], row["other"]) for row in rows if row["in"] == "groups"} == {
        (a, b) for a in ("softmax", "logits") for b in ("mac", "activation")
    }
    for row in rows:
        of = curves.groups if row["in"] == "groups" else curves.layers[row["in"]]
        expected = 100 * (of[row["one"]].mean(row["nm"]) - of[row["other"]].mean(row["nm"]))
        assert row["points"] == pytest.approx(expected, abs=1e-9)
        assert 0 <= row["error"] <= 50 / 100**0.5 * 2  # of 100 images, each between -1 and 1


def test_the_element_of_a_design() -> None:
    counts = {"conv1.mac": 3, "classcaps.votes": 1}
    elements = {"top": {"m": {"energy_pj": {"total": 20.0}}}, "affine": {"n": {"energy_pj": {"total": 40.0}}}}
    design = {
        "components": {"conv1.mac": "m", "classcaps.votes": "n"},
        "formats": {"conv1.mac": "sign-magnitude", "classcaps.votes": "affine"},
        "align": {"conv1.mac": 1, "classcaps.votes": 0},
    }
    assert page._element(design, counts, elements) == "25.0"  # (3 * 20 + 40) / 4
    assert page._element({**design, "align": dict.fromkeys(counts, 0)}, counts, elements) == ""  # not measured there
