"""The page of the reproduction, made from stored results: `python -m flows.reproduction.page` for docs/reproduction.md.

It reads benchmarks/reproduction/*.json, copies of the `reproduction.json` that `redcane reproduce` leaves, and
benchmarks/spread/NAME.json, copies of the `NAME-spread.json` that `redcane spread` leaves.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.config import Config
from flows.reproduction import paper
from flows.reproduction.findings import wilson
from flows.reproduction.operations import saved_by_multiplier
from flows.reproduction.plots import draw
from flows.spread_command import FIGURES, rows
from model.files import read_bounded, write_atomic
from model.multipliers.profile import TABLE_IV
from model.operations import GROUPS
from model.published import read_about

ROOT = Path(__file__).parent.parent.parent
SPREADS = ROOT / "benchmarks" / "spread"
LIMIT = 16 * 2**20
TITLES = {"everywhere": "one everywhere", "exact": "exact", "paper": "the paper's method", "ours": "our selection"}
Json = Mapping[str, Any]
Rows = Sequence[Sequence[object]]


def write_page(results: Sequence[Json], path: Path, plots: Path, others: Iterable[str] = ()) -> Path:
    """Write the page of these benchmarks, with its plots in the folder `plots`; returns its path.

    `others` are lines on benchmarks that are not there.
    """
    lines = [
        "# The paper's experiments, reproduced",
        "",
        "Tables, figures and findings of the ReD-CaNe paper (Marchisio et al., DATE 2020), from networks that this "
        "project trained, and the final design, which the paper does not report. It is made from stored results, "
        "verdicts included: `redcane reproduce BENCHMARK` measures them, `python -m flows.reproduction.page` makes the "
        "page from all that are kept in `benchmarks/reproduction/`.",
        "",
        *_overview(results),
        *others,
        *_operations(results[0]["operations"]),
    ]
    for one in results:
        links = {what: os.path.relpath(plots / file, path.parent) for what, file in draw(one, plots).items()}
        lines += [*_benchmark(one, links)]
    write_atomic(path, "\n".join(lines) + "\n")
    return path


def _overview(results: Sequence[Json]) -> Iterator[str]:
    yield "## Findings"
    rows = []
    for number, finding in enumerate(results[0]["findings"]):
        verdicts = [one["findings"][number]["verdict"] for one in results]
        rows.append([finding["claim"], finding["where"], *verdicts])
    yield from _table(["finding", "in the paper", *(one["benchmark"] for one in results)], rows)
    yield (
        "The evidence stands with each benchmark below. Undecided is what nothing contradicts, where the images do not "
        "tell apart all that is compared."
    )
    yield ""


def _without_results(results: Sequence[Json]) -> Iterator[str]:
    """The paper's benchmarks that have no stored results, and what it takes to get them."""
    done = {one["benchmark"] for one in results}
    configs = {path.stem: Config.load(path) for path in sorted((ROOT / "configs").glob("*.yaml"))}
    yield "**Without results here:**"
    yield ""
    for name, config in configs.items():
        if name in done or (config.network.kind, config.dataset) not in paper.ACCURACY:
            continue
        if config.weights is not None:
            yield f"- {name}: trained; `redcane reproduce {name}` makes them"
        else:
            yield (
                f"- {name}: not trained. `redcane publish configs/{name}.yaml --to weights/{name}.safetensors` does; "
                f"then, with `weights: ../weights/{name}.safetensors` in its configuration, `redcane reproduce {name}`"
            )
    yield ""
    yield "[deepcaps.md](deepcaps.md) tells what training a DeepCaps takes, and what a CPU takes for its results."
    yield ""


