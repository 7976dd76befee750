"""Training: margin loss, optional reconstruction, early stopping, and checkpoints that survive a kill.

Two trainings with the same recipe, data, seed and threads (model/threads.py) end with the same weights, bit for bit,
also when one of them was killed and resumed: everything random in an epoch derives from (seed, epoch). Of a GPU that
is not promised: there, convolutions and votes are computed in bfloat16 too (mixed precision).
"""

from __future__ import annotations

import importlib.util
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm  # type: ignore[import-untyped]  # it has no stubs

from model.augmentation import augment, mix
from model.capsules import Tap, identity, lengths
from model.datasets import Dataset
from model.errors import RedcaneError
from model.files import digest
from model.network import Network, Shape, build
from model.operations import GROUP_OF
from model.recipe import TrainingRecipe
from model.seeds import derive_seed
from model.threads import worthwhile_threads
from model.weights import check_tensors, read_tensors, write_tensors

Forward = Callable[[Network, Tensor], Tensor]
"""A forward pass: images (N, C, H, W) to class capsules (N, J, E) that carry gradients."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""The mean loss of images (N, C, H, W) and the shares of the classes in them (N, J), which carries gradients."""


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


def margin_loss(capsules: Tensor, present: Tensor) -> Tensor:
    """Mean margin loss (Sabour, Eq. 4) of class capsules (N, J, E): m+ = 0.9, m- = 0.1, lambda = 0.5.

    `present` (N, J) is 1 for the class of an image and 0 for the others, or the classes' shares in a mixed one.
    """
    length = lengths(capsules)  # (N, J)
    missed = torch.relu(0.9 - length) ** 2
    imagined = torch.relu(length - 0.1) ** 2
    return (present * missed + 0.5 * (1 - present) * imagined).sum(dim=1).mean()


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
            loss += float(margin_loss(v, nn.functional.one_hot(y, v.shape[1]))) * len(y)
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


