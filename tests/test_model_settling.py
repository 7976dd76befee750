"""When a part of a measurement tells the whole."""

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from model.settling import pairs_to_settle, settled


@given(
    st.lists(st.sampled_from([-1, 0, 0, 0, 1]), min_size=1, max_size=60), st.integers(0, 10), st.integers(0, 60)
)
@settings(phases=[Phase.generate])
def test_certainty_is_what_no_rest_could_change(values: list[int], limit: int, seen: int) -> None:
    """With a confidence of 1, it is settled exactly when every rest says the same."""
    total, first = len(values), values[:seen]
    rest = total - len(first)
    answers = {sum(first) + change <= limit for change in (-rest, rest)}
    wanted = answers.pop() if len(answers) == 1 else None
    assert settled(np.array(first, np.int8), total, limit, 1.0) is wanted
    assert settled(np.array(values, np.int8), total, limit, 0.99) is (sum(values) <= limit)


@pytest.mark.parametrize(
    ("helped", "harmed", "least", "most"),
    [
        (0.0, 0.0, 0.2, 0.5),  # no noise at all takes a part
        (0.02, 0.02, 0.3, 1.0),
        (0.0, 0.5, 0.0, 0.1),  # much noise takes little
        (0.01, 0.05, 0.1, 0.6),
        (0.0, 0.0049, 0.5, 1.0),  # near the tolerance nearly all is needed
        (0.0, 0.0055, 0.5, 1.0),
    ],
)
def test_answers_are_right_and_clear_ones_come_early(helped: float, harmed: float, least: float, most: float) -> None:
    total, limit = 4000, 20
    rng, taken = np.random.default_rng(0), []
    values = np.zeros(total, np.int8)
    values[: round(harmed * total)] = 1
    values[total - round(helped * total) :] = -1
    for _ in range(20):
        order = rng.permutation(values)
        for seen in range(100, total + 1, 100):
            answer = settled(order[:seen], total, limit, 0.999)
            if answer is not None:
                break
        assert answer is bool(values.sum() <= limit)
        taken.append(seen / total)
    assert least <= np.mean(taken) <= most


def test_errors_are_as_rare_as_promised() -> None:
    """At the worst place, just beyond the limit, and looking after every tenth pair."""
    total, limit, wrong, runs = 500, 10, 0, 400
    rng = np.random.default_rng(1)
    values = np.zeros(total, np.int8)
    values[: limit + 1] = 1
    for _ in range(runs):
        order = rng.permutation(values)
        answers = (settled(order[:seen], total, limit, 0.9) for seen in range(10, total + 1, 10))
        wrong += next(answer for answer in answers if answer is not None)
    assert wrong / runs < 0.1 + 3 * np.sqrt(0.1 * 0.9 / runs)


@pytest.mark.parametrize("harm", [0, 1, 3])
def test_what_settling_takes_at_least(harm: int) -> None:
    total, limit = 3000, 15
    seen = np.zeros(200, np.int8)
    seen[:harm] = 1
    more = pairs_to_settle(seen, total, limit, 0.999)

    def after(pairs: int) -> bool | None:
        return settled(np.concatenate([seen, np.zeros(pairs, np.int8)]), total, limit, 0.999)

    assert after(more - 1) is None and after(more) is True
    assert pairs_to_settle(seen, total, limit, 1.0) == total - 200
