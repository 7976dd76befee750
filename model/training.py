"""Training: margin loss, optional reconstruction, early stopping, and checkpoints that survive a kill.

Two trainings with the same recipe, data, seed and threads (model/threads.py) end with the same weights, bit for bit,
also when one of them was killed and resumed: everything random in an epoch derives from (seed, epoch). Of a GPU that
is not promised: there, convolutions and votes are computed in bfloat16 too (mixed precision).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]  # it has no stubs

from model.capsules import Tap, identity, lengths
from model.datasets import Dataset, Split
from model.errors import RedcaneError
from model.files import digest
from model.network import Network, Shape, build
from model.operations import GROUP_OF
from model.seeds import derive_seed
from model.threads import worthwhile_threads
from model.weights import check_tensors, read_tensors, write_tensors

Forward = Callable[[Network, Tensor], Tensor]
"""A forward pass: images (N, C, H, W) to class capsules (N, J, E) that carry gradients."""


@dataclass(frozen=True)
class TrainingRecipe:
    """How to train. The defaults are those of the digits."""

    epochs: int = 120
    batch: int = 32
    learning_rate: float = 3e-3  # of Adam; falls to zero along half a cosine
    patience: int = 40  # epochs without a better validation before stopping
    reconstruction: float = 0.0  # weight of the decoder's squared error, summed over the pixels (the paper: 0.0005)
    shift: float = 0.7  # augmentation: largest random shift, pixels
    rotation: float = 8.0  # degrees
    scale: float = 0.05  # fraction
    seed: int = 0
    flip: bool = False  # mirror half of the images left to right
    bfloat16: bool = False  # convolutions and votes in bfloat16 on the CPU too, as always on a GPU
    crop: int = 0  # augmentation: pixels of zeros on every side, of which a random crop is taken; nothing is blurred
    cycles: int = 1  # times that the learning rate falls, each with a fresh Adam (SGDR, Loshchilov & Hutter, 2017)
    # Above 1, the mean of the weights after so many of the last cycles is kept, and not the best epoch's (stochastic
    # weight averaging: Izmailov et al., 2018); there is no early stop then.
    average: int = 1
    weight_decay: float = 0.0  # decoupled from the gradients (AdamW: Loshchilov & Hutter, 2019)
    # NM (the ReD-CaNe paper's Eq. 3) of noise on what multiplications sum up to, while training: the network learns to
    # bear it (Murray & Edwards, 1994), and so approximate multipliers.
    noise: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch", 1), ("patience", 1), ("seed", 0), ("crop", 0), ("cycles", 1),
                            ("average", 1)):  # fmt: skip
            if type(getattr(self, name)) is not int or getattr(self, name) < least:
                raise RedcaneError(f"training.{name}: {getattr(self, name)} should be a whole number from {least}")
        for name in ("learning_rate", "reconstruction", "shift", "rotation", "scale", "weight_decay", "noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise RedcaneError(f"training.{name}: {getattr(self, name)} should be a number from 0")
        if self.learning_rate == 0 or self.scale >= 1:
            raise RedcaneError("training: learning_rate should be above 0 and scale below 1")
        if self.epochs % self.cycles:
            raise RedcaneError(f"training.epochs: {self.epochs} epochs make no {self.cycles} equal cycles")
        if self.average > self.cycles:
            raise RedcaneError(f"training.average: of {self.cycles} cycles, {self.average} cannot be averaged")

    def at(self, epoch: int) -> float:
        """The learning rate in an epoch."""
        cycle = self.epochs // self.cycles
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (epoch % cycle) / cycle))

    def ends_averaged(self, epoch: int) -> int:
        """How many cycles that are averaged have ended with this epoch, if one does; else 0."""
        length = self.epochs // self.cycles
        ended = (epoch + 1) // length - (self.cycles - self.average)
        return ended if self.average > 1 and (epoch + 1) % length == 0 and ended > 0 else 0

    def adam(self, network: Network) -> torch.optim.AdamW:
        """A fresh optimizer, as at the start of every cycle; without weight decay AdamW is Adam."""
        return torch.optim.AdamW(network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)

    def of_run(self) -> dict[str, object]:
        """What tells one training from another; a recipe without a later addition is what it was before that."""
        later = {"flip": False, "bfloat16": False, "crop": 0, "cycles": 1, "average": 1, "weight_decay": 0.0,
                 "noise": 0.0}  # fmt: skip
        return {name: value for name, value in asdict(self).items() if name not in later or value != later[name]}


@dataclass
class History:
    """What a training did, epoch by epoch; accuracies as fractions."""

    loss: list[float] = field(default_factory=list)  # mean training loss
    validation: list[float] = field(default_factory=list)  # validation accuracy
    validation_loss: list[float] = field(default_factory=list)
    best: int = -1  # the epoch of the lowest validation loss, whose weights are kept unless cycles are averaged

    def better(self) -> bool:
        """Whether the last epoch has the lowest validation loss (finer than the accuracy of few images)."""
        return self.best < 0 or self.validation_loss[-1] < self.validation_loss[self.best]


def initial(shape: Shape, seed: int) -> Network:
    """A fresh network whose weights depend on the seed only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(shape)


