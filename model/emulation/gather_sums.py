"""The sums of the emulation in torch alone: gathers from tables of terms and 32-bit additions.

Slow beside model/emulation/kernel_sums.py, but for any device: what a machine without a C++ compiler runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from model.qnetwork import FLOAT_BITS, QClassCaps, QConv, Requantizer, Routed, Squash, float_intervals

SUMMED_AT_ONCE = 2**18  # accumulators that a gather works on together: 1 MiB stays in a core's cache

Routing = tuple[Callable[[Tensor, Requantizer | None], Tensor], Callable[[Tensor, Requantizer | None], Tensor]]
"""The weighted sums (N, J, D) of couplings (N, J, I), and the agreements (N, J, I) of capsules (N, J, D): accumulators
or, with a unit, the codes that it makes."""


class GatherSums:
    """Accumulators of the operations of one network; `terms` are its operations' transposed term tables (int32)."""

    def __init__(self, terms: dict[str, Tensor]) -> None:
        self._terms = terms

    def convolution(self, key: str, conv: QConv, x: Tensor, unit: Requantizer | None = None) -> Tensor:
        """Accumulators (N, H', W', Cout), int32, of codes x (N, H, W, Cin); with `unit` the codes it makes, int16."""
        return self._finished(convolution(conv, self._terms[key], x), unit)

    def votes(self, layer: QClassCaps, u: Tensor, unit: Requantizer | None = None) -> Tensor:
        """Accumulators (N, I, J, D), int32, of capsules u (N, I, Din); with `unit` the codes it makes, int16."""
        return self._finished(capsule_votes(layer, self._terms[f"{layer.name}.votes"], u), unit)

    def routing(self, layer: Routed, votes: Tensor) -> Routing:
        """The two sums over the codes of votes (N, I, J, D)."""
        row = (votes.int() & 255) << 8  # of the votes in either transposed term table

        def weighted_sum(k: Tensor, unit: Requantizer | None) -> Tensor:
            terms = gather(self._terms[f"{layer.name}.weighted_sum"], row + (k.int() & 255).mT[..., None])
            return self._finished(terms.sum(dim=1, dtype=torch.int32), unit)

        def agreement(v: Tensor, unit: Requantizer | None) -> Tensor:
            terms = gather(self._terms[f"{layer.name}.agreement"], row + (v.int()[:, None] & 255))
            return self._finished(terms.sum(dim=3, dtype=torch.int32).mT, unit)

        return weighted_sum, agreement

    def softmax(self, layer: Routed, logits: Tensor) -> Tensor:
        """Coupling coefficients (N, J, I) of logits (N, J, I)."""
        return softmax(layer, logits)

    def _finished(self, accumulators: Tensor, unit: Requantizer | None) -> Tensor:
        return self.requantize(unit, accumulators) if unit else accumulators

    def requantize(self, unit: Requantizer, accumulators: Tensor) -> Tensor:
        """int32 accumulators -> int16 codes of the same shape."""
        scaled = (accumulators.long() * unit.multiplier + (1 << (unit.shift - 1))) >> unit.shift
        codes = (scaled + unit.zero_point).clamp(unit.lo, unit.hi).short()
        return significant(codes) if unit.floats else codes

    def squash(self, unit: Squash, codes: Tensor) -> Tensor:
        """`float` codes (..., D) -> codes of the squashed capsules."""
        return squash(unit, codes)

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Torch as it is."""
        yield


def significant(codes: Tensor) -> Tensor:
    """model.qunits.significant of int16 codes."""
    magnitude = codes.abs()
    below = magnitude
    for shift in (1, 2, 4, 8):
        below = below | below >> shift
    cut = below >> FLOAT_BITS
    rounded = (magnitude + ((cut + 1) >> 1)) & ~cut
    return torch.where(codes < 0, -rounded, rounded)


def gather(terms: Tensor, index: Tensor) -> Tensor:
    """The terms (int32) at flat indices b * 256 + a (int32) of a transposed term table."""
    return terms.reshape(-1).index_select(0, index.reshape(-1)).reshape(index.shape)


def accumulate(terms: Tensor, a: Tensor, b: Tensor, out: Tensor) -> None:
    """out (M, N) += sum over k of the terms of bytes a (K, M) and b (K, N), all int32; `terms` transposed.

    For every k: the N weights' rows of terms, then for every activation its column of them: a copy of N neighbours.
    """
    for k in range(len(a)):
        columns = terms.index_select(0, b[k]).t().contiguous()  # (256, N)
        out += columns.index_select(0, a[k])


def convolution(conv: QConv, terms: Tensor, x: Tensor) -> Tensor:
    """Accumulators (N, H', W', Cout), int32, of codes x (N, H, W, Cin)."""
    pad = 3 * (0, 0) if not conv.padding else (0, 0, *4 * (conv.padding,))
    x = torch.nn.functional.pad(x, pad, value=conv.mac.a.zero_point).int() & 255
    cout, kh, kw, _ = conv.weights.shape
    weights = torch.from_numpy(conv.weights).to(x.device).int() & 255
    bias = torch.from_numpy(conv.bias).to(x.device, torch.int32)
    n, height, width, _ = x.shape
    rows, columns = (height - kh) // conv.stride + 1, (width - kw) // conv.stride + 1
    out = bias.repeat(n, rows, columns, 1)  # a copy always: it is summed into
    images = max(1, SUMMED_AT_ONCE // (rows * columns * cout))
    for part, summed in zip(x.split(images), out.split(images), strict=True):
        for ky in range(kh):
            for kx in range(kw):
                seen = part[:, ky:, kx:][:, : (rows - 1) * conv.stride + 1 : conv.stride]
                seen = seen[:, :, : (columns - 1) * conv.stride + 1 : conv.stride]  # (n, H', W', Cin)
                a = seen.flatten(0, 2).t().contiguous()
                accumulate(terms, a, weights[:, ky, kx].t().contiguous(), summed.view(-1, cout))
    return out


def capsule_votes(layer: QClassCaps, terms: Tensor, u: Tensor) -> Tensor:
    """Accumulators (N, I, J, D), int32, of capsules u (N, I, Din)."""
    inputs, dim_in, classes, dim_out = layer.weights.shape
    weights = (torch.from_numpy(layer.weights).to(u.device).int() & 255).view(inputs, dim_in, -1)
    bytes_in = (u.int() & 255).permute(1, 2, 0).contiguous()  # (I, Din, N)
    out = weights.new_zeros(inputs, len(u), classes * dim_out)
    for i in range(inputs):
        accumulate(terms, bytes_in[i], weights[i], out[i])
    return out.transpose(0, 1).reshape(len(u), inputs, classes, dim_out)


def softmax(layer: Routed, b: Tensor) -> Tensor:
    """Coupling coefficients (N, J, I) of logits (N, J, I), over j; their highest code stands for 1."""
    table = torch.from_numpy(layer.exp_table.astype(np.int64)).to(b.device)
    e = table[(b.amax(dim=1, keepdim=True) - b).int()]
    r = torch.div(layer.weighted_sum.a.hi << 16, e.sum(dim=1, keepdim=True), rounding_mode="floor")
    return ((e * r + (1 << 15)) >> 16).short()


def squash(unit: Squash, q: Tensor) -> Tensor:
    """`float` codes (..., D) -> codes of the squashed capsules, by the table of docs/numerics.md."""
    lowest = torch.from_numpy(float_intervals()[0]).to(q.device).int()  # the first sum of squares of every index
    table = torch.from_numpy(unit.table.astype(np.int64)).to(q.device)
    q = q.long()
    n = (q * q).sum(dim=-1, keepdim=True).int()
    gain = table[torch.bucketize(n, lowest, right=True) - 1]
    v = (q * gain + (1 << (unit.shift - 1))) >> unit.shift
    return (v + unit.out.zero_point).clamp(unit.out.lo, unit.out.hi).short()
