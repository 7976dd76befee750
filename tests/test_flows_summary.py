"""What a selection saves at each level of the hardware."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from flows.summary import Facts, OperationFacts
from model.multipliers.library import load_library

LIBRARY = load_library()


def facts(assigned: dict[str, tuple[int, str]], modules: dict[str, tuple[int, int]]) -> Facts:
    found: Any = object.__new__(Facts)
    found.run = SimpleNamespace(library=LIBRARY)
    found.synthesis = {
        "top": "redcane",
        "modules": {n: {"instances": count, "transistors": size} for n, (count, size) in modules.items()},
    }
    found.__dict__["operations"] = [
        OperationFacts(key, "mac_outputs", True, count, 0.01, name, "sign-magnitude")
        for key, (count, name) in assigned.items()
    ] + [OperationFacts("classcaps.softmax", "softmax", True, 500, 0.01)]
    return found


def test_what_is_saved_shrinks_from_level_to_level() -> None:
    exact = LIBRARY.exact.cost.transistors
    of = facts(
        {"conv1.mac": (100, "mul8u_e21"), "primary.mac": (300, "mul8u_exact")},
        {"mul8u_e21": (4, 100), "mul8u_exact": (4, exact), "pe": (4, 3000), "redcane.matmul.array": (1, 14_000),
         "redcane": (1, 50_000)},
    )  # fmt: skip
    saved = (exact - 100) / 4  # in a quarter of the multiplications
    around = 3000 - 100 - exact  # transistors of a PE that every multiplication needs
    levels = of.levels
    assert levels["multipliers"] == pytest.approx(saved / exact)
    assert levels["PEs"] == pytest.approx(saved / (around + exact))
    in_array = 14_000 - 4 * 3000 + 4 * around
    assert levels["array with its adders"] == pytest.approx(4 * saved / (in_array + 4 * exact))
    in_all = 50_000 - 4 * 3000 + 4 * around
    assert levels["accelerator without its memories"] == pytest.approx(4 * saved / (in_all + 4 * exact))
    assert list(levels.values()) == sorted(levels.values(), reverse=True)


def test_exact_multipliers_save_nothing() -> None:
    exact = LIBRARY.exact.cost.transistors
    of = facts({"conv1.mac": (7, "mul8u_exact")}, {"mul8u_exact": (1, exact), "pe": (1, 3000), "redcane": (1, 9000)})
    assert set(of.levels.values()) == {0.0}
