"""The tape: what is replayed is what the network computes, and only what noise changes is computed again."""

import pytest
import torch
from torch import Tensor, nn

from model.capsnet import CapsNetShape
from model.capsules import Tap, identity
from model.deepcaps import DeepCapsShape
from model.errors import RedcaneError
from model.network import Network
from model.noise import Injection, add_noise, noise_key, noise_tap
from model.operations import operations, total
from model.tape import Tape
from model.training import initial

CAPSNET = CapsNetShape(
    image=(8, 8, 1), conv_channels=4, conv_kernel=3, primary_types=2, primary_dim=4,
    primary_kernel=3, primary_stride=2, classes=5, class_dim=4,
)  # fmt: skip
DEEPCAPS = DeepCapsShape(image=(8, 8, 1), classes=10, conv_channels=8, types=2, dims=(4, 4, 4, 4), class_dim=4)


@pytest.fixture(scope="module", params=[CAPSNET, DEEPCAPS], ids=["CapsNet", "DeepCaps"])
def network(request: pytest.FixtureRequest) -> Network:
    return initial(request.param, 0).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def tape(network: Network, images: Tensor) -> Tape:
    return Tape(network, images)


def test_a_whole_replay_is_the_inference(network: Network, images: Tensor, tape: Tape) -> None:
    whole = tape.making([tape.output], {0})
    other = torch.rand(6, 1, 8, 8)
    with torch.inference_mode():
        assert torch.equal(whole.compute({0: images})[tape.output], network(images))
        assert torch.equal(whole.compute({0: other})[tape.output], network(other))
    assert whole.macs == tape.macs
    counted = total(operations(network)).multiplications  # with those of squash
    assert 0.85 * counted < tape.macs / 6 < counted


def test_noise_costs_what_follows_it_and_leaves_the_rest_alone(network: Network, images: Tensor, tape: Tape) -> None:
    found = operations(network)
    everything = tuple(operation.key for operation in found)
    for noisy in (*((operation.key,) for operation in found), everything[::2]):
        part = tape.behind(noisy)
        known = {0: images} | tape.making(part.needs, {0}).compute({0: images})
        before = {slot: tensor.clone() for slot, tensor in known.items()}

        def noise(operation: str, iteration: int, x: Tensor, out: Tensor | None) -> Tensor:
            return add_noise(x, 0.1, 0.01, noise_key(3, operation, iteration, 2), out)

        for _ in range(2):
            got = part.run(known, noise)
            with torch.inference_mode():
                wanted = network(images, noise_tap(Injection(frozenset(noisy), 0.1, 0.01), 3, 2))
            assert torch.equal(got, wanted), noisy
            assert all(torch.equal(tensor, known[slot]) for slot, tensor in before.items()), noisy
    costs = [tape.behind([operation.key]).macs for operation in found]
    assert costs[0] < tape.macs and costs[-1] < 0.15 * tape.macs
    assert tape.behind([]).macs == 0


def test_known_slots_are_not_computed_again(network: Network, images: Tensor, tape: Tape) -> None:
    late, early = tape.behind([operations(network)[-1].key]), tape.behind([operations(network)[2].key])
    known = tape.making(early.needs, {0}).compute({0: images})
    rest = tape.making(late.needs, {0, *known})
    assert 0 < rest.macs < tape.making(late.needs, {0}).macs
    made = rest.compute({0: images} | known)
    afresh = tape.making(late.needs, {0}).compute({0: images})
    assert all(torch.equal(made[slot], afresh[slot]) for slot in made)
    assert all(tape.worth(slot) >= 0 for slot in late.needs)


class Odd(nn.Module):
    """Something that is no plain function of its input."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def forward(self, images: Tensor, tap: Tap = identity) -> Tensor:
        x = images * 2
        if self.what == "in place":
            x += 1
        elif self.what == "random":
            x = x + torch.rand_like(x)
        elif self.what == "a number":
            x = x * float(x.sum())
        return tap("odd", "mac", x, 0, (x,))


@pytest.mark.parametrize("what", ["in place", "random", "a number"])
def test_what_cannot_be_replayed_is_refused(what: str) -> None:
    with pytest.raises(RedcaneError, match="the network calls"):
        Tape(Odd(what), torch.rand(2, 3))


def test_two_taps_of_one_tensor_stay_apart() -> None:
    class Twice(nn.Module):
        def forward(self, images: Tensor, tap: Tap = identity) -> Tensor:
            a = tap("a", "mac", images * 2, 0, (images,))
            b = tap("b", "mac", images * 2, 0, (images,))  # the same again: computed once
            return a + 10 * b

    images = torch.rand(2, 3)
    tape = Tape(Twice(), images)
    part = tape.behind(["b.mac"])
    known = {0: images} | tape.making(part.needs, {0}).compute({0: images})
    noisy = part.run(known, lambda operation, iteration, x, out: torch.add(x, 1, out=out))
    assert torch.allclose(noisy - 22 * images, torch.tensor(10.0), atol=1e-4)
    clean = tape.making([tape.output], {0}).compute({0: images})[tape.output]
    assert torch.equal(clean, images * 2 + 10 * (images * 2))
