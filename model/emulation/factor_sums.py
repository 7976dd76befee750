"""The sums of the emulation by matrix products of bytes: what tensor cores do, and CPUs with VNNI in plain torch.

Where a product's terms have integer factors (factors.py), a convolution is one of images that have a channel for every
factor: an integer matrix product with 32-bit sums. On a GPU, with Triton, byte_kernel.py computes it, and terms without
factors are looked up by table_kernel.py. All is arithmetic modulo 2^32, hence exact where a sum fits 32 bits.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.emulation.factors import Factors, factorise
from model.emulation.gather_sums import GatherSums
from model.emulation.terms import exact_terms
from model.qnetwork import QClassCaps, QConv, QNetwork, Requantizer, convolution_of

BITS = 8  # of a factor
MOST_FACTORS = {"cpu": 64, "cuda": 255}  # of a term; beyond, it is looked up
INNER = 2**16  # products of bytes that are summed at once: below 2^31
EXACT_FLOATS = 2**10  # products of bytes that are summed at once in float32: below 2^24, hence exact


class FactorSums(GatherSums):
    """Accumulators of the operations of one network; `terms` are its operations' term tables (int32, [a, b]).

    Windows of images, copied out for the matrix product, take at most `memory` bytes (but at least one image's).
    """

    def __init__(
        self, network: QNetwork, terms: dict[str, NDArray[np.int32]], device: torch.device, memory: int
    ) -> None:
        super().__init__({key: torch.from_numpy(table.T.copy()).to(device) for key, table in terms.items()})
        self._memory = memory
        self._kernels = device.type == "cuda" and importlib.util.find_spec("triton") is not None
        self._convolutions: dict[str, _Convolution | _KernelConvolution] = {}
        self._votes: dict[str, _Votes] = {}
        products = {key: product for key, product, _ in network.products()}
        for layer in network.layers if multiplies_bytes(device) else ():
            name, conv = convolution_of(layer)
            key = f"{layer.name}.{'votes' if isinstance(layer, QClassCaps) else name}"
            if key not in products:
                continue
            factors = factorise(terms[key], exact_terms(products[key]), BITS, MOST_FACTORS[device.type])
            if factors is not None and isinstance(layer, QClassCaps):
                self._votes[key] = _Votes(factors, layer, device)
            elif factors is not None and conv is not None:
                kind = _KernelConvolution if self._kernels else _Convolution
                self._convolutions[key] = kind(factors, conv, device)

    def convolution(self, key: str, conv: QConv, x: Tensor, unit: Requantizer | None = None) -> Tensor:
        """Accumulators (N, H', W', Cout), int32, of codes x (N, H, W, Cin); with `unit` the codes it makes, int16."""
        if key in self._convolutions:
            return self._finished(self._convolutions[key](x, self._memory), unit)
        if self._kernels:
            from model.emulation.table_kernel import sums

            cout, kh, kw, _ = conv.weights.shape
            weights = torch.from_numpy(conv.weights.reshape(cout, -1).T.astype(np.uint8)).to(x.device)
            bias, parts = torch.from_numpy(conv.bias).to(x.device), []
            for part in x.split(_images(x, conv, 1, self._memory)):
                seen = windows(padded(part, conv), kh, kw, conv.stride)
                parts.append(sums(self._terms[key], seen.flatten(0, 2).t(), weights).view(*seen.shape[:3], cout) + bias)
            return self._finished(torch.cat(parts), unit)
        return super().convolution(key, conv, x, unit)

    def votes(self, layer: QClassCaps, u: Tensor, unit: Requantizer | None = None) -> Tensor:
        """Accumulators (N, I, J, D), int32, of capsules u (N, I, Din); with `unit` the codes it makes, int16."""
        key = f"{layer.name}.votes"
        if key in self._votes:
            return self._finished(self._votes[key](u), unit)
        return super().votes(layer, u, unit)


def multiplies_bytes(device: torch.device) -> bool:
    """Whether torch's product of bytes is exact on a device: on CPUs without VNNI 16-bit sums saturate, silently."""
    return device.type == "cuda" or (device.type == "cpu" and torch.cpu._is_vnni_supported())


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """The product (M, N), int32 modulo 2^32, of a (M, K) and b (K, N), both int8, on a device that multiplies bytes."""
    (m, k), n = a.shape, b.shape[1]
    rows, inner, columns = max(0, 17 - m), -k % 8, -n % 8  # what CUDA asks for: M > 16, multiples of 8
    if rows or inner or columns:
        a, b = (torch.nn.functional.pad(x, pad) for x, pad in ((a, (0, inner, 0, rows)), (b, (0, columns, 0, inner))))
    out = a.new_zeros(len(a), b.shape[1], dtype=torch.int32)
    for x, y in zip(a.split(INNER, dim=1), b.split(INNER), strict=True):
        out += torch._int_mm(x.contiguous(), y.contiguous())
    return out[:m, :n]


def padded(x: Tensor, conv: QConv) -> Tensor:
    """The bytes (N, H, W, C), uint8, of codes, with the convolution's padding around them."""
    pad = 3 * (0, 0) if not conv.padding else (0, 0, *4 * (conv.padding,))
    return (torch.nn.functional.pad(x, pad, value=conv.mac.a.zero_point).int() & 255).to(torch.uint8)


def windows(x: Tensor, kh: int, kw: int, stride: int) -> Tensor:
    """What a kernel sees of images (N, H, W, C): (N, H', W', kh * kw * C), in the order of its weights."""
    return x.unfold(1, kh, stride).unfold(2, kw, stride).permute(0, 1, 2, 4, 5, 3).flatten(3)


class _Mapped:
    """A product's factors on a device, by scale: bytes of an operand become channels, one for each factor."""

    def __init__(self, factors: Factors, device: torch.device) -> None:
        self.row = torch.from_numpy(factors.row.astype(np.int32)).to(device)
        self.column = torch.from_numpy(factors.column.astype(np.int32)).to(device)
        self.groups = []  # the highest power of two in a scale first, as byte_kernel.Scales asks
        for scale in sorted(np.unique(factors.scale).tolist(), key=lambda s: -(s & -s)):
            chosen = [x[factors.scale == scale].T.astype(np.int8).copy() for x in (factors.u, factors.v)]
            u, v = (torch.from_numpy(x).to(device) for x in chosen)  # (256, R)
            self.groups.append((scale, u, v))

    def of_columns(self, weights: Tensor) -> Tensor:
        """What bytes of weights (Cout, ...) add to every sum of their channel (Cout,), int32."""
        return self.column[weights.int()].flatten(1).sum(dim=1, dtype=torch.int32)


def _map(factors: Tensor, codes: Tensor) -> Tensor:
    """The factors (..., R) of bytes (...)."""
    return factors.index_select(0, codes.flatten().int()).view(*codes.shape, factors.shape[1])


class _Convolution:
    """One convolution with weights whose factors are laid out for torch's product of bytes."""

    def __init__(self, factors: Factors, conv: QConv, device: torch.device) -> None:
        self._conv, self._mapped = conv, _Mapped(factors, device)
        weights = torch.from_numpy(conv.weights.astype(np.uint8)).to(device)  # (Cout, kh, kw, Cin)
        self._weights = [_map(v, weights).flatten(1).t().contiguous() for _, _, v in self._mapped.groups]
        self._bias = torch.from_numpy(conv.bias.astype(np.int32)).to(device) + self._mapped.of_columns(weights)

    def __call__(self, x: Tensor, memory: int) -> Tensor:
        """Accumulators (N, H', W', Cout), int32, of codes x (N, H, W, Cin)."""
        rank = max((u.shape[1] for _, u, _ in self._mapped.groups), default=1)
        return torch.cat([self._part(part) for part in x.split(_images(x, self._conv, rank, memory))])

    def _part(self, x: Tensor) -> Tensor:
        cout, kh, kw, _ = self._conv.weights.shape
        codes, stride = padded(x, self._conv), self._conv.stride
        rows = self._mapped.row[codes.int()].sum(dim=3, keepdim=True, dtype=torch.int32)
        out = windows(rows, kh, kw, stride).sum(dim=3, keepdim=True, dtype=torch.int32) + self._bias
        for (scale, u, _), weights in zip(self._mapped.groups, self._weights, strict=True):
            seen = windows(_map(u, codes).flatten(3), kh, kw, stride)
            out += scale * multiply(seen.flatten(0, 2), weights).view(*seen.shape[:3], cout)
        return out


class _KernelConvolution:
    """The same on tensor cores (byte_kernel.py). Of images with few channels a window's codes are laid side by side."""

    def __init__(self, factors: Factors, conv: QConv, device: torch.device) -> None:
        from model.emulation import byte_kernel

        self._kernel, self._conv, self._mapped = byte_kernel, conv, _Mapped(factors, device)
        weights = torch.from_numpy(conv.weights.astype(np.uint8)).to(device)  # (Cout, kh, kw, Cin)
        self._bias = torch.from_numpy(conv.bias.astype(np.int32)).to(device) + self._mapped.of_columns(weights)
        whole, point = (conv.weights.shape[1:3], conv.stride), ((1, 1), 1)  # kernels and strides
        self._laid_out, self._read = point, whole  # by which planes are laid out, and by which they are read
        if weights.shape[3] % byte_kernel.LANES:
            weights = weights.flatten(1)[:, None, None]
            self._laid_out, self._read = whole, point
        self._lanes = weights.shape[3] + -weights.shape[3] % byte_kernel.LANES
        scales, us, vs = zip(*self._mapped.groups, strict=True) if self._mapped.groups else ((), (), ())
        nothing = torch.zeros(256, 0, dtype=torch.int8, device=device)
        self._u = torch.cat([nothing, *us], dim=1).t().contiguous()
        self._scales = byte_kernel.Scales(scales, [u.shape[1] for u in us], device)
        factors_of_weights = _map(torch.cat([nothing, *vs], dim=1), weights).permute(0, 4, 1, 2, 3)
        unused = self._lanes - weights.shape[3]
        self._weights = torch.nn.functional.pad(factors_of_weights, (0, unused)).contiguous()  # (Cout, R, ., ., lanes)

    def __call__(self, x: Tensor, memory: int) -> Tensor:
        """Accumulators (N, H', W', Cout), int32, of codes x (N, H, W, Cin)."""
        conv = self._conv
        high, wide = x.shape[1] + 2 * conv.padding, x.shape[2] + 2 * conv.padding
        cout, kh, kw, _ = conv.weights.shape
        rows, columns = (high - kh) // conv.stride + 1, (wide - kw) // conv.stride + 1
        places = high * wide if self._laid_out == ((1, 1), 1) else rows * columns
        of_plane = places * self._lanes  # bytes of an image
        images = max(1, min(memory // max(1, of_plane * len(self._u)), (2**31 - 1) // of_plane))
        out = torch.empty(len(x), rows, columns, cout, dtype=torch.int32, device=x.device)
        parts = -(-len(x) // images)  # of one size, so that none leaves the GPU idle
        for part, sums in zip(x.chunk(parts), out.chunk(parts), strict=True):
            self._part(part, sums)
        return out

    def _part(self, x: Tensor, out: Tensor) -> None:
        zero, padding = self._conv.mac.a.zero_point, self._conv.padding
        planes, rows = self._kernel.map_codes(
            x, self._u, self._mapped.row, *self._laid_out, padding, zero, self._lanes
        )
        (kh, kw), stride = self._read
        of_windows = windows(rows[..., None], kh, kw, stride).sum(dim=3, dtype=torch.int32).contiguous()
        self._kernel.convolve(planes, self._weights, stride, self._scales, (of_windows, self._bias), out)


class _Votes:
    """The votes of class capsules: small products for each of many capsules, in float32, which is exact here."""

    def __init__(self, factors: Factors, layer: QClassCaps, device: torch.device) -> None:
        self._mapped, (inputs, dim_in, *self._out) = _Mapped(factors, device), layer.weights.shape
        weights = torch.from_numpy(layer.weights.reshape(inputs, dim_in, -1).astype(np.uint8)).to(device)
        self._weights = [_map(v, weights).permute(0, 1, 3, 2).flatten(1, 2).float() for _, _, v in self._mapped.groups]
        self._constant = self._mapped.column[weights.int()].sum(dim=1, keepdim=True, dtype=torch.int32)

    def __call__(self, u: Tensor) -> Tensor:
        """Accumulators (N, I, J, D), int32, of capsules u (N, I, Din)."""
        codes = (u.int() & 255).transpose(0, 1)  # (I, N, Din)
        out = self._mapped.row[codes].sum(dim=2, keepdim=True, dtype=torch.int32) + self._constant
        for (scale, factors, _), weights in zip(self._mapped.groups, self._weights, strict=True):
            mapped = _map(factors, codes).flatten(2).float()
            for a, b in zip(mapped.split(EXACT_FLOATS, dim=2), weights.split(EXACT_FLOATS, dim=1), strict=True):
                out += scale * torch.bmm(a, b).int()
        return out.transpose(0, 1).unflatten(2, self._out)


def _images(x: Tensor, conv: QConv, rank: int, memory: int) -> int:
    """How many images' windows of so many factors fit the memory."""
    _, kh, kw, cin = conv.weights.shape
    outputs = ((x.shape[1] + 2 * conv.padding) // conv.stride) * ((x.shape[2] + 2 * conv.padding) // conv.stride)
    return max(1, memory // max(1, outputs * kh * kw * cin * rank))