def _operations(found: Json) -> Iterator[str]:
    yield "## Table I, Fig. 4 and 5: operations and energy of DeepCaps at 64 x 64"
    exact, theirs, shares = found["deepcaps"], paper.DEEPCAPS_COUNTS, found["shares"]["deepcaps"]
    rows = [
        [name.replace("_", " "), f"{exact[name]:,}", f"{theirs[name]:,.0f}", pj, f"{shares[name]:.2f}"]
        for name, pj in paper.UNIT_ENERGY_PJ.items()
    ]
    yield from _table(["operation", "exactly", "the paper", "pJ each (the paper)", "% of the energy, exactly"], rows)
    counted = found["deepcaps_as_the_paper_counts"]
    saved = saved_by_multiplier(shares["multiplications"])
    yield (
        "Counted as the paper seems to, the convolutions alone and the strided first one of each cell at the size of "
        f"its input, it is {counted['multiplications']:,} multiplications and {counted['additions']:,} additions. NGR "
        f"in place of the exact multiplier takes 276 of 391 uW, so it saves {saved:.1f} % of the energy (Fig. 5: "
        f"{paper.SAVED['multipliers']}). The adder 5LT's {paper.SAVED['adders']} % would be "
        f"{100 * paper.SAVED['adders'] / shares['additions']:.0f} % of what additions take; the paper has no figures "
        "for the adder itself."
    )
    yield ""


def _earlier_weights(one: Json) -> Iterator[str]:
    """A remark where the weights that come along are not those of the results, by the accuracy of both."""
    file = ROOT / "configs" / f"{one['benchmark']}.yaml"
    weights = Config.load(file).weights if file.exists() and one["published"] else None
    if weights is None:
        return
    now, then = read_about(Path(weights)).stored.test, one["accuracy"]["right"] / one["accuracy"]["images"]
    if abs(now - then) > 1 / one["accuracy"]["images"]:
        yield (
            f"**These are results of earlier weights.** The network that comes along now has {100 * now:.2f} %; "
            f"`redcane reproduce {one['benchmark']} --library {one['designs']['library']}` makes them of it."
        )
        yield ""


def _benchmark(one: Json, plots: Mapping[str, str]) -> Iterator[str]:
    yield f"## {one['benchmark']}"
    table, curves = one["accuracy"], one["curves"]
    low, high = wilson(table["right"], table["images"])
    paper_says = f"; the paper (Table II): {table['paper']} %" if table["paper"] else ""
    yield (
        f"{one['network']} on {one['dataset']}, {'published weights' if one['published'] else 'trained anew'}. Float "
        f"accuracy {100 * table['right'] / table['images']:.2f} % of {table['images']:,} test images (95 % interval "
        f"{100 * low:.2f} to {100 * high:.2f}){paper_says}. Multipliers of the library `{one['designs']['library']}`, "
        f"compared by: {one['designs']['cost']}."
    )
    yield ""
    yield from _earlier_weights(one)
    rows = [[f["claim"], f["where"], f"**{f['verdict']}**", f["evidence"]] for f in one["findings"]]
    yield from _table(["finding", "in the paper", "verdict", "evidence"], rows)
    yield "### Fig. 4 and 5: where the energy goes, by the paper's energies"
    yield ""
    yield f"![energy]({plots['energy']})"
    yield ""
    settings = curves["settings"]
    yield "### Fig. 9, 12 and 10: accuracy over noise"
    yield (
        f"{curves['images']:,} test images in batches of {settings['batch']}, noise seeds "
        f"{', '.join(map(str, settings['seeds']))}, every magnitude measured wholly; bars are the deviation over the "
        f"seeds. Without noise: {100 * curves['clean_accuracy']:.2f} %."
    )
    yield ""
    yield f"![groups]({plots['groups']})"
    yield f"![layers]({plots['layers']})"
    yield ""
    yield from _curve_table(curves)
    yield from _multipliers(one["multipliers"], plots)
    yield from _designs(one["designs"], _elements(one["benchmark"]), plots)
    yield from spread_of(one["benchmark"])


def spread_of(benchmark: str) -> Iterator[str]:
    """A section on what other training seeds come to, where `redcane spread` has told."""
    file = SPREADS / f"{benchmark}.json"
    if not file.is_file():
        return
    found: Json = json.loads(read_bounded(file, LIMIT))
    outcomes = found["outcomes"]
    kept = sum(one["lost_in_selection"] <= found["budget_points"] + 1e-9 for one in outcomes)
    yield "### Other seeds"
    yield (
        f"`redcane spread configs/{benchmark}.yaml`: trained anew, analysed and assigned from every seed, multipliers "
        f"of the library `{found['library']}`; accuracies of test images, saved of {found['saved_of']}. The budget of "
        f"{found['budget_points']:g} points was kept on the selection images in {kept} of {len(outcomes)}."
    )
    yield ""
    yield from _table(["seed", *FIGURES.values()], list(rows(outcomes)))
    marks = [
        [group, f"{sum(one['resilient'][group] for one in outcomes)} of {len(outcomes)}",
         ", ".join(f"{one['critical_nm'][group]:g}" for one in outcomes)]
        for group in outcomes[0]["resilient"]
    ]  # fmt: skip
    yield from _table(["operations", "resilient in", "critical NM"], marks)


