"""The kernel computes what NumPy does; evolution keeps its limits, repeats itself, and goes on where it stopped."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.errors import RedcaneError
from model.multipliers import kernel as kernel_file
from model.multipliers.chromosome import CODES, FIRST, FUNCTIONS, Chromosome, Measure, array_multiplier, from_verilog
from model.multipliers.error_figures import EXACT, error_figures
from model.multipliers.evolve import Limits, Progress, _sums, evolve, pair_weights
from model.multipliers.evolved import Recipe, add, half_normal_weights, make
from model.multipliers.kernel import Kernel, SumLimits, flat, unflat
from model.multipliers.library import load_library
from model.multipliers.netlist import extract_table

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the kernel needs g++")
UNLIMITED = SumLimits(-1, -1, -1, -1, -1, -1, 0, -1.0, -1.0)


def random_chromosome(rng: np.random.Generator, nodes: int = 60) -> Chromosome:
    before = FIRST + np.arange(nodes)
    genes = np.stack([rng.integers(0, len(FUNCTIONS), nodes), rng.integers(0, before), rng.integers(0, before)], axis=1)
    return Chromosome(genes.astype(np.int32), rng.integers(0, FIRST + nodes, 16).astype(np.int32))


def damaged_exact(rng: np.random.Generator) -> Chromosome:
    """The exact multiplier with a few wrong gates: its errors are of both signs and of all sizes."""
    exact = array_multiplier()
    nodes = exact.nodes.copy()
    for node in rng.integers(0, len(nodes), 4):
        nodes[node, 0] = rng.integers(0, len(FUNCTIONS))
    return Chromosome(nodes, exact.outputs)


@pytest.mark.parametrize("seed", range(12))
def test_the_kernel_computes_what_numpy_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    circuit = random_chromosome(rng, int(rng.integers(1, 150)))
    weights = None if seed % 2 else rng.integers(0, 4096, (256, 256)).astype(np.int32)
    measure: Measure = "area" if seed % 3 else "transistors"
    kernel = Kernel(UNLIMITED, weights, measure)
    np.testing.assert_array_equal(kernel.products(circuit), circuit.table())
    assert kernel.cost(circuit) == circuit.cost(measure)


@pytest.mark.parametrize("seed", range(6))
def test_each_limit_is_exact_to_the_last_unit(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    circuit = damaged_exact(rng)
    weights = rng.integers(0, 4096, (256, 256)).astype(np.int32) * (rng.random((256, 256)) < 0.3).astype(np.int32)
    error = circuit.table().astype(np.int64) - EXACT
    size = np.abs(error)
    assert size.any(), "the damage must show"
    pairs = error.size
    sums = {"absolute": size.sum(), "worst": size.max(), "square": (error**2).sum(), "bias": abs(error.sum()),
            "weighted": (weights * size).sum(), "weighted_bias": abs((weights * error).sum()),
            "variance": pairs * (error**2).sum() - error.sum() ** 2,
            "noise": least_noise(circuit.table(), weights) * (1 + 1e-9)}
    together = replace_all(sums)
    assert Kernel(together, weights).cost(circuit) == circuit.cost()
    for name, value in sums.items():
        if value > 0:
            below = replace_all({name: value - 1 if name not in REAL else value * (1 - 2e-9)})
            assert Kernel(below, weights).cost(circuit) is None, name


def test_one_product_of_zero_that_is_not_zero_is_refused() -> None:
    exact = array_multiplier()
    demanding = Kernel(replace_all({"zero": 1}))
    assert demanding.cost(exact) == exact.cost()
    rows, columns = np.nonzero(EXACT == 0)
    for a, b in zip(rows[::37], columns[::37], strict=True):  # a detector of this pair, ORed into a product bit
        nodes: list[tuple[int, int, int]] = []
        signal = -1
        for k in range(16):
            wire, bit = k, (a >> k if k < 8 else b >> (k - 8)) & 1
            nodes.append((CODES["not"], wire, wire) if not bit else (CODES["and"], wire, wire))
            here = FIRST + len(exact.nodes) + len(nodes) - 1
            if signal >= 0:
                nodes.append((CODES["and"], signal, here))
                here = FIRST + len(exact.nodes) + len(nodes) - 1
            signal = here
        nodes.append((CODES["or"], signal, int(exact.outputs[3])))
        genes = np.concatenate([exact.nodes, np.array(nodes, np.int32)])
        outputs = exact.outputs.copy()
        outputs[3] = FIRST + len(genes) - 1
        damaged = Chromosome(genes, outputs)
        assert damaged.table()[a, b] == 8
        assert demanding.cost(damaged) is None and Kernel(replace_all({})).cost(damaged) is not None


@pytest.mark.parametrize("limits", [Limits(mae=0.1, bias=0.01), Limits(std=0.3), Limits(weighted_mae=0.05, wce=9),
                                    Limits(noise=3)])
def test_a_build_for_any_processor_finds_the_same(limits: Limits) -> None:
    weights = half_normal_weights(48) if limits.weighted_mae or limits.noise else None
    found = []
    for tuning in (kernel_file.TUNING, "-march=x86-64"):
        kernel = Kernel(_sums(limits, weights), weights, tuning=tuning)
        genes, state, simulated = flat(array_multiplier()), np.array([7], np.uint64), np.zeros(1, np.int64)
        cost = kernel.evolve(genes, state, 500, simulated)
        found.append((cost, int(state[0]), int(simulated[0]), genes.tolist()))
    assert found[0] == found[1] and found[0][0] < array_multiplier().cost()


REAL = {"variance", "noise"}  # limits that are no integers


def replace_all(sums: dict) -> SumLimits:
    values = {name: sums.get(name, -1) for name, _ in SumLimits._fields_}
    return SumLimits(**{name: float(value) if name in REAL else int(value) for name, value in values.items()})


def least_noise(table: np.ndarray, weights: np.ndarray) -> float:
    """Sum of weight * (P - g P')^2 with the best g, by least squares."""
    root = np.sqrt(weights.astype(np.float64)).reshape(-1, 1)
    return float(np.linalg.lstsq(root * table.reshape(-1, 1), (root * EXACT.reshape(-1, 1))[:, 0])[1][0])


def test_the_array_multiplier_is_exact() -> None:
    circuit = array_multiplier()
    assert len(circuit.nodes) == 320 and circuit.active.all()
    np.testing.assert_array_equal(circuit.table(), EXACT)


def test_verilog_says_what_the_chromosome_is() -> None:
    circuit = random_chromosome(np.random.default_rng(7))
    text = circuit.verilog("some", ["a comment"])
    found = extract_table(text)
    np.testing.assert_array_equal(found.table, circuit.table())
    assert found.module == "some" and found.ports == ("A", "B", "O") and text.startswith("// a comment\n")
    assert text.count("wire") == circuit.active.sum()
    again = from_verilog(text, "some", *found.ports)
    np.testing.assert_array_equal(again.table(), circuit.table())


def test_a_library_component_can_be_the_start() -> None:
    component = load_library().exact
    start = from_verilog(component.verilog, component.module, *component.ports)
    np.testing.assert_array_equal(start.table(), EXACT)


@pytest.mark.parametrize(("limits", "weighted"), [
    (Limits(mae=0.5, wce=3, bias=0.02), False),
    (Limits(wce=1), False),
    (Limits(std=0.4, bias=0.1), False),
    (Limits(mae=2, weighted_mae=0.03, weighted_bias=0.01), True),
    (Limits(mae=2, zero=True), False),
    (Limits(noise=4), True),
])
def test_the_limits_hold_on_the_result(limits: Limits, weighted: bool) -> None:
    weights = half_normal_weights(32) if weighted else None
    circuit = evolve(limits, 3, 20_000, weights)
    figures = error_figures(circuit.table())
    real = error_figures(circuit.table(), weights)
    scale = 100 * 65535 / 65536
    measured = {"mae": figures.mae_percent, "wce": figures.wce_percent, "std": scale * figures.nm,
                "bias": scale * abs(figures.na), "weighted_mae": real.mae_percent,
                "weighted_bias": scale * abs(real.na)}
    if weights is not None:
        power = float((weights * EXACT**2.0).sum())
        measured["noise"] = 100 * np.sqrt(least_noise(circuit.table(), weights) / power)
    for name, value in limits.figures().items():
        assert measured[name] <= value * (1 + 1e-9), name
    with_zero = np.concatenate([circuit.table()[0], circuit.table()[:, 0]])
    assert with_zero.any() != limits.zero  # without being told, evolution adds constants
    assert circuit.cost() < 0.9 * array_multiplier().cost()


def test_evolution_repeats_itself_and_depends_on_its_seed() -> None:
    limits = Limits(mae=0.3, wce=3)
    one, same, other = (flat(evolve(limits, seed, 4_000)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    small = evolve(limits, 1, 4_000, measure="area")
    assert small.cost("area") < 0.95 * array_multiplier().cost("area") and not np.array_equal(flat(small), one)


def test_a_stopped_evolution_goes_on_to_the_same_result(tmp_path: Path) -> None:
    limits, path = Limits(mae=0.3, wce=3), tmp_path / "search.npz"
    seen: list[Progress] = []

    def stop(progress: Progress) -> None:
        seen.append(progress)
        if progress.evaluations > 2_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evolve(limits, 1, 6_000, checkpoint=path, progress=stop)
    assert path.exists() and seen[-1].evaluations < 6_000 and seen[-1].of == 6_000
    resumed: list[int] = []
    result = evolve(limits, 1, 6_000, checkpoint=path, progress=lambda p: resumed.append(p.evaluations))
    assert resumed[0] > seen[-1].evaluations
    np.testing.assert_array_equal(flat(result), flat(evolve(limits, 1, 6_000)))
    with pytest.raises(RedcaneError, match="other limits, seed"):
        evolve(limits, 2, 6_000, checkpoint=path)
    content = path.read_bytes()
    for damage in (b"", b"nonsense", content[:200], content[:-30], content[:90] + b"\xff" * 40 + content[130:]):
        path.write_bytes(damage)
        with pytest.raises(RedcaneError, match="checkpoint") as told:
            evolve(limits, 1, 6_000, checkpoint=path)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize(("arguments", "told"), [
    ({}, "at least one of mae"), ({"bias": 1.0}, "at least one of mae"), ({"mae": -1.0}, "a percentage"),
    ({"mae": float("nan")}, "a percentage"), ({"wce": 101.0}, "a percentage"), ({"std": float("inf")}, "a percentage"),
])
def test_limits_that_make_no_sense(arguments: dict, told: str) -> None:
    with pytest.raises(RedcaneError, match=told):
        Limits(**arguments)


def test_arguments_that_make_no_sense() -> None:
    limits = Limits(mae=1)
    for seed, evaluations in ((-1, 100), (1, 0), (1, 10**13)):
        with pytest.raises(RedcaneError, match="a seed of 0 or more"):
            evolve(limits, seed, evaluations)
    with pytest.raises(RedcaneError, match="go together"):
        evolve(Limits(weighted_mae=1), 1, 100)
    with pytest.raises(RedcaneError, match="go together"):
        evolve(limits, 1, 100, half_normal_weights(32))
    with pytest.raises(RedcaneError, match="start from an exact one"):
        evolve(Limits(mae=0.001), 1, 100, start=random_chromosome(np.random.default_rng(1)))
    for bad in (np.zeros((256, 256)), -np.ones((256, 256)), np.ones(256), np.full((256, 256), np.nan)):
        with pytest.raises(RedcaneError, match="operand weights"):
            pair_weights(bad)
    with pytest.raises(RedcaneError, match="from 1 to 1000"):
        half_normal_weights(float("nan"))
    with pytest.raises(RedcaneError, match="not the genes"):
        unflat(np.zeros(20, np.int32))
    with pytest.raises(RedcaneError, match="only signals before"):
        Chromosome(np.array([[1, 0, 18]], np.int32), np.zeros(16, np.int32))


def test_pair_weights_are_of_the_pairs_that_occur() -> None:
    a, b = np.zeros(256), np.zeros(256)
    a[[3, 5]], b[7] = (1e9, 1), 2
    weights = pair_weights(a, b)
    assert weights.shape == (256, 256) and weights[3, 7] == 4095 and (weights > 0).sum() == 1
    a[5] = 1e5  # rare, but it occurs
    assert pair_weights(a, b)[5, 7] == 1


def test_a_negligible_slack_is_no_limit_broken() -> None:
    for mae in (0.005, 0.1, 3.3):
        assert _sums(Limits(mae=mae), None).absolute <= mae / 100 * 65536 * 65536 * (1 + 1e-9)


def test_a_component_carries_its_recipe_into_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDCANE_HOME", str(tmp_path))
    recipe = Recipe("mine", Limits(mae=2), 5, 2_000, half_normal=None)
    circuit = make(recipe)
    assert circuit.verilog.startswith(f"// Evolved by ReD-CaNe: {recipe.command()}\n")
    library = add("own", circuit, recipe.command())
    assert list(library.components) == ["mul8u_exact", "mine"]
    command = "redcane library evolve --mae 2 --evaluations 2000 --seed 5 --component mine"
    assert library.get("mine").provenance == command
    assert list(add("own", circuit, "again").components) == ["mul8u_exact", "mine"]
    other = replace(recipe, component="other", seed=6)
    assert len(add("own", make(other), other.command()).components) == 3
    for name in ("../up", "embedded"):
        with pytest.raises(RedcaneError, match="cannot be a library's name"):
            add(name, circuit, "")
    with pytest.raises(RedcaneError, match="cannot be a component's name"):
        make(replace(recipe, component="no; endmodule"))
    with pytest.raises(RedcaneError, match="has no component"):
        make(replace(recipe, start="mul8u_exakt"))


def test_without_native_instructions_it_computes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDCANE_CACHE", str(tmp_path))
    expected = flat(evolve(Limits(mae=0.3), 1, 2_000))
    monkeypatch.setattr(kernel_file, "TUNING", "-march=no-such-processor")  # as where `native` is not known
    kernel_file._load.cache_clear()
    try:
        np.testing.assert_array_equal(flat(evolve(Limits(mae=0.3), 1, 2_000)), expected)
    finally:
        kernel_file._load.cache_clear()
