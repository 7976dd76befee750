"""Convolutions by products of bytes on a GPU's tensor cores, in Triton.

Two kernels. `map_codes` turns codes into planes of bytes, one plane for each factor, laid out like the padded images.
`convolve` multiplies them with weights that were turned alike: a matrix product that reads a kernel's windows where
they lie in the planes, so that none are copied out. Planes are read one after the other, so that windows that overlap
find more in the GPU's cache. 32-bit sums, modulo 2^32.

Imported where it is used alone: Triton comes with torch for CUDA, or by the extra `gpu`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LANES = 32  # channels are padded to a multiple of so many: the fewest bytes that tensor cores take at once
_MAPPED = 2048  # codes that one program of map_codes turns into factors
ROWS, COLUMNS = 128, 128  # at most, of the outputs that one program of convolve sums
WARPS, STAGES = 8, 3


def map_codes(x: Tensor, u: Tensor, row: Tensor, padding: int, zero: int, lanes: int) -> tuple[Tensor, Tensor]:
    """Codes x (N, H, W, C) of 8 or 16 bits -> planes of factors (R, N, high, wide, lanes), int8, and what the codes of
    a pixel add to a sum (N, high, wide), int32.

    `u` (R, 256), int8, are the factors of every byte, `row` (256,), int32, what it adds; around the image lies the
    code `zero`. Lanes beyond the channels are 0.
    """
    n, height, width, channels = x.shape
    rank, high, wide = len(u), height + 2 * padding, width + 2 * padding
    planes = torch.empty(rank, n, high, wide, lanes, dtype=torch.int8, device=x.device)
    rows = torch.empty(n, high, wide, dtype=torch.int32, device=x.device)
    together = min(256, triton.next_power_of_2(lanes))
    pixels = max(1, _MAPPED // together)
    _map[(triton.cdiv(rows.numel(), pixels),)](
        x.contiguous(), u.contiguous(), row, planes, rows, rows.numel(), height, width, padding, zero, channels, lanes,
        rank, rows.numel() * lanes, pixels, together,
    )  # fmt: skip
    return planes, rows


def convolve(
    planes: Tensor, weights: Tensor, stride: int, scale: int, out: Tensor, begin: tuple[Tensor, Tensor] | None
) -> None:
    """Add to out (N, H', W', Cout), int32, `scale` times the convolution of planes (R, N, high, wide, lanes) with
    weights (Cout, R, kh, kw, lanes), both int8; lanes are a multiple of LANES, a plane has fewer than 2^31 bytes.

    With `begin` out is not read: it begins with the sums of these two, (N, H', W') and (Cout,), int32.
    """
    (rank, n, high, wide, lanes), (cout, _, kh, kw, _) = planes.shape, weights.shape
    m, run = out.numel() // cout, kw * lanes
    of_row, of_column = begin or (out, out)
    inner = next(size for size in (128, 64, LANES) if run % size == 0)
    columns = min(COLUMNS, max(16, triton.next_power_of_2(cout)))
    tiles = triton.cdiv(m, ROWS) * triton.cdiv(cout, columns)
    _convolve[(tiles,)](
        planes, weights, out, of_row, of_column, m, cout, *out.shape[-3:-1], high, wide, stride, kh, run, lanes, rank,
        n * high * wide * lanes, rank * kh * run, scale, begin is not None, ROWS, columns, inner,
        num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip


@triton.jit(do_not_specialize=("count", "height", "width", "padding", "zero", "rank"))  # compiled once for all layers
def _map(  # type: ignore[no-untyped-def]  # in Triton's types
    x, u, row, planes, rows, count, height, width, padding, zero, channels, lanes, rank, plane,
    pixels: tl.constexpr, together: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0).to(tl.int64) * pixels + tl.arange(0, pixels)
    wide, high = width + 2 * padding, height + 2 * padding
    across, down, image = pixel % wide - padding, pixel // wide % high - padding, pixel // (wide * high)
    inside = (across >= 0) & (across < width) & (down >= 0) & (down < height) & (pixel < count)
    begin = ((image * height + down) * width + across) * channels
    total = tl.zeros((pixels,), tl.int32)
    for first in range(0, lanes, together):
        lane = first + tl.arange(0, together)
        real = (lane < channels)[None, :]
        code = tl.load(x + begin[:, None] + lane[None, :], mask=inside[:, None] & real, other=zero).to(tl.int32) & 255
        total += tl.sum(tl.where(real, tl.load(row + code), 0), axis=1)
        place = planes + pixel[:, None] * lanes + lane[None, :]
        kept = (pixel < count)[:, None] & (lane < lanes)[None, :]
        for r in range(rank):
            tl.store(place, tl.where(real, tl.load(u + r * 256 + code), 0), mask=kept)
            place += plane
    tl.store(rows + pixel, total, mask=pixel < count)


@triton.jit(do_not_specialize=("m", "out_high", "out_wide", "high", "wide", "stride", "kh", "rank", "scale"))
def _convolve(  # type: ignore[no-untyped-def]  # in Triton's types
    planes, weights, out, of_row, of_column, m, n, out_high, out_wide, high, wide, stride, kh, run, lanes, rank, plane,
    length, scale, begins: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr, inner: tl.constexpr,
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
    for step in range(rank * kh * steps):
        r, within = step // (kh * steps), step % (kh * steps)
        begin = r.to(tl.int64) * plane + within // steps * wide * lanes + within % steps * inner
        total = tl.dot(tl.load(a + begin), tl.load(b + step * inner).T, total, out_dtype=tl.int32)
    place = out + row.to(tl.int64)[:, None] * n + column[None, :]
    kept = (row < m)[:, None] & (column < n)[None, :]
    if begins:
        before = tl.load(of_row + seen)[:, None] + tl.load(of_column + tl.minimum(column, n - 1))[None, :]
    else:
        before = tl.load(place, mask=kept, other=0)
    tl.store(place, before + scale * total, mask=kept)