def margin_loss(capsules: Tensor, labels: Tensor) -> Tensor:
    """Mean margin loss (Sabour, Eq. 4) of class capsules (N, J, E): m+ = 0.9, m- = 0.1, lambda = 0.5."""
    length = lengths(capsules)  # (N, J)
    present = nn.functional.one_hot(labels, length.shape[1])
    missed = torch.relu(0.9 - length) ** 2
    imagined = torch.relu(length - 0.1) ** 2
    return (present * missed + 0.5 * (1 - present) * imagined).sum(dim=1).mean()


def augment(images: Tensor, recipe: TrainingRecipe, generator: torch.Generator) -> Tensor:
    """Mirror, crop, shift, rotate and scale images (N, C, H, W), as the recipe says, each by its own random amounts."""
    if recipe.flip:
        mirrored = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    if recipe.crop:
        images = _crop(images, recipe.crop, generator)
    if recipe.shift == recipe.rotation == recipe.scale == 0:
        return images
    n, _, height, width = images.shape
    random = (torch.rand(n, 4, generator=generator) * 2 - 1).to(images.device)
    angle = random[:, 0] * math.radians(recipe.rotation)
    zoom = 1 + random[:, 1] * recipe.scale
    affine = torch.stack(
        [
            torch.stack([zoom * angle.cos(), -zoom * angle.sin(), random[:, 2] * 2 * recipe.shift / width], dim=1),
            torch.stack([zoom * angle.sin(), zoom * angle.cos(), random[:, 3] * 2 * recipe.shift / height], dim=1),
        ],
        dim=1,
    )  # (N, 2, 3)
    grid = nn.functional.affine_grid(affine, list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, align_corners=False).clamp(0, 1)


