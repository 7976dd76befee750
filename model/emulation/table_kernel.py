"""Sums of table lookups on a GPU, in Triton: what terms of many factors are left to.

Imported where it is used alone: Triton comes with torch for CUDA, or by the extra `gpu`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, LANES = 64, 64  # of the outputs that one program sums


@triton.jit
def _sums(a, b, terms, out, m, n, k, rows: tl.constexpr, lanes: tl.constexpr):  # type: ignore[no-untyped-def]  # in Triton's types
    row = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)
    lane = tl.program_id(1).to(tl.int64) * lanes + tl.arange(0, lanes)
    total = tl.zeros((rows, lanes), tl.int32)
    for _ in range(k):
        of_a = tl.load(a + row, mask=row < m, other=0).to(tl.int32)
        of_b = tl.load(b + lane, mask=lane < n, other=0).to(tl.int32)
        total += tl.load(terms + of_b[None, :] * 256 + of_a[:, None])
        a += m
        b += n
    inside = (row < m)[:, None] & (lane < n)[None, :]
    tl.store(out + row[:, None] * n + lane[None, :], total, mask=inside)


def sums(terms: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The sums (M, N), int32, over k of the terms [b, a] (256, 256), int32, of bytes a (K, M) and b (K, N), uint8."""
    (k, m), n = a.shape, b.shape[1]
    out = torch.empty(m, n, dtype=torch.int32, device=a.device)
    grid = (triton.cdiv(m, ROWS), triton.cdiv(n, LANES))
    _sums[grid](a.contiguous(), b.contiguous(), terms.contiguous(), out, m, n, k, ROWS, LANES)
    return out
