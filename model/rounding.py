"""Weights rounded for the sums that they are in: each one's error is made up for by those that are rounded after it.

Nearest codes have the least error of the weights, but what counts is that of the sums: where a layer's inputs go
together, as neighbouring pixels do, errors can be made to cancel. With the second moments H of what the layer reads,
the expected squared error of a sum is e^T H e. Weights are rounded one term after the other, and what that leaves of
the error is taken out as well as the terms to come can (Frantar et al., "GPTQ: Accurate Post-Training Quantization for
Generative Pre-trained Transformers", ICLR 2023, Sec. 3: the optimal update of Hassibi's surgeon, in a fixed order).

All is computed from the codes that the layer reads: their moments are whole numbers, the same in whatever order they
are summed. The codes' scales come from the float network and differ in the seventh digit from one machine to the next.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.qunits import Codes, Coding

TERMS = 1152  # of a sum that make up for each other: whole channels, for moments of a few megabytes
WINDOWS = 16_384  # about how many are looked at
DAMPING = 0.01  # of the mean moment, added to each: what few windows tell is not trusted to the last
_EXACT = 256  # windows of codes up to 255, whose moments a float32 product gives exactly
_COLUMNS = 64  # rounded before the terms behind them are corrected


class Grid(Protocol):
    """What the codes of weights stand for, in a sum's terms each its own."""

    def best(self, term: int, weights: NDArray[np.float64], left: float) -> tuple[Codes, NDArray[np.float64]]:
        """The codes (O,) that serve best for weights (O,) of a term, and the values that they stand for.

        An error of 1 leaves `left` of the sums' squared error, when the terms after it have made up for what they can.
        """
        ...


class EvenGrid:
    """The values of a coding, the same in every term."""

    def __init__(self, coding: Coding) -> None:
        self._coding = coding

    def best(self, term: int, weights: NDArray[np.float64], left: float) -> tuple[Codes, NDArray[np.float64]]:
        """The nearest; ties go up."""
        codes = self._coding.encode(weights)
        return codes, self._coding.decode(codes)


def rounded_kernel(
    weight: NDArray[np.float64], coding: Coding, values: NDArray[np.integer], stride: int, padding: int
) -> Codes:
    """The codes of a kernel (Cout, Cin, Kh, Kw) that is moved over maps (N, Cin, H, W) of codes less their zero point
    (from -255 to 255).
    """
    if not channel_groups(weight.shape):
        return coding.encode(weight)
    codes = np.empty(weight.shape, np.int16)
    for channels in channel_groups(weight.shape):
        upper = carried(second_moments(windows(values[:, channels], weight.shape[2:], stride, padding)))
        part = weight[:, channels]
        codes[:, channels] = compensated(part.reshape(len(part), -1), EvenGrid(coding), upper).reshape(part.shape)
    return codes


def channel_groups(kernel: tuple[int, ...]) -> list[slice]:
    """The input channels of a kernel (Cout, Cin, Kh, Kw) whose weights make up for each other: up to TERMS of a sum.

    None for kernels of more than 33 x 33, whose moments would take gigabytes.
    """
    per = TERMS // (kernel[2] * kernel[3])
    return [slice(first, first + per) for first in range(0, kernel[1], per)] if per else []


def windows(values: NDArray[np.integer], kernel: tuple[int, ...], stride: int, padding: int) -> Iterator[Tensor]:
    """Windows (N, K) of a kernel on maps (N, C, H, W) of whole numbers up to 255, as float32; about WINDOWS of them."""
    maps = torch.from_numpy(values.astype(np.float32))
    positions = torch.nn.functional.unfold(maps[:1, :1], kernel, padding=padding, stride=stride).shape[2]
    every = max(1, len(maps) * positions // WINDOWS)
    while math.gcd(every, positions) > 1:  # else they would all be at the same few places
        every += 1
    first = 0
    for some in maps.split(max(1, 4 * WINDOWS // positions)):
        found = torch.nn.functional.unfold(some, kernel, padding=padding, stride=stride)  # (N, K, P)
        yield found.transpose(1, 2).flatten(0, 1)[first::every]
        first = (first - len(some) * positions) % every


def second_moments(read: Iterable[Tensor]) -> NDArray[np.float64]:
    """The mean products (K, K) of the terms of windows (N, K) of whole numbers up to 255."""
    moments, count = np.zeros((0, 0)), 0
    for some in read:
        moments = moments if count else np.zeros((some.shape[1], some.shape[1]))
        count += len(some)
        for rows in some.split(_EXACT):
            moments += (rows.T @ rows).numpy()
    return moments / count


def carried(moments: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """What the error of each term is to those after it (K, K), by second moments of the terms; None if none is read."""
    damping = DAMPING * moments.diagonal().mean()
    if not damping > 0:
        return None
    inverse = np.linalg.inv(moments + damping * np.eye(len(moments)))
    return np.asarray(np.linalg.cholesky((inverse + inverse.T) / 2).T, np.float64)


def compensated(weights: NDArray[np.float64], grid: Grid, upper: NDArray[np.float64] | None) -> Codes:
    """The codes of weights (O, K) of a grid, where errors are `carried` to the terms after them by `upper` (K, K)."""
    if upper is None:
        return np.stack([grid.best(k, column, 1.0)[0] for k, column in enumerate(weights.T)], axis=1)
    left, codes = weights.copy(), np.empty(weights.shape, np.int16)
    for start in range(0, weights.shape[1], _COLUMNS):
        behind = min(start + _COLUMNS, weights.shape[1])
        errors = np.empty((len(weights), behind - start))
        for k in range(start, behind):
            codes[:, k], rounded = grid.best(k, left[:, k], 1 / upper[k, k] ** 2)
            errors[:, k - start] = (left[:, k] - rounded) / upper[k, k]
            left[:, k + 1 : behind] -= np.outer(errors[:, k - start], upper[k, k + 1 : behind])
        left[:, behind:] -= errors @ upper[start:behind, behind:]
    return codes
