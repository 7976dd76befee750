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

import numpy as np
import torch
from numpy.typing import NDArray

from model.qunits import Codes, Coding

TERMS = 1152  # of a sum that make up for each other: whole channels, for moments of a few megabytes
WINDOWS = 16_384  # about how many are looked at
DAMPING = 0.01  # of the mean moment, added to each: what few windows tell is not trusted to the last
_EXACT = 256  # windows of codes up to 255, whose moments a float32 product gives exactly
_COLUMNS = 64  # rounded before the terms behind them are corrected


def rounded_kernel(
    weight: NDArray[np.float64], coding: Coding, values: NDArray[np.integer], stride: int, padding: int
) -> Codes:
    """The codes of a kernel (Cout, Cin, Kh, Kw) that is moved over maps (N, Cin, H, W) of codes less their zero point
    (from -255 to 255).
    """
    codes = np.empty(weight.shape, np.int16)
    per = TERMS // (weight.shape[2] * weight.shape[3])
    if not per:  # kernels of more than 33 x 33: moments of gigabytes
        return coding.encode(weight)
    for first in range(0, weight.shape[1], per):
        channels = slice(first, first + per)
        moments = second_moments(values[:, channels], weight.shape[2:], stride, padding)
        part = weight[:, channels]
        codes[:, channels] = compensated(part.reshape(len(part), -1), coding, moments).reshape(part.shape)
    return codes


def second_moments(
    values: NDArray[np.integer], kernel: tuple[int, ...], stride: int, padding: int
) -> NDArray[np.float64]:
    """The mean products (K, K) of the terms of a kernel's windows on maps (N, C, H, W) of whole numbers up to 255."""
    maps = torch.from_numpy(values.astype(np.float32))
    positions = torch.nn.functional.unfold(maps[:1, :1], kernel, padding=padding, stride=stride).shape[2]
    every = max(1, len(maps) * positions // WINDOWS)
    terms = values.shape[1] * kernel[0] * kernel[1]
    moments, count = np.zeros((terms, terms)), 0
    for some in maps.split(max(1, 4 * WINDOWS // positions)):
        windows = torch.nn.functional.unfold(some, kernel, padding=padding, stride=stride)  # (N, K, P)
        windows = windows.transpose(1, 2).reshape(-1, terms)[::every]
        count += len(windows)
        for rows in windows.split(_EXACT):
            moments += (rows.T @ rows).numpy()
    return moments / count


def compensated(weights: NDArray[np.float64], coding: Coding, moments: NDArray[np.float64]) -> Codes:
    """The codes of weights (O, K), each row of which is summed with terms of these second moments (K, K)."""
    damping = DAMPING * moments.diagonal().mean()
    if not damping > 0:  # nothing is read
        return coding.encode(weights)
    inverse = np.linalg.inv(moments + damping * np.eye(len(moments)))
    upper = np.linalg.cholesky((inverse + inverse.T) / 2).T  # what a term's error is to the later ones
    left, codes = weights.copy(), np.empty(weights.shape, np.int16)
    for start in range(0, weights.shape[1], _COLUMNS):
        behind = min(start + _COLUMNS, weights.shape[1])
        errors = np.empty((len(weights), behind - start))
        for k in range(start, behind):
            codes[:, k] = coding.encode(left[:, k])
            errors[:, k - start] = (left[:, k] - coding.decode(codes[:, k])) / upper[k, k]
            left[:, k + 1 : behind] -= np.outer(errors[:, k - start], upper[k, k + 1 : behind])
        left[:, behind:] -= errors @ upper[start:behind, behind:]
    return codes
