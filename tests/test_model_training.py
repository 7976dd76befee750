"""Training: the loss, the kill and the resume, weights on disk, and that the digits are learnt."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.nn.functional import one_hot

from model import training
from model.augmentation import augment, mix, moved_about
from model.capsnet import CapsNet, CapsNetShape
from model.datasets import Dataset, Split, load
from model.errors import RedcaneError
from model.recipe import TrainingRecipe
from model.threads import worthwhile_threads
from model.training import accuracy, evaluate, initial, margin_loss, train
from model.weights import load_weights, read_tensors, save_weights

TINY = CapsNetShape(
    image=(8, 8, 1), conv_channels=8, conv_kernel=3, primary_types=2, primary_dim=4,
    primary_kernel=3, primary_stride=2, classes=10, class_dim=4, decoder=(16,),
)  # fmt: skip
DIGITS = CapsNetShape(
    image=(8, 8, 1), conv_channels=32, conv_kernel=3, primary_types=8, primary_dim=8,
    primary_kernel=3, primary_stride=2, classes=10, class_dim=8,
)  # fmt: skip
RECIPE = TrainingRecipe(epochs=5, batch=64, reconstruction=0.01, seed=3)


MIXED = dataclasses.replace(RECIPE, bfloat16=True)
CYCLES = dataclasses.replace(RECIPE, epochs=6, cycles=2)
CUTMIX = dataclasses.replace(RECIPE, cutmix=0.5)
AVERAGED = dataclasses.replace(RECIPE, epochs=6, cycles=3, average=2, patience=1)


@pytest.fixture(scope="module")
def few() -> Dataset:
    digits = load("digits")
    train, validation, test = (
        Split(s.images[:200], s.labels[:200]) for s in (digits.train, digits.validation, digits.test)
    )
    return Dataset("few", train, validation, test, digits.classes)


def same(a: CapsNet, b: CapsNet) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def epoch_by_hand(
    network: CapsNet, data: Dataset, recipe: TrainingRecipe, adam: torch.optim.Optimizer, epoch: int
) -> None:
    loss = training._Loss(network, recipe, None, None)
    images, labels = torch.from_numpy(data.train.images), torch.from_numpy(data.train.labels)
    with worthwhile_threads(network):  # as train does: sums in another order have other last bits
        training._epoch(loss, loss, images, one_hot(labels, data.classes).float(), adam, epoch, lambda images: None)


def test_margin_loss_by_hand() -> None:
    capsules = torch.tensor([[[0.6, 0.8], [0.0, 0.3], [0.05, 0.0]]])  # lengths 1, 0.3, 0.05
    assert math.isclose(margin_loss(capsules, torch.tensor([[1, 0, 0]])).item(), 0.5 * 0.2**2, rel_tol=1e-4)
    expected = 0.6**2 + 0.5 * 0.9**2  # the second is there, the first imagined
    assert math.isclose(margin_loss(capsules, torch.tensor([[0, 1, 0]])).item(), expected, rel_tol=1e-4)
    mixed = margin_loss(capsules, torch.tensor([[0.25, 0.75, 0]])).item()
    assert math.isclose(mixed, 0.25 * 0.5 * 0.2**2 + 0.75 * expected, rel_tol=1e-4), "as much of each as its share"


def test_augmentation_is_small_and_repeatable() -> None:
    images = torch.rand(6, 1, 8, 8)
    plain = TrainingRecipe(shift=0, rotation=0, scale=0)
    assert augment(images, plain, torch.Generator()) is images
    one = augment(images, TrainingRecipe(), torch.Generator().manual_seed(1))
    assert torch.equal(one, augment(images, TrainingRecipe(), torch.Generator().manual_seed(1)))
    assert one.shape == images.shape and one.min() >= 0 and one.max() <= 1
    assert not torch.equal(one, images)
    dot = torch.zeros(200, 1, 9, 9)
    dot[:, 0, 4, 4] = 1
    moved = augment(dot, TrainingRecipe(shift=1, rotation=0, scale=0), torch.Generator().manual_seed(2))
    assert torch.all(moved[:, 0, 3:6, 3:6].sum(dim=(1, 2)) > 0.999), "within one pixel of where it was"


def test_a_crop_moves_by_whole_pixels_as_far_as_it_says_and_blurs_nothing() -> None:
    dot = torch.zeros(500, 3, 9, 7)
    dot[:, :, 4, 3] = torch.tensor([0.2, 0.5, 0.9])
    recipe = TrainingRecipe(shift=0, rotation=0, scale=0, crop=2)
    moved = augment(dot, recipe, torch.Generator().manual_seed(2))
    assert torch.equal(moved, augment(dot, recipe, torch.Generator().manual_seed(2)))
    where = {tuple(place) for place in moved[:, 0].nonzero()[:, 1:].tolist()}
    assert where == {(row, column) for row in range(2, 7) for column in range(1, 6)}
    assert torch.equal(moved.sum(dim=(2, 3)), dot.sum(dim=(2, 3)))
    border = torch.ones(500, 1, 9, 7)
    border = augment(border, recipe, torch.Generator().manual_seed(3))
    assert set(border.unique().tolist()) == {0, 1} and border[:, :, 2:7, 2:5].min() == 1, "zeros come in at the border"


def test_a_square_is_cut_out_anywhere_and_is_smaller_at_the_border() -> None:
    images = torch.ones(400, 2, 9, 7)
    recipe = TrainingRecipe(shift=0, rotation=0, scale=0, cutout=3)
    cut = augment(images, recipe, torch.Generator().manual_seed(2))
    assert torch.equal(cut, augment(images, recipe, torch.Generator().manual_seed(2)))
    assert torch.equal(cut[:, 0], cut[:, 1]) and set(cut.unique().tolist()) == {0, 1}
    for image in cut[:, 0]:
        rows, columns = (torch.unique(of) for of in (image == 0).nonzero(as_tuple=True))
        assert len(rows) in (2, 3) and len(columns) in (2, 3), "its middle lies on the image"
        assert (image[rows][:, columns] == 0).all() and int((image == 0).sum()) == len(rows) * len(columns)
    assert (cut.amin(dim=(0, 1)) == 0).all(), "no pixel is safe"


def test_images_are_mixed_with_as_large_a_share_of_the_class_as_of_the_image() -> None:
    images = torch.arange(400.0)[:, None, None, None].expand(400, 2, 9, 7).clone()
    shares = one_hot(torch.arange(400)).float()
    recipe = TrainingRecipe(cutmix=0.5)
    mixed, found = mix(images, shares, recipe, torch.Generator().manual_seed(2))
    again = mix(images, shares, recipe, torch.Generator().manual_seed(2))
    assert torch.equal(mixed, again[0]) and torch.equal(found, again[1])
    assert torch.equal(mixed[:, 0], mixed[:, 1])
    counted = torch.stack([(mixed[:, 0] == value).float().mean(dim=(1, 2)) for value in range(400)], dim=1)
    torch.testing.assert_close(found, counted)
    own = found.diagonal()
    assert 150 < int((own < 1).sum()) < 250, "half of them, but for the smallest squares and partners of their own"
    assert own.min() < 0.2 and ((own > 0.4) & (own < 0.6)).any(), "squares of any size"
    others = mixed[:, 0] != torch.arange(400.0)[:, None, None]
    for image in others[own < 1]:
        rows, columns = (torch.unique(of) for of in image.nonzero(as_tuple=True))
        assert int(image.sum()) == len(rows) * len(columns)
    assert others.any(dim=0).all(), "anywhere"
    assert mix(images, shares, TrainingRecipe(), torch.Generator()) == (images, shares)


@pytest.mark.parametrize(
    "recipe", [RECIPE, MIXED, CYCLES, AVERAGED, CUTMIX], ids=["single", "mixed", "cycles", "averaged", "cutmix"]
)
def test_killed_after_any_epoch_it_ends_with_the_same_weights(
    few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: TrainingRecipe
) -> None:
    whole = initial(TINY, 3)
    history = train(whole, few, recipe, tmp_path / "whole")
    save = training._save

    def save_and_die(*arguments) -> None:  # type: ignore[no-untyped-def]
        save(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_save", save_and_die)
    for _ in range(recipe.epochs):
        with pytest.raises(KeyboardInterrupt):
            train(initial(TINY, 3), few, recipe, tmp_path / "killed")
    network = initial(TINY, 3)
    assert train(network, few, recipe, tmp_path / "killed") == history, "nothing is left to do but to load the best"
    assert same(network, whole)
    assert not same(network, initial(TINY, 3))
    assert len(history.loss) == recipe.epochs and history.loss[-1] < history.loss[0]


def test_every_cycle_begins_with_the_weights_of_the_last_and_nothing_else(few: Dataset, tmp_path: Path) -> None:
    assert [round(CYCLES.at(epoch) / CYCLES.learning_rate, 2) for epoch in range(6)] == [1, 0.75, 0.25] * 2
    by_hand, whole = initial(TINY, 3), initial(TINY, 3)
    for cycle in range(2):
        adam = CYCLES.adam(by_hand)
        for epoch in range(3 * cycle, 3 * cycle + 3):
            epoch_by_hand(by_hand, few, CYCLES, adam, epoch)
    assert train(whole, few, CYCLES, tmp_path / "checkpoint").best == 5
    assert same(by_hand, whole)
    with pytest.raises(RedcaneError, match="5 epochs make no 2 equal cycles"):
        dataclasses.replace(RECIPE, cycles=2)


def test_the_last_cycles_are_averaged(few: Dataset, tmp_path: Path) -> None:
    by_hand, whole, ends = initial(TINY, 3), initial(TINY, 3), []
    for cycle in range(3):
        adam = AVERAGED.adam(by_hand)
        for epoch in range(2 * cycle, 2 * cycle + 2):
            epoch_by_hand(by_hand, few, AVERAGED, adam, epoch)
        ends.append({name: tensor.clone() for name, tensor in by_hand.state_dict().items()})
    assert len(train(whole, few, AVERAGED, tmp_path / "checkpoint").loss) == 6, "patience does not count"
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(tensor, (ends[1][name] + ends[2][name]) / 2)
        assert not torch.equal(tensor, ends[2][name])
    with pytest.raises(RedcaneError, match="of 3 cycles, 4 cannot be averaged"):
        dataclasses.replace(AVERAGED, average=4)


def test_weight_decay_keeps_weights_small(few: Dataset, tmp_path: Path) -> None:
    free, held = initial(TINY, 3), initial(TINY, 3)
    train(free, few, RECIPE, tmp_path / "free")
    train(held, few, dataclasses.replace(RECIPE, weight_decay=5.0), tmp_path / "held")
    for one, other in ((free.conv1, held.conv1), (free.primary, held.primary), (free.classcaps, held.classcaps)):
        assert other.weight.norm() < 0.9 * one.weight.norm()
    assert "weight_decay" not in RECIPE.of_run(), "unfinished trainings from before go on"


def test_an_epoch_may_draw_some_of_the_images(few: Dataset, tmp_path: Path) -> None:
    plain = TrainingRecipe(epochs=3, batch=16, seed=3, shift=0, rotation=0, scale=0, images=40)
    seen: list[set[bytes]] = []

    def forward(network: CapsNet, images: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            seen.append({image.numpy().tobytes() for image in images})
        return network(images)

    train(initial(TINY, 3), few, plain, tmp_path / "checkpoint", forward=forward)
    assert [len(batch) for batch in seen] == [16, 16, 8] * 3
    first, second, third = (set().union(*seen[start : start + 3]) for start in (0, 3, 6))
    assert len(first) == 40 and first != second != third, "none twice, and others in the next epoch"
    assert first | second | third <= {image.tobytes() for image in few.train.images}
    assert dataclasses.replace(plain, images=10_000).drawn(200) == RECIPE.drawn(200) == 200
    assert "images" not in RECIPE.of_run(), "unfinished trainings from before go on"


def test_noise_falls_on_sums_of_products_and_on_nothing_else(few: Dataset, tmp_path: Path) -> None:
    network, x = initial(TINY, 3), torch.from_numpy(few.train.images)
    noisy = training._noisy(0.05, seed=1, device=torch.device("cpu"))
    relative: dict[str, float] = {}

    def tap(
        layer: str, operation: str, output: torch.Tensor, iteration: int, operands: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        error = noisy(layer, operation, output, iteration, operands) - output
        relative[operation] = float(error.std() / (output.max() - output.min()))
        return output

    with torch.no_grad():
        network(x, tap)
    for operation, nm in relative.items():
        assert nm == (pytest.approx(0.05, rel=0.1) if operation in {"mac", "votes", "weighted_sum", "agreement"} else 0)
    assert len(relative) == 7

    clean, once, again = (initial(TINY, 3) for _ in range(3))
    recipe = dataclasses.replace(RECIPE, noise=0.05)
    train(clean, few, RECIPE, tmp_path / "clean")
    histories = [train(it, few, recipe, tmp_path / str(i)) for i, it in enumerate((once, again))]
    assert same(once, again) and histories[0] == histories[1] and not same(once, clean)
    assert "noise" not in RECIPE.of_run(), "unfinished trainings from before go on"


def test_mixed_precision_multiplies_in_bfloat16_and_routes_in_single(
    few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "multiplies_bfloat16", lambda: True)
    seen: dict[str, set[torch.dtype]] = {}

    def watched(network: CapsNet, x: torch.Tensor) -> torch.Tensor:
        def tap(layer: str, operation: str, output: torch.Tensor, iteration: int, operands: object) -> torch.Tensor:
            if network.training:
                seen.setdefault(f"{layer}.{operation}", set()).add(output.dtype)
            return output.float()

        return network(x, tap)

    single, mixed = initial(TINY, 3), initial(TINY, 3)
    train(single, few, RECIPE, tmp_path / "s")
    train(mixed, few, MIXED, tmp_path / "m", forward=watched)
    for name, types in seen.items():
        multiplied = name in ("conv1.mac", "primary.mac", "classcaps.votes")
        assert types == {torch.bfloat16 if multiplied else torch.float32}, name
    assert not same(single, mixed)
    assert all(parameter.dtype is torch.float32 for parameter in mixed.parameters())

    monkeypatch.setattr(training, "multiplies_bfloat16", lambda: False)
    seen.clear()
    train(mixed, few, MIXED, tmp_path / "slow", forward=watched)
    assert set.union(*seen.values()) == {torch.float32}


def test_the_best_epoch_is_restored(few: Dataset, tmp_path: Path) -> None:
    network = initial(TINY, 0)
    recipe = TrainingRecipe(epochs=8, batch=64, learning_rate=0.1, patience=2)
    history = train(network, few, recipe, tmp_path / "c")
    reached = evaluate(network, few.validation.images, few.validation.labels)
    assert reached == (history.validation[history.best], history.validation_loss[history.best])
    assert history.validation_loss[history.best] == min(history.validation_loss)
    assert len(history.loss) == min(8, history.best + 1 + recipe.patience)


def test_a_small_network_does_not_depend_on_the_cores(few: Dataset, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    networks = [initial(TINY, 3), initial(TINY, 3)]
    try:
        for count, network in enumerate(networks, 1):
            torch.set_num_threads(count)
            train(network, few, RECIPE, tmp_path / str(count))
            assert torch.get_num_threads() == count, "given back"
    finally:
        torch.set_num_threads(threads)
    assert same(*networks)


def test_another_recipe_starts_over(few: Dataset, tmp_path: Path) -> None:
    train(initial(TINY, 3), few, RECIPE, tmp_path / "c")
    other = dataclasses.replace(RECIPE, epochs=1)
    a, b = initial(TINY, 3), initial(TINY, 3)
    assert len(train(a, few, other, tmp_path / "c").loss) == 1
    train(b, few, other, tmp_path / "fresh")
    assert same(a, b)


def test_broken_checkpoints(few: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "c"
    recipe = dataclasses.replace(RECIPE, epochs=1)
    train(initial(TINY, 3), few, recipe, path)
    content = path.read_bytes()
    for broken in (content[:-100], content[:50], b"", b"\xff" * 64):
        path.write_bytes(broken)
        with pytest.raises(RedcaneError, match="safetensors"):
            train(initial(TINY, 3), few, recipe, path)
    tensors = safetensors.torch.load(content)
    path.write_bytes(content)
    metadata = read_tensors(path)[1]
    for history in ("[]", "{}", '{"best": 7}', "{"):
        path.write_bytes(safetensors.torch.save(tensors, metadata | {"history": history}))
        with pytest.raises(RedcaneError, match="history is damaged"):
            train(initial(TINY, 3), few, recipe, path)


def test_weights_come_back(tmp_path: Path) -> None:
    network = initial(TINY, 7)
    save_weights(network, tmp_path / "w.safetensors", {"made": "here"})
    again, metadata = load_weights(TINY, tmp_path / "w.safetensors")
    assert same(network, again) and metadata == {"made": "here"}
    assert same(network, initial(TINY, 7)) and not same(network, initial(TINY, 8))


def test_bad_weights(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(RedcaneError, match="no such file"):
        load_weights(TINY, path)
    save_weights(initial(TINY, 0), path, {})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(RedcaneError, match="whole safetensors"):
        load_weights(TINY, path)
    path.write_bytes(b"PK\x03\x04 a pickled thing")
    with pytest.raises(RedcaneError, match="whole safetensors"):
        load_weights(TINY, path)
    path.write_bytes(content)
    with pytest.raises(RedcaneError, match=r"conv1\.weight is"):
        load_weights(dataclasses.replace(TINY, conv_channels=16), path)
    with pytest.raises(RedcaneError, match=r"decoder\.0\.bias does not belong"):
        load_weights(dataclasses.replace(TINY, decoder=()), path)
    tensors = initial(TINY, 0).state_dict()
    for change, words in (
        ({"conv1.bias": torch.full((8,), math.nan)}, "not finite"),
        ({"conv1.bias": torch.zeros(8, dtype=torch.int32)}, "int32"),
    ):
        path.write_bytes(safetensors.torch.save(tensors | change))
        with pytest.raises(RedcaneError, match=words):
            load_weights(TINY, path)
    del tensors["classcaps.weight"]
    path.write_bytes(safetensors.torch.save(tensors))
    with pytest.raises(RedcaneError, match=r"no tensor classcaps\.weight"):
        load_weights(TINY, path)


def test_what_does_not_fit(few: Dataset, tmp_path: Path) -> None:
    with pytest.raises(RedcaneError, match="8, 8, 1"):
        train(initial(dataclasses.replace(TINY, image=(9, 8, 1)), 0), few, RECIPE, tmp_path / "c")
    with pytest.raises(RedcaneError, match="no decoder"):
        train(initial(dataclasses.replace(TINY, decoder=()), 0), few, RECIPE, tmp_path / "c")
    for wrong in ({"epochs": 0}, {"learning_rate": 0.0}, {"scale": 1.0}, {"seed": -1}, {"shift": math.nan}):
        with pytest.raises(RedcaneError, match=f"training.*{next(iter(wrong))}"):
            TrainingRecipe(**wrong)


def test_a_loss_that_explodes_is_told(few: Dataset, tmp_path: Path) -> None:
    broken = dataclasses.replace(few, train=Split(few.train.images * np.float32(math.nan), few.train.labels))
    with pytest.raises(RedcaneError, match="no number after epoch 0"):
        train(initial(TINY, 0), broken, RECIPE, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_the_digits_are_learnt(tmp_path: Path) -> None:
    digits = load("digits")
    network = initial(DIGITS, 0)
    train(network, digits, TrainingRecipe(epochs=40), tmp_path / "c")
    assert accuracy(network, digits.test.images, digits.test.labels) >= 0.975


def test_images_moved_about() -> None:
    split = load("digits").validation
    recipe = TrainingRecipe(seed=3)
    moved = moved_about(split, recipe, 2)
    count = len(split.labels)
    assert moved.images.shape == (3 * count, 1, 8, 8) and moved.images.dtype == np.float32
    assert np.array_equal(moved.images[:count], split.images)
    assert np.array_equal(moved.labels.reshape(3, count), [split.labels] * 3)
    assert not np.array_equal(moved.images[count : 2 * count], moved.images[2 * count :])
    assert np.array_equal(moved_about(split, recipe, 2).images, moved.images)
