"""Training images moved about, cut into and mixed, so that a network sees more than there are."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from model.datasets import Split
from model.recipe import TrainingRecipe


def augment(images: Tensor, recipe: TrainingRecipe, generator: torch.Generator) -> Tensor:
    """Mirror, crop, cut a square out of, shift, rotate and scale images (N, C, H, W), as the recipe says, each by its
    own random amounts.
    """
    if recipe.flip:
        mirrored = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    if recipe.crop:
        images = _crop(images, recipe.crop, generator)
    if recipe.cutout:
        images = _cut_out(images, recipe.cutout, generator)
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


def _cut_out(images: Tensor, edge: int, generator: torch.Generator) -> Tensor:
    """Images (N, C, H, W), in each a square of zeros, its middle anywhere on the image."""
    return images.masked_fill(_squares(images, torch.tensor(edge), generator), 0.0)


def mix(
    images: Tensor, shares: Tensor, recipe: TrainingRecipe, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """CutMix (Yun et al., ICCV 2019): so many of the images (N, C, H, W) as the recipe says get a square of another one
    of them, of a random area, and its classes' shares (N, J) for as much of the image as that covers.
    """
    if recipe.cutmix == 0:
        return images, shares
    n, _, height, width = images.shape
    partner = torch.randperm(n, generator=generator).to(images.device)
    chosen, area = torch.rand(2, n, 1, generator=generator)
    edge = torch.where(chosen < recipe.cutmix, (area * height * width).sqrt().round().long(), 0)
    pasted = _squares(images, edge, generator)
    covered = pasted.float().mean(dim=(2, 3))  # (N, 1): a part of the square may lie beyond the image
    return torch.where(pasted, images[partner], images), shares + covered * (shares[partner] - shares)


def _squares(images: Tensor, edge: Tensor, generator: torch.Generator) -> Tensor:
    """Where a square of this edge (pixels; of all or for each (N, 1)) lies, its middle anywhere on an image: of images
    (N, C, H, W), a mask (N, 1, H, W).
    """
    inside = []
    for size in images.shape[2:]:
        first = torch.randint(size, (len(images), 1), generator=generator) - edge // 2
        place = torch.arange(size)
        inside.append(((place >= first) & (place < first + edge)).to(images.device))  # (N, size)
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]


def moved_about(split: Split, recipe: TrainingRecipe, copies: int) -> Split:
    """The split's images, and `copies` times the same, moved about as in training (seeded by the recipe).

    A few hundred images tell accuracies apart by a third of a point at best; their copies lie between them.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    images = torch.from_numpy(split.images)
    moved = [augment(images, recipe, generator).numpy() for _ in range(copies)]
    return Split(np.concatenate([split.images, *moved]), np.tile(split.labels, copies + 1))
