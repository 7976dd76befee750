"""The torch emulation of the quantised network: docs/numerics.md for batches of images, on any product tables.

A product's format, alignment, signs and zero points, and its multiplier, are all one table of 256 x 256 signed *terms*,
indexed by the bytes of the two operands' codes. A sum of products is then nothing but gathers and 32-bit additions:
exact, since `QNetwork.check` keeps every sum below 2^31.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.errors import RedcaneError
from model.qnetwork import (
    COUPLING_ONE,
    Coding,
    Product,
    QClassCaps,
    QConv,
    QNetwork,
    QPrimaryCaps,
    Requantizer,
    Squash,
    Table,
    squash_intervals,
)

MEMORY = 64 * 2**20  # bytes for what lives while one tile of images is computed
SUMMED_AT_ONCE = 2**18  # accumulators that a gather works on together: 1 MiB stays in a core's cache

Observer = Callable[[str, int, Tensor], None]
"""Called with an operation's key, the routing iteration (from 1, else 0), and its accumulators (N, ...)."""


def code_values(coding: Coding) -> NDArray[np.int64]:
    """The code that each byte stands for (256,): two's complement for `signed` (-128 is no code: 0), else the byte."""
    values = np.arange(256)
    if coding.kind == "signed":
        values = np.where(values < 128, values, values - 256)
        values[128] = 0
    return values


def term_table(product: Product, table: Table) -> NDArray[np.int32]:
    """The term of every pair of operand bytes: (256, 256), row = byte of A, column = byte of B.

    Raises RedcaneError when the table is not 256 x 256 of uint16.
    """
    if table.shape != (256, 256) or table.dtype != np.uint16:
        raise RedcaneError(f"{product.component}: a table of {table.shape} {table.dtype} is not 256 x 256 of uint16")
    a, b = code_values(product.a)[:, None], code_values(product.b)[None, :]
    if product.format == "affine":
        za, zb = product.a.zero_point, product.b.zero_point
        return (table[a, b].astype(np.int64) - zb * a - za * b + za * zb).astype(np.int32)
    port_a = np.abs(a) << (product.align if product.a.kind == "signed" else 0)
    port_b = np.abs(b) << (product.align if product.b.kind == "signed" else 0)
    sign = np.where((a < 0) ^ (b < 0), -1, 1)
    return (sign * table[port_a, port_b].astype(np.int64)).astype(np.int32)


