"""The noise of Eq. 3-4: its size, where it goes, and what it depends on."""

import numpy as np
import pytest
import torch
from scipy import stats

from model import noise
from model.capsnet import CapsNetShape
from model.errors import RedcaneError
from model.noise import Injection, _philox, add_gaussian, add_noise, noise_tap, normal
from model.training import initial

SHAPE = CapsNetShape(
    image=(6, 6, 1), conv_channels=4, conv_kernel=3, primary_types=2, primary_dim=4,
    primary_kernel=2, primary_stride=2, classes=3, class_dim=4,
)  # fmt: skip


@pytest.mark.parametrize(("nm", "na"), [(0.1, 0.0), (0.02, 0.05), (0.0, -0.1)])
def test_magnitude_and_average_are_relative_to_the_range(nm: float, na: float) -> None:
    x = torch.rand(400, 500) * 6 - 2
    error = (add_noise(x, nm, na, 0) - x) / (x.max() - x.min())
    assert error.mean().item() == pytest.approx(na, abs=0.001)
    assert error.std().item() == pytest.approx(nm, rel=0.01, abs=1e-6)


@pytest.mark.parametrize("key", [0, 1, 2**63 - 1])
def test_draws_are_normal_and_independent(key: int) -> None:
    z = normal(2**18, key)
    assert stats.kstest(z, "norm").pvalue > 1e-4
    assert abs(stats.skew(z)) < 0.02 and abs(stats.kurtosis(z)) < 0.04
    assert 4.2 < abs(z).max() < 5.9  # expected: 4.8; the generator reaches 5.8
    for distance in (1, 2, 16, 32, 48, 64):  # 16 and 32: values of one pair of words, of one counter
        for f in (lambda v: v, np.abs):
            assert abs(np.corrcoef(f(z[:-distance]), f(z[distance:]))[0, 1]) < 0.01
    assert abs(np.corrcoef(z, normal(2**18, key + 1))[0, 1]) < 0.01


def test_philox_as_published() -> None:
    """Known answers of the Random123 distribution (kat_vectors): philox4x32 10, counter 0, key 0 and a counter of 1."""
    first = [int(word[0]) for word in _philox(1, 0)]
    assert first == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1000])
def test_the_kernel_draws_the_same_bits_as_numpy(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if noise._kernel() is None:
        pytest.skip("no C++ compiler")
    x = torch.linspace(-1, 2, count)
    fast, slow = torch.empty_like(x), torch.empty_like(x)
    add_gaussian(x, 0.37, 0.01, 2**62 + 12345, fast)
    monkeypatch.setattr(noise, "_kernel", lambda: None)
    add_gaussian(x, 0.37, 0.01, 2**62 + 12345, slow)
    assert torch.equal(fast, slow)
    assert not count or not torch.equal(fast, x)


def test_noise_follows_the_memory_and_may_replace_what_it_reads() -> None:
    x = torch.rand(30, 40)
    wanted = add_noise(x, 0.1, 0.0, 7)
    turned = x.t().contiguous().t()  # the same values, laid out by columns
    assert turned.stride() != x.stride()
    noisy = add_noise(turned, 0.1, 0.0, 7)
    assert noisy.stride() == turned.stride()
    assert torch.allclose((noisy - turned).t().reshape(-1), (wanted - x).reshape(-1), atol=1e-6)
    spread = torch.rand(1, 40).expand(30, 40)  # several elements in one place
    assert add_noise(spread, 0.1, 0.0, 7).is_contiguous()
    assert add_noise(x, 0.1, 0.0, 7, out=x) is x and torch.equal(x, wanted)
    with pytest.raises(RedcaneError, match="float32"):
        add_noise(x.double(), 0.1, 0.0, 7)


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
