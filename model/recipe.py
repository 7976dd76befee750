"""How a network is trained: everything that its weights depend on beside its shape and the data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch

from model.errors import RedcaneError
from model.network import Network


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
    bfloat16: bool = False  # convolutions and votes in bfloat16 on a CPU that is fast in it too, as always on a GPU
    crop: int = 0  # augmentation: pixels of zeros on every side, of which a random crop is taken; nothing is blurred
    # Augmentation: edge of a square, its middle anywhere on the image, that is set to zero (DeVries & Taylor, 2017).
    cutout: int = 0
    cutmix: float = 0.0  # augmentation: part of the images that get a square of another one, and a share of its class
    cycles: int = 1  # times that the learning rate falls, each with a fresh Adam (SGDR, Loshchilov & Hutter, 2017)
    # Above 1, the mean of the weights after so many of the last cycles is kept, and not the best epoch's (stochastic
    # weight averaging: Izmailov et al., 2018); there is no early stop then.
    average: int = 1
    weight_decay: float = 0.0  # decoupled from the gradients (AdamW: Loshchilov & Hutter, 2019)
    # NM (the ReD-CaNe paper's Eq. 3) of noise on what multiplications sum up to, while training: the network learns to
    # bear it (Murray & Edwards, 1994), and so approximate multipliers.
    noise: float = 0.0
    images: int = 0  # training images in an epoch, drawn anew for each; 0: all of them

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch", 1), ("patience", 1), ("seed", 0), ("crop", 0), ("cutout", 0),
                            ("cycles", 1), ("average", 1), ("images", 0)):  # fmt: skip
            if type(getattr(self, name)) is not int or getattr(self, name) < least:
                raise RedcaneError(f"training.{name}: {getattr(self, name)} should be a whole number from {least}")
        for name in ("learning_rate", "reconstruction", "shift", "rotation", "scale", "weight_decay", "noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise RedcaneError(f"training.{name}: {getattr(self, name)} should be a number from 0")
        if not 0 <= self.cutmix <= 1:
            raise RedcaneError(f"training.cutmix: {self.cutmix} should be a part of the images, from 0 to 1")
        if self.learning_rate == 0 or self.scale >= 1:
            raise RedcaneError("training: learning_rate should be above 0 and scale below 1")
        if self.epochs % self.cycles:
            raise RedcaneError(f"training.epochs: {self.epochs} epochs make no {self.cycles} equal cycles")
        if self.average > self.cycles:
            raise RedcaneError(f"training.average: of {self.cycles} cycles, {self.average} cannot be averaged")

    def drawn(self, images: int) -> int:
        """How many of so many training images are in an epoch."""
        return min(self.images or images, images)

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
        on_gpu = next(network.parameters()).is_cuda
        return torch.optim.AdamW(
            network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay, fused=on_gpu or None
        )

    def of_run(self) -> dict[str, object]:
        """What tells one training from another; a recipe without a later addition is what it was before that."""
        later = {"flip": False, "bfloat16": False, "crop": 0, "cycles": 1, "average": 1, "weight_decay": 0.0,
                 "noise": 0.0, "cutout": 0, "cutmix": 0.0, "images": 0}  # fmt: skip
        return {name: value for name, value in asdict(self).items() if name not in later or value != later[name]}