class Emulator:
    """Runs a quantised network on a device, `memory` bytes of images at a time (at the least, one image).

    Raises RedcaneError when a sum of the network could overflow.
    """

    def __init__(self, network: QNetwork, device: str | torch.device = "cpu", memory: int = MEMORY) -> None:
        network.check()
        self.network, self.device = network, torch.device(device)
        self.tile = max(1, memory // image_bytes(network))
        # transposed, so that a row holds the terms of one weight with every activation
        self._terms = {
            key: torch.from_numpy(term_table(product, network.tables[product.component]).T.copy()).to(self.device)
            for key, product, _ in network.products()
        }

    def run(self, images: NDArray[np.int16] | Tensor, observe: Observer | None = None) -> dict[str, Tensor]:
        """Every boundary of docs/numerics.md for image codes (N, H, W, C): int16 (N, ...), "class" int64 (N,).

        `observe` sees the accumulators of every operation, tile by tile. Raises RedcaneError for other shapes.
        """
        traces = [self._run(tile, observe) for tile in self._tiles(images)]
        return {name: torch.cat([trace[name] for trace in traces]) for name in traces[0]}

    def classify(self, images: NDArray[np.int16] | Tensor) -> NDArray[np.int64]:
        """Classes (N,) of image codes (N, H, W, C); holds no more than one tile's boundaries."""
        return torch.cat([self._run(tile, None)["class"] for tile in self._tiles(images)]).cpu().numpy()

    def _tiles(self, images: NDArray[np.int16] | Tensor) -> Iterator[Tensor]:
        codes = torch.as_tensor(images)
        if codes.ndim != 4 or len(codes) == 0 or tuple(codes.shape[1:]) != self.network.image:
            raise RedcaneError(
                f"the network takes images of {self.network.image} (height, width, channels), got {tuple(codes.shape)}"
            )
        for tile in codes.split(self.tile):
            yield tile.to(self.device, torch.int16)

    def _run(self, images: Tensor, observe: Observer | None) -> dict[str, Tensor]:
        trace = {"input": images}
        seen = observe or (lambda key, iteration, accumulators: None)
        x, coding = images, self.network.input
        for layer in self.network.layers:
            if isinstance(layer, QClassCaps):
                x, coding = self._class_capsules(layer, x, trace, seen), layer.squash.out
                continue
            key = f"{layer.name}.mac"
            accumulators = convolution(layer.conv, self._terms[key], x)
            seen(key, 0, accumulators)
            x, coding = requantize(layer.conv.mac.requantizer, accumulators), layer.conv.mac.out
            trace[key] = x
            if isinstance(layer, QPrimaryCaps):
                x, coding = squash(layer.squash, x.reshape(len(x), -1, layer.capsule_dim)), layer.squash.out
                trace[f"{layer.name}.squash"] = x
        trace["class"] = ((x.long() - coding.zero_point) ** 2).sum(dim=-1).argmax(dim=-1)
        return trace

    def _class_capsules(self, layer: QClassCaps, u: Tensor, trace: dict[str, Tensor], seen: Observer) -> Tensor:
        """Capsules u (N, I, Din) -> class capsules (N, J, D) of the last iteration."""
        name = layer.name
        accumulators = capsule_votes(layer, self._terms[f"{name}.votes"], u)
        seen(f"{name}.votes", 0, accumulators)
        votes = trace[f"{name}.votes"] = requantize(layer.votes.requantizer, accumulators)  # (N, I, J, D)
        n, inputs, classes, _ = votes.shape
        b = votes.new_zeros(n, classes, inputs)
        row = (votes.int() & 255) << 8  # of the votes in either transposed term table
        v = votes[:, 0]
        for t in range(1, layer.iterations + 1):
            k = trace[f"{name}.softmax.{t}"] = softmax(layer, b)
            couplings = k.mT[..., None]  # (N, I, J, 1)
            accumulators = gather(self._terms[f"{name}.weighted_sum"], row + couplings).sum(dim=1, dtype=torch.int32)
            seen(f"{name}.weighted_sum", t, accumulators)
            s = trace[f"{name}.weighted_sum.{t}"] = requantize(layer.weighted_sum.requantizer, accumulators)
            v = trace[f"{name}.squash.{t}"] = squash(layer.squash, s)  # (N, J, D)
            if t < layer.iterations:
                outputs = v.int()[:, None] & 255  # (N, 1, J, D)
                accumulators = gather(self._terms[f"{name}.agreement"], row + outputs).sum(dim=3, dtype=torch.int32)
                seen(f"{name}.agreement", t, accumulators)
                agreement = requantize(layer.agreement.requantizer, accumulators).mT
                b = trace[f"{name}.agreement.{t}"] = (b + agreement).clamp(-127, 127)
        return v


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


def requantize(unit: Requantizer, accumulators: Tensor) -> Tensor:
    """int32 accumulators -> int16 codes of the same shape."""
    scaled = (accumulators.long() * unit.multiplier + (1 << (unit.shift - 1))) >> unit.shift
    return (scaled + unit.zero_point).clamp(unit.lo, unit.hi).short()


def squash(unit: Squash, q: Tensor) -> Tensor:
    """Signed codes (..., D) -> codes of the squashed capsules, by the table of docs/numerics.md."""
    lowest = torch.from_numpy(squash_intervals()[0]).to(q.device).int()  # the first sum of squares of every index
    table = torch.from_numpy(unit.table.astype(np.int64)).to(q.device)
    q = q.long()
    n = (q * q).sum(dim=-1, keepdim=True).int()
    gain = table[torch.bucketize(n, lowest, right=True) - 1]
    v = (q * gain + (1 << (unit.shift - 1))) >> unit.shift
    return (v + unit.out.zero_point).clamp(unit.out.lo, unit.out.hi).short()


def softmax(layer: QClassCaps, b: Tensor) -> Tensor:
    """Coupling coefficients (N, J, I) of logits (N, J, I), over j."""
    table = torch.from_numpy(layer.exp_table.astype(np.int64)).to(b.device)
    e = table[(b.amax(dim=1, keepdim=True) - b).int()]
    r = torch.div(COUPLING_ONE << 16, e.sum(dim=1, keepdim=True), rounding_mode="floor")
    return ((e * r + (1 << 15)) >> 16).short()


def image_bytes(network: QNetwork) -> int:
    """Bytes that one image takes at its most: the largest layer's inputs, sums and intermediate values."""
    height, width, channels = network.image
    most = 0
    for layer in network.layers:
        if isinstance(layer, QClassCaps):
            inputs, _, classes, dim = layer.weights.shape
            most = max(most, 24 * inputs * classes * dim)  # codes, rows, indices, terms, 64-bit sums
            continue
        cout, kh, kw, _ = layer.conv.weights.shape
        x = 8 * (height + 2 * layer.conv.padding) * (width + 2 * layer.conv.padding) * channels
        height = (height + 2 * layer.conv.padding - kh) // layer.conv.stride + 1
        width = (width + 2 * layer.conv.padding - kw) // layer.conv.stride + 1
        channels = cout
        most = max(most, x + 24 * height * width * channels)
    return most