def _crop(images: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    """Images (N, C, H, W) padded with zeros, of which each keeps a random window of its own size, in whole pixels."""
    n, _, height, width = images.shape
    top, left = torch.randint(2 * pad + 1, (2, n, 1), generator=generator).to(images.device)
    rows = top + torch.arange(height, device=images.device)  # (N, H)
    columns = left + torch.arange(width, device=images.device)
    padded = nn.functional.pad(images, (pad, pad, pad, pad)).permute(0, 2, 3, 1)
    image = torch.arange(n, device=images.device)[:, None, None]
    return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def moved_about(split: Split, recipe: TrainingRecipe, copies: int) -> Split:
    """The split's images, and `copies` times the same, moved about as in training (seeded by the recipe).

    A few hundred images tell accuracies apart by a third of a point at best; their copies lie between them.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    images = torch.from_numpy(split.images)
    moved = [augment(images, recipe, generator).numpy() for _ in range(copies)]
    return Split(np.concatenate([split.images, *moved]), np.tile(split.labels, copies + 1))


def evaluate(
    network: Network,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    batch: int = 256,
    tap: Callable[[int], Tap] = lambda batch_index: identity,
    forward: Forward | None = None,
) -> tuple[float, float]:
    """Accuracy (fraction) and mean margin loss on images (N, C, H, W); `tap` gives the tap for each batch index.

    With `forward` the class capsules come from it, and there are no taps.
    """
    correct, loss = 0, 0.0
    device = next(network.parameters()).device
    with torch.inference_mode(), worthwhile_threads(network):
        for index, start in enumerate(range(0, len(labels), batch)):
            x, y = (torch.from_numpy(values[start : start + batch]).to(device) for values in (images, labels))
            v = forward(network, x) if forward else network(x, tap(index))
            correct += int((lengths(v).argmax(dim=1) == y).sum())
            loss += float(margin_loss(v, y)) * len(y)
    return correct / len(labels), loss / len(labels)


def accuracy(
    network: Network,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    batch: int = 256,
    tap: Callable[[int], Tap] = lambda batch_index: identity,
) -> float:
    """The fraction of images (N, C, H, W) whose longest class capsule is that of the label."""
    return evaluate(network, images, labels, batch, tap)[0]


def pick_device(name: str) -> torch.device:
    """The device of a name: "cpu", "cuda", or "auto" for a GPU where there is one.

    Raises RedcaneError when "cuda" is asked for and torch finds no GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise RedcaneError("train.device: cuda is asked for, but torch finds no GPU; take auto or cpu")
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else name.replace("auto", "cpu"))