def _curve_table(curves: Json) -> Iterator[str]:
    magnitudes = [nm for nm in curves["settings"]["noise_magnitudes"] if nm > 0]
    named = {GROUPS[group]: curve for group, curve in curves["groups"].items()}
    named |= {f"{GROUPS[g]}: {layer}": c for g, layers in curves["layers"].items() for layer, c in layers.items()}
    rows = []
    for title, curve in named.items():
        points = {point["nm"]: point for point in curve["points"]}
        change = [100 * (points[nm]["mean"] - curves["clean_accuracy"]) for nm in magnitudes]
        spread = [100 * points[nm]["std"] for nm in magnitudes]
        cells = [f"{c:+.2f} ({s:.2f})" for c, s in zip(change, spread, strict=True)]
        rows.append([title, f"{curve['critical_nm']:g}", *cells])
    yield "Points of accuracy gained, and in brackets their deviation over the seeds, by NM:"
    yield ""
    yield from _table(["noise in", "critical NM", *(f"{nm:g}" for nm in magnitudes)], rows)


def _multipliers(found: Json, plots: Mapping[str, str]) -> Iterator[str]:
    yield "### Fig. 6, Fig. 11 and Table IV: the multipliers' errors"
    like, of = found["gaussian_like"], found["inexact"]
    count = ", ".join(f"{number} of {of} at {terms} MACs" for terms, number in like.items())
    yield f"Gaussian-like (|skew| < 1, |excess kurtosis| < 2; {found['samples']:,} samples): {count}. Fig. 6 for three:"
    yield ""
    yield f"![error profiles]({plots['profiles']})"
    yield ""
    yield "Fig. 11: the operands of the convolutions on training images, in the paper's codes (Eq. 1):"
    yield ""
    yield f"![operands]({plots['operands']})"
    yield ""
    noise = {row["name"]: row for row in found["noise"]}
    if found["missing_of_table_iv"]:
        yield (
            f"**Table IV and the paper's Fig. 6 want EvoApproxLib v1.0**, and the library `{found['library']}` lacks "
            f"{len(found['missing_of_table_iv'])} of its {len(TABLE_IV)} multipliers: `redcane library fetch`, then "
            "`--library evoapprox`."
        )
        yield ""
        return
    rows = []
    for name, (na, nm, na_real, nm_real) in TABLE_IV.items():
        ours = [noise[name]["uniform"][k] for k in ("na", "nm")] + [noise[name]["real"][k] for k in ("na", "nm")]
        pairs = zip((na, nm, na_real, nm_real), ours, strict=True)
        rows.append(
            [name, paper.POWER_UW[name], *(f"{theirs:.4f} / {round(mine, 4) + 0.0:.4f}" for theirs, mine in pairs)]
        )
    yield "Table IV, the paper's / ours. The real operands are those of its DeepCaps on CIFAR-10 / of this network."
    yield ""
    yield from _table(["multiplier", "uW", "NA uniform", "NM uniform", "NA real", "NM real"], rows)