@cache
def multiplies_bfloat16() -> bool:
    """Whether this CPU is fast in bfloat16: without AVX-512, training in it takes twenty times as long as in single."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


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

    After every epoch (on a GPU, after some seconds of them) `checkpoint` (safetensors) is replaced; if it is there at
    the start and comes from the same recipe, shape and data, training goes on from it, else it starts over. `device` is
    what pick_device knows. `forward` takes the place of the network's own forward pass, in training and validation;
    `basis` then says what it depends on, so that a checkpoint of another one is not taken. `title` is the progress
    bar's. With a `teacher` the network learns its class capsules of the same images and not the labels (Hinton, Vinyals
    and Dean, 2015); `basis` should depend on it.

    Raises RedcaneError when the network does not fit the dataset, the checkpoint is broken, the loss stops being a
    number, or there is no such device.
    """
    check_fit(network.shape, dataset)
    where = pick_device(device)
    network.to(where)
    if recipe.reconstruction > 0 and network.decoder is None:
        raise RedcaneError("training.reconstruction: the network has no decoder; give network.decoder its hidden sizes")
    depends = [] if basis is None else [basis]
    run = json.dumps([recipe.of_run(), asdict(network.shape), dataset.digest(), *depends])
    optimizer = recipe.adam(network)
    history, kept = History(), _weights(network)
    if checkpoint.exists():
        history, kept = _resume(checkpoint, digest(run.encode()), network, optimizer) or (history, kept)
    loss = _Loss(network, recipe, forward, teacher)
    images, labels = (torch.from_numpy(part).to(where) for part in (dataset.train.images, dataset.train.labels))
    classes = nn.functional.one_hot(labels, dataset.classes).float()
    of_batch = _Loss(network, recipe, forward, teacher).for_whole_batches()
    saved = -math.inf

    with (
        worthwhile_threads(network),
        _bar(title, recipe.epochs, len(history.loss), recipe.drawn(len(dataset.train.labels))) as progress,
    ):
        for epoch in range(len(history.loss), recipe.epochs):
            if recipe.average == 1 and epoch - history.best > recipe.patience and history.best >= 0:
                break
            if epoch % (recipe.epochs // recipe.cycles) == 0:
                optimizer = recipe.adam(network)
            history.loss.append(_epoch(loss, of_batch, images, classes, optimizer, epoch, progress.update))
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
            if where.type == "cpu" or epoch == recipe.epochs - 1 or time.monotonic() - saved > _SAVED_EVERY:
                _save(checkpoint, digest(run.encode()), network, optimizer, kept, history)
                saved = time.monotonic()
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


class _Loss(nn.Module):
    """The loss of a batch, in mixed precision on a GPU and where recipe and CPU allow; `tap` may change every epoch."""

    def __init__(
        self, network: Network, recipe: TrainingRecipe, forward: Forward | None, teacher: Network | None
    ) -> None:
        super().__init__()
        self.network, self.recipe, self._forward, self._teacher = network, recipe, forward, teacher
        self.device = next(network.parameters()).device
        self.tap: Tap = _in_single_precision
        if teacher is not None:
            teacher.to(self.device).eval()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The mean loss of images (N, C, H, W) and the shares of the classes in them (N, J)."""
        network, mixed = self.network, x.is_cuda or (self.recipe.bfloat16 and multiplies_bfloat16())
        with torch.autocast(x.device.type, torch.bfloat16, enabled=mixed, cache_enabled=False):
            v = self._forward(network, x) if self._forward else network(x, self.tap)
            loss = margin_loss(v, y) if self._teacher is None else _distance(v, self._teacher, x)
            if self.recipe.reconstruction > 0:
                error = (network.reconstruct(v, y.argmax(dim=1)).float() - x).square().flatten(1).sum(dim=1).mean()
                loss = loss + self.recipe.reconstruction * error
        return loss

    def for_whole_batches(self) -> Loss:
        """The same for batches of one size. On a GPU it is compiled and recorded, where Triton is there to do it and
        every batch takes the same operations: a GPU waits long for the single operations of so small a network.
        """
        same = self._forward is None and self._teacher is None and self.recipe.noise == 0
        if self.device.type != "cuda" or not same or importlib.util.find_spec("triton") is None:
            return self
        return cast("Loss", torch.compile(self, mode="reduce-overhead", dynamic=False))


def _epoch(
    loss: _Loss,
    of_batch: Loss,
    images: Tensor,
    classes: Tensor,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    done: Callable[[int], object],
) -> float:
    """One pass over the training images, or over so many of them as the recipe says, in an order of its own; returns
    the mean loss. Their `classes` (N, J) are 1 or 0; `of_batch` is the loss of whole batches; `done` hears of them.
    """
    recipe, device = loss.recipe, loss.device
    generator = torch.Generator().manual_seed(derive_seed("epoch", recipe.seed, epoch))
    for group in optimizer.param_groups:
        group["lr"] = recipe.at(epoch)
    total = torch.zeros((), dtype=torch.float64, device=device)
    loss.tap = _noisy(recipe.noise, derive_seed("noise of training", recipe.seed, epoch), device)
    loss.network.train()
    together = recipe.batch * (_MOVED_TOGETHER if device.type == "cuda" else 1)
    order = torch.randperm(len(images), generator=generator)[: recipe.drawn(len(images))]
    for chosen in order.split(together):
        there = chosen.to(device)
        moved = mix(augment(images[there], recipe, generator), classes[there], recipe, generator)
        for x, y in zip(*(part.split(recipe.batch) for part in moved), strict=True):
            optimizer.zero_grad()
            mean = of_batch(x, y) if len(x) == recipe.batch else loss(x, y)
            mean.backward()
            optimizer.step()
            total += mean.detach().double() * len(x)
            done(len(x))
    loss.network.eval()
    return float(total) / len(order)


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


_SAVED_EVERY = 15.0  # seconds on a GPU, whose epochs may be shorter than it takes to write the checkpoint

_MOVED_TOGETHER = 64  # batches, on a GPU, which waits for each of the many small steps of an augmentation

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
            fused = optimizer.defaults["fused"]  # then the steps are counted on the GPU
            optimizer.state[parameter] = {
                k: v.to(parameter.device) if fused or k != "step" else v for k, v in state.items()
            }
    return history, {name: tensors[f"best/{name}"] for name in network.state_dict()}