def train(
    network: Network,
    dataset: Dataset,
    recipe: TrainingRecipe,
    checkpoint: Path,
    device: str = "cpu",
    forward: Forward | None = None,
    title: str = "train",
    basis: str | None = None,
    teacher: Network | None = None,
) -> History:
    """Train the network in place and leave it, on the CPU, with the weights of its best epoch on the validation split,
    or with the mean that the recipe asks for.

    After every epoch `checkpoint` (safetensors) is replaced; if it is there at the start and comes from the same
    recipe, shape and data, training goes on from it, else it starts over. `device` is what pick_device knows.
    `forward` takes the place of the network's own forward pass, in training and validation; `basis` then says what it
    depends on, so that a checkpoint of another one is not taken. `title` is the progress bar's. With a `teacher` the
    network learns its class capsules of the same images and not the labels (Hinton, Vinyals and Dean, 2015); `basis`
    should depend on it.

    Raises RedcaneError when the network does not fit the dataset, the checkpoint is broken, the loss stops being a
    number, or there is no such device.
    """
    check_fit(network.shape, dataset)
    network.to(pick_device(device))
    if recipe.reconstruction > 0 and network.decoder is None:
        raise RedcaneError("training.reconstruction: the network has no decoder; give network.decoder its hidden sizes")
    depends = [] if basis is None else [basis]
    run = json.dumps([recipe.of_run(), asdict(network.shape), dataset.digest(), *depends])
    optimizer = recipe.adam(network)
    history, kept = History(), _weights(network)
    if checkpoint.exists():
        history, kept = _resume(checkpoint, digest(run.encode()), network, optimizer) or (history, kept)

    with (
        worthwhile_threads(network),
        _bar(title, recipe.epochs, len(history.loss), len(dataset.train.labels)) as progress,
    ):
        for epoch in range(len(history.loss), recipe.epochs):
            if recipe.average == 1 and epoch - history.best > recipe.patience and history.best >= 0:
                break
            if epoch % (recipe.epochs // recipe.cycles) == 0:
                optimizer = recipe.adam(network)
            history.loss.append(_epoch(network, dataset, recipe, optimizer, epoch, forward, progress.update, teacher))
            validated = evaluate(network, dataset.validation.images, dataset.validation.labels, forward=forward)
            history.validation.append(validated[0])
            history.validation_loss.append(validated[1])
            if not math.isfinite(history.loss[-1] + validated[1]):
                raise RedcaneError(f"training: the loss is no number after epoch {epoch}; lower training.learning_rate")
            if history.better():
                history.best = epoch
                kept = kept if recipe.average > 1 else _weights(network)
            if ended := recipe.ends_averaged(epoch):
                kept = _mean(kept, _weights(network), ended)
            _save(checkpoint, digest(run.encode()), network, optimizer, kept, history)
            reached = f"{100 * validated[0]:.2f}%"
            progress.set_postfix(epoch=epoch + 1, loss=f"{history.loss[-1]:.4f}", validation=reached)
    network.load_state_dict(kept)
    network.cpu()
    return history


def _bar(title: str, epochs: int, finished: int, images: int) -> tqdm:
    """Progress in images, since an epoch of a large network takes minutes."""
    return tqdm(total=epochs * images, initial=finished * images, desc=title, unit="image", unit_scale=True)


def check_fit(shape: Shape, dataset: Dataset) -> None:
    """Raise RedcaneError unless a network of this shape takes the dataset's images and knows its classes."""
    if shape.image != dataset.image or shape.classes != dataset.classes:
        raise RedcaneError(
            f"network: made for images of {shape.image} and {shape.classes} classes, "
            f"but {dataset.name} has images of {dataset.image} and {dataset.classes} classes"
        )


def _epoch(
    network: Network,
    dataset: Dataset,
    recipe: TrainingRecipe,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    forward: Forward | None,
    done: Callable[[int], object],
    teacher: Network | None = None,
) -> float:
    """One pass over the training images in an order of its own; returns the mean loss. `done` hears of every batch."""
    if teacher is not None:
        teacher.to(next(network.parameters()).device).eval()
    generator = torch.Generator().manual_seed(derive_seed("epoch", recipe.seed, epoch))
    for group in optimizer.param_groups:
        group["lr"] = recipe.at(epoch)
    images, labels = torch.from_numpy(dataset.train.images), torch.from_numpy(dataset.train.labels)
    device = next(network.parameters()).device
    total = torch.zeros((), dtype=torch.float64, device=device)
    tap = _noisy(recipe.noise, derive_seed("noise of training", recipe.seed, epoch), device)
    network.train()
    for chosen in torch.randperm(len(labels), generator=generator).split(recipe.batch):
        x, y = augment(images[chosen].to(device), recipe, generator), labels[chosen].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bfloat16 or device.type == "cuda"):
            v = forward(network, x) if forward else network(x, tap)
            loss = margin_loss(v, y) if teacher is None else _distance(v, teacher, x)
            if recipe.reconstruction > 0:
                error = (network.reconstruct(v, y).float() - x).square().flatten(1).sum(dim=1).mean()
                loss = loss + recipe.reconstruction * error
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach().double() * len(chosen)
        done(len(chosen))
    network.eval()
    return float(total) / len(labels)


def _distance(capsules: Tensor, teacher: Network, images: Tensor) -> Tensor:
    """Mean squared distance of all class capsules (N, J, E) of an image from the teacher's."""
    with torch.no_grad():
        taught = teacher(images, _in_single_precision)
    return (capsules - taught).square().sum(dim=(1, 2)).mean()


def _in_single_precision(
    layer: str, operation: str, output: Tensor, iteration: int, operands: tuple[Tensor, ...]
) -> Tensor:
    """The tap of mixed precision: what was multiplied in bfloat16 goes on as float32, in which squash is computed."""
    return output.float()


_DRAWN = 2**22  # values; more than a layer of a batch of the compact networks has