def _designs(found: Json, elements: Json, plots: Mapping[str, str]) -> Iterator[str]:
    chosen_by = found.get("ours_by", "each of the two measures")  # earlier versions chose by one only
    yield "### The final design"
    yield (
        f"Accuracy by exact emulation on {found['images']:,} test images; cost of all multiplications relative to "
        f"exact multipliers ({found['cost']}), the same for every operand; and the transistors that switch with each "
        f"operation's real operands, relative to exact multipliers in sign-magnitude. Ours is chosen by "
        f"{chosen_by}{_made_ready(found)}. One multiplier everywhere: tried on {found['trial_images']:,} "
        "validation images, those that none beats there also on the test images. Red: affine codes, blue: the others."
    )
    yield ""
    yield f"![accuracy over energy]({plots['pareto']})"
    yield ""
    base = found["float"]["right"] / found["float"]["images"]
    tested = [d for d in found["designs"] if "test" in d]
    order = list(TITLES)
    rows = []
    for design in sorted(tested, key=lambda d: (-order.index(d["kind"]), min(d["formats"].values()), -d["energy"])):
        used = _used(design["components"])
        right, images = design["test"]["right"], design["test"]["images"]
        low, high = wilson(right, images)
        rows.append(
            [
                TITLES[design["kind"]] + (f", by {design['chosen_by']}" if "chosen_by" in design else ""),
                ", ".join(sorted(set(design["formats"].values()))),
                used,
                f"{100 * right / images:.2f} ({100 * low:.2f} to {100 * high:.2f})",
                f"{100 * (base - right / images):.2f}",
                f"{100 * (1 - design['energy']):.1f}",
                f"{100 * (1 - design['switched']):.1f}",
                *([] if not elements else [_element(design, found["multiplications"], elements)]),
            ]
        )
    header = ["design", "format", "multipliers", "accuracy %", "points lost", "multipliers: saved %",
              "switching saved %"]  # fmt: skip
    yield from _table([*header, *(["element, pJ"] if elements else [])], rows)
    if elements:
        yield (
            "The element is the whole processing element, with its registers, sign logic and accumulator, on this "
            "network's operands, in osu018 cells ([formats.md](formats.md)): each operation's as measured with its "
            "multiplier everywhere, weighted by the multiplications. What several kinds of multipliers in one element "
            "cost on top is not in it (`benchmarks/pe_kinds.json`)."
        )
        yield ""


def _made_ready(found: Json) -> str:
    """What was done to our network for its multipliers. Results of earlier versions say nothing of it."""
    if "fitted" not in found:
        return ", in a version that did not fit its constants to its multipliers"
    are, epochs = "are" if found["fitted"] else "are not", found["finetune_epochs"]
    said = f"; its constants {are} [fitted](quantization.md#fitted-to-approximate-multipliers) to its multipliers"
    return f"{said}, and it is fine-tuned for {epochs} epochs" if epochs else said


def _used(components: Mapping[str, str]) -> str:
    """The multipliers and the operations of each; a single one's name alone."""
    operations: dict[str, list[str]] = {}
    for key, name in components.items():
        operations.setdefault(name, []).append(key)
    if len(operations) == 1:
        return next(iter(operations))
    return "; ".join(f"{name}: {', '.join(keys)}" for name, keys in operations.items())


def _elements(benchmark: str) -> Json:
    """Energies of the processing element by format, then multiplier, as benchmarks/formats.py measured them, if so."""
    file = ROOT / "benchmarks" / "formats.json"
    if not file.is_file():
        return {}
    results: Json = json.loads(read_bounded(file, LIMIT)).get(benchmark, {}).get("results", {})
    return results


def _element(design: Json, multiplications: Mapping[str, int], elements: Json) -> str:
    """A design's energy per multiplication, pJ; empty where one of its elements was not measured."""
    spent = 0.0
    for key, name in design["components"].items():
        place = "top" if design["align"][key] else "bottom"
        measured = elements.get("affine" if design["formats"][key] == "affine" else place, {}).get(name)
        if measured is None or design["formats"][key] == "twos-complement":
            return ""
        spent += multiplications[key] * measured["energy_pj"]["total"]
    return f"{spent / sum(multiplications.values()):.1f}"


def _table(header: Sequence[str], rows: Rows) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"
    yield ""


def main() -> None:
    """Make docs/reproduction.md and its plots from the stored results."""
    files = sorted((ROOT / "benchmarks" / "reproduction").glob("*.json"))
    results = [json.loads(read_bounded(file, LIMIT)) for file in files]
    write_page(results, ROOT / "docs" / "reproduction.md", ROOT / "docs" / "reproduction", _without_results(results))


if __name__ == "__main__":
    main()
