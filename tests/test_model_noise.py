"""The noise of Eq. 3-4: its size, where it goes, and what it depends on."""

import pytest
import torch

from model.capsnet import CapsNetShape
from model.noise import Injection, add_noise, noise_tap
from model.training import initial

SHAPE = CapsNetShape(
    image=(6, 6, 1), conv_channels=4, conv_kernel=3, primary_types=2, primary_dim=4,
    primary_kernel=2, primary_stride=2, classes=3, class_dim=4,
)  # fmt: skip


@pytest.mark.parametrize(("nm", "na"), [(0.1, 0.0), (0.02, 0.05), (0.0, -0.1)])
def test_magnitude_and_average_are_relative_to_the_range(nm: float, na: float) -> None:
    x = torch.rand(400, 500) * 6 - 2
    error = (add_noise(x, nm, na, torch.Generator().manual_seed(0)) - x) / (x.max() - x.min())
    assert error.mean().item() == pytest.approx(na, abs=0.001)
    assert error.std().item() == pytest.approx(nm, rel=0.01, abs=1e-6)


def taps(injection: Injection, seed: int, batch: int) -> dict[tuple[str, int], torch.Tensor]:
    """Every operation's clean and noisy output, on clean inputs."""
    noisy = noise_tap(injection, seed, batch)
    found = {}

    def watch(layer, operation, output, iteration, operands):  # type: ignore[no-untyped-def]
        found[f"{layer}.{operation}", iteration] = noisy(layer, operation, output, iteration, operands) - output
        return output

    with torch.no_grad():
        initial(SHAPE, 0)(torch.linspace(0, 1, 72).reshape(2, 1, 6, 6), watch)
    return found


def test_only_the_chosen_operations_are_noisy() -> None:
    found = taps(Injection(frozenset({"conv1.mac", "classcaps.squash"}), 0.1), 0, 0)
    noisy = {key for key, error in found.items() if error.abs().max() > 0}
    assert noisy == {("conv1.mac", 0), *(("classcaps.squash", i) for i in range(3))}


def test_a_tensor_of_one_value_has_no_range_and_no_noise() -> None:
    found = taps(Injection(frozenset({"classcaps.softmax"}), 0.1), 0, 0)
    assert found["classcaps.softmax", 0].abs().max() == 0  # all coefficients are equal before the first update
    assert found["classcaps.softmax", 1].abs().max() > 0


def test_draws_depend_on_seed_operation_iteration_and_batch_only() -> None:
    squash = frozenset({"classcaps.squash"})
    one = taps(Injection(squash, 0.1), 5, 2)
    both = taps(Injection(squash | {"conv1.mac", "primary.mac"}, 0.1), 5, 2)
    assert torch.equal(one["classcaps.squash", 1], both["classcaps.squash", 1])
    unit = {(s, b): taps(Injection(squash, 0.1), s, b) for s, b in ((5, 2), (6, 2), (5, 3))}
    draws = [unit[s, b]["classcaps.squash", i] for s, b, i in ((5, 2, 1), (6, 2, 1), (5, 3, 1), (5, 2, 2))]
    draws = [draw / draw.std() for draw in draws]
    for i, a in enumerate(draws):
        for b in draws[i + 1 :]:
            assert not torch.allclose(a, b, atol=0.01)