def _noisy(nm: float, seed: int, device: torch.device) -> Tap:
    """The tap of training: single precision and, where the noise magnitude is not 0, noise of the paper's model.

    Stretches of once drawn noise, each from a random place: to draw it all takes longer than all else. (The kernel of
    model/noise.py, made for inference, knows neither gradients nor a GPU.)
    """
    if nm == 0:
        return _in_single_precision
    places = torch.Generator().manual_seed(seed)
    drawn = torch.randn(_DRAWN, generator=torch.Generator().manual_seed(seed)).to(device)

    def noise_like(output: Tensor) -> Tensor:
        start = int(torch.randint(_DRAWN, (), generator=places))
        stretches, missing = [drawn[start : start + output.numel()]], output.numel() - (_DRAWN - start)
        while missing > 0:
            stretches.append(drawn[:missing])
            missing -= _DRAWN
        return torch.cat(stretches).view_as(output)

    def tap(layer: str, operation: str, output: Tensor, iteration: int, operands: tuple[Tensor, ...]) -> Tensor:
        output = output.float()
        if GROUP_OF[operation] not in ("mac", "logits"):
            return output
        low, high = output.detach().aminmax()
        return output + noise_like(output) * (nm * (high - low))

    return tap


def _weights(network: Network) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def _mean(of_before: dict[str, Tensor], added: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """The mean of `count` networks' weights, of which all but one have this mean; counters are the last one's.

    Statistics of a batch normalisation are averaged too, which is near theirs: the networks are of one training.
    """
    return {
        name: of_before[name] + (tensor - of_before[name]) / count if tensor.is_floating_point() else tensor
        for name, tensor in added.items()
    }


_ADAM = ("step", "exp_avg", "exp_avg_sq")  # its state for a parameter


def _save(
    path: Path,
    run: str,
    network: Network,
    optimizer: torch.optim.Optimizer,
    kept: dict[str, Tensor],
    history: History,
) -> None:
    """Write the checkpoint: weights, Adam's state, the weights kept so far (as "best"), the history, and the run."""
    tensors = {f"weights/{name}": tensor for name, tensor in _weights(network).items()}
    tensors |= {f"best/{name}": tensor for name, tensor in kept.items()}
    for name, parameter in network.named_parameters():
        # A decoder that is not trained has no state.
        tensors |= {f"adam/{name}/{key}": value for key, value in optimizer.state.get(parameter, {}).items()}
    write_tensors(path, tensors, {"run": run, "history": json.dumps(asdict(history))})


def _resume(
    path: Path, run: str, network: Network, optimizer: torch.optim.Optimizer
) -> tuple[History, dict[str, Tensor]] | None:
    """Put network and optimizer back to where the checkpoint left them; None when it belongs to another run."""
    tensors, metadata = read_tensors(path)
    if metadata.get("run") != run:
        return None
    expected = {f"{kind}/{name}": t for kind in ("weights", "best") for name, t in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        if f"adam/{name}/step" in tensors:
            expected |= {f"adam/{name}/{key}": torch.tensor(0.0) if key == "step" else parameter for key in _ADAM}
    check_tensors(path, tensors, expected)
    try:
        history = History(**json.loads(metadata["history"]))
        if not 0 <= history.best < len(history.loss) == len(history.validation) == len(history.validation_loss):
            raise ValueError("lengths differ")
    except (KeyError, ValueError, TypeError) as error:
        raise RedcaneError(f"{path}: its history is damaged ({error}); delete the file to train anew") from None
    network.load_state_dict({name: tensors[f"weights/{name}"] for name in network.state_dict()})
    for name, parameter in network.named_parameters():
        if f"adam/{name}/step" in tensors:
            state = {key: tensors[f"adam/{name}/{key}"] for key in _ADAM}
            optimizer.state[parameter] = {k: v if k == "step" else v.to(parameter.device) for k, v in state.items()}
    return history, {name: tensors[f"best/{name}"] for name in network.state_dict()}
