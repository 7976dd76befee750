"""Convolutions by products of bytes on a GPU's tensor cores, in Triton.

Two kernels. `map_codes` turns codes into planes of bytes, one plane for each factor, laid out like the padded images,
or, of images with few channels, like the windows that a kernel sees. `convolve` multiplies them with weights that were
turned alike: a matrix product that reads a kernel's windows where they lie in the planes. Planes are read one after the
other, so that windows that overlap find more in the GPU's cache. 32-bit sums, modulo 2^32.

Imported where it is used alone: Triton comes with torch for CUDA, or by the extra `gpu`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

LANES = 32  # channels are padded to a multiple of so many: the fewest bytes that tensor cores take at once
_MAPPED = 2048  # codes that one program of map_codes turns into factors
ROWS, COLUMNS = 128, 128  # at most, of the outputs that one program of convolve sums
WARPS, STAGES = 8, 3


class Scales:
    """The scales of factors on a device, of groups that have one: where a group begins (G + 1,), and ratios (G + 1,),
    by which what was summed is multiplied before each group and in the end. All int32.

    Scales are ordered by the power of two in them, the highest first. So modulo 2^32 every one is a multiple of the
    next, whose odd part has an inverse, and one sum takes all groups (Horner's scheme).
    """

    def __init__(self, scales: Sequence[int], sizes: Sequence[int], device: torch.device) -> None:
        begins, ratios = [0, *accumulate(sizes)], [1]
        for scale, after in zip(scales, [*scales[1:], 1], strict=False):  # there may be none
            power = after & -after
            assert scale % power == 0, "ordered"
            ratios.append(scale // power * pow(after // power, -1, 2**32) % 2**32)
        self.begins = torch.tensor(begins, dtype=torch.int32, device=device)
        self.ratios = torch.from_numpy(np.array(ratios, np.uint32).view(np.int32)).to(device)


def map_codes(
    x: Tensor, u: Tensor, row: Tensor, kernel: tuple[int, int], stride: int, padding: int, zero: int, lanes: int
) -> tuple[Tensor, Tensor]:
    """Codes x (N, H, W, C) of 8 or 16 bits -> planes of factors (R, N, high, wide, lanes), int8, of what a kernel sees
    at every place, and what those codes add to a sum (N, high, wide), int32.

    A kernel of one pixel and stride 1 gives the padded images. `u` (R, 256), int8, are the factors of every byte, `row`
    (256,), int32, what it adds; around the image lies the code `zero`. Lanes that nothing is left for are 0.
    """
    (n, height, width, channels), (kh, kw), rank = x.shape, kernel, len(u)
    high, wide = (height + 2 * padding - kh) // stride + 1, (width + 2 * padding - kw) // stride + 1
    planes = torch.empty(rank, n, high, wide, lanes, dtype=torch.int8, device=x.device)
    rows = torch.empty(n, high, wide, dtype=torch.int32, device=x.device)
    together = min(256, triton.next_power_of_2(lanes))
    pixels = max(1, _MAPPED // together)
    _map[(triton.cdiv(rows.numel(), pixels),)](
        x.contiguous(), u.contiguous(), row, planes, rows, rows.numel(), height, width, channels, high, wide, stride,
        padding, kw * channels, kh * kw * channels, zero, lanes, rank, rows.numel() * lanes, kernel != (1, 1),
        pixels, together,
    )  # fmt: skip
    return planes, rows


def convolve(
    planes: Tensor, weights: Tensor, stride: int, scales: Scales, begin: tuple[Tensor, Tensor], out: Tensor
) -> None:
    """Into out (N, H', W', Cout), int32: the sums of `begin`, (N, H', W') and (Cout,), int32, and, each times its
    scale, the convolutions of planes (R, N, high, wide, lanes) with weights (Cout, R, kh, kw, lanes), both int8; lanes
    are a multiple of LANES, a plane has fewer than 2^31 bytes.
    """
    (_, n, high, wide, lanes), (cout, rank, kh, kw, _) = planes.shape, weights.shape
    m, run = out.numel() // cout, kw * lanes
    inner = next(size for size in (128, 64, LANES) if run % size == 0)
    columns = min(COLUMNS, max(16, triton.next_power_of_2(cout)))
    tiles = triton.cdiv(m, ROWS) * triton.cdiv(cout, columns)
    _convolve[(tiles,)](
        planes, weights, out, *begin, scales.begins, scales.ratios, m, cout, *out.shape[-3:-1], high, wide, stride, kh,
        run, lanes, len(scales.begins) - 1, n * high * wide * lanes, rank * kh * run, ROWS, columns, inner,
        num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip


@triton.jit(  # compiled once for all layers
    do_not_specialize=("count", "height", "width", "high", "wide", "stride", "padding", "run", "used", "zero", "rank")
)
def _map(  # type: ignore[no-untyped-def]  # in Triton's types
    x, u, row, planes, rows, count, height, width, channels, high, wide, stride, padding, run, used, zero, lanes, rank,
    plane, windows: tl.constexpr, pixels: tl.constexpr, together: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0).to(tl.int64) * pixels + tl.arange(0, pixels)
    across = (pixel % wide * stride - padding).to(tl.int32)
    down = (pixel // wide % high * stride - padding).to(tl.int32)
    corner = ((pixel // (wide * high) * height + down) * width + across) * channels
    total = tl.zeros((pixels,), tl.int32)
    for first in range(0, lanes, together):
        lane = first + tl.arange(0, together)
        if windows:
            real = (lane < used)[None, :]
            below, beside = lane // run, lane % run
            y, z = down[:, None] + below[None, :], across[:, None] + (beside // channels)[None, :]
            inside = (y >= 0) & (y < height) & (z >= 0) & (z < width)
            place = x + corner[:, None] + (below * width * channels + beside)[None, :]
        else:  # what lies side by side is loaded together
            real = (lane < channels)[None, :]
            inside = ((down >= 0) & (down < height) & (across >= 0) & (across < width))[:, None]
            place = x + corner[:, None] + lane[None, :]
        inside = inside & real & (pixel < count)[:, None]
        code = tl.load(place, mask=inside, other=zero).to(tl.int32) & 255
        total += tl.sum(tl.where(real, tl.load(row + code), 0), axis=1)
        place = planes + pixel[:, None] * lanes + lane[None, :]
        kept = (pixel < count)[:, None] & (lane < lanes)[None, :]
        for r in range(rank):
            tl.store(place, tl.where(real, tl.load(u + r * 256 + code), 0), mask=kept)
            place += plane
    tl.store(rows + pixel, total, mask=pixel < count)


@triton.jit(do_not_specialize=("m", "out_high", "out_wide", "high", "wide", "stride", "kh", "groups"))
def _convolve(  # type: ignore[no-untyped-def]  # in Triton's types
    planes, weights, out, of_row, of_column, begins, ratios, m, n, out_high, out_wide, high, wide, stride, kh, run,
    lanes, groups, plane, length, rows: tl.constexpr, columns: tl.constexpr, inner: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(n, columns)  # tiles of the same windows lie beside each other, for the cache
    row = tl.program_id(0) // across * rows + tl.arange(0, rows)
    column = tl.program_id(0) % across * columns + tl.arange(0, columns)
    seen = tl.minimum(row, m - 1)
    pixel = seen // (out_wide * out_high) * high * wide
    pixel += (seen // out_wide % out_high * stride) * wide + seen % out_wide * stride
    byte = tl.arange(0, inner)
    a = planes + pixel[:, None] * lanes + byte[None, :]
    b = weights + tl.minimum(column, n - 1).to(tl.int64)[:, None] * length + byte[None, :]
    steps = run // inner
    total = tl.zeros((rows, columns), tl.int32)
    for group in range(groups):
        total *= tl.load(ratios + group)
        for step in range(tl.load(begins + group) * kh * steps, tl.load(begins + group + 1) * kh * steps):
            r, within = step // (kh * steps), step % (kh * steps)
            begin = r.to(tl.int64) * plane + within // steps * wide * lanes + within % steps * inner
            total = tl.dot(tl.load(a + begin), tl.load(b + step * inner).T, total, out_dtype=tl.int32)
    total *= tl.load(ratios + groups)
    total += tl.load(of_row + seen)[:, None] + tl.load(of_column + tl.minimum(column, n - 1))[None, :]
    kept = (row < m)[:, None] & (column < n)[None, :]
    tl.store(out + row.to(tl.int64)[:, None] * n + column[None, :], total, mask=kept)
