"""The paper's noise model of an approximate component (Eq. 3-4), injected into operations of a running network.

Random numbers are what a noise point costs beyond an inference, so they are drawn by a kernel of our own
(model/noise.cpp), straight into the sum. Where there is no compiler, NumPy computes the same bits, slowly.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model import native
from model.capsules import Tap
from model.errors import RedcaneError
from model.seeds import derive_seed

_LANES = 16  # as in noise.cpp
_U32 = 0xFFFFFFFF


@dataclass(frozen=True)
class Injection:
    """Noise on the outputs of some operations ("layer.operation"), relative to the range of each output tensor."""

    operations: frozenset[str]
    nm: float  # noise magnitude: the standard deviation
    na: float = 0.0  # noise average

    @property
    def none(self) -> bool:
        """Whether it changes nothing."""
        return not self.operations or self.nm == self.na == 0


def noise_key(seed: int, key: str, iteration: int, batch_index: int) -> int:
    """What the random numbers of one tensor derive from, and nothing else: all noise magnitudes scale the same draws.

    So the result of a point depends neither on what ran before nor on who else runs.
    """
    return derive_seed("noise", seed, key, iteration, batch_index)


def add_noise(x: Tensor, nm: float, na: float, key: int, out: Tensor | None = None) -> Tensor:
    """X' = X + Gauss(0, NM * R) + NA * R, where R = max - min of the whole tensor (Eq. 3-4).

    The draws are a function of `key` and of the element's place in memory. `out` (laid out as x, may be x) receives the
    result. A tensor of one value, or of none, has no range and no noise. float32 on the CPU.
    """
    if not is_dense(x):
        x = x.contiguous()
    result = torch.empty_like(x) if out is None else out
    low, high = (float(value) for value in x.aminmax()) if x.numel() else (0.0, 0.0)
    span = high - low
    add_gaussian(x, span * nm, span * na, key, result)
    return result


def is_dense(x: Tensor) -> bool:
    """Whether its elements fill its memory without gaps and overlaps, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def add_gaussian(x: Tensor, deviation: float, offset: float, key: int, out: Tensor) -> None:
    """out = x + (deviation * z + offset), z standard normal, element by element as they lie in memory.

    Raises RedcaneError unless both are dense float32 tensors of one layout on the CPU.
    """
    fit = x.dtype == out.dtype == torch.float32 and x.device == out.device == torch.device("cpu")
    if not (fit and is_dense(x) and x.shape == out.shape and x.stride() == out.stride()):
        raise RedcaneError("noise: takes dense float32 tensors on the CPU; convert the network with .float().cpu()")
    kernel = _kernel()
    if kernel is None:
        flat, into = (t.as_strided((t.numel(),), (1,)).numpy() for t in (x.detach(), out.detach()))
        into[:] = flat + (np.float32(deviation) * normal(len(flat), key) + np.float32(offset))
    else:
        kernel(x.data_ptr(), out.data_ptr(), x.numel(), key, deviation, offset)


def noise_tap(injection: Injection, seed: int, batch_index: int) -> Tap:
    """The tap that injects noise while one batch is evaluated."""

    def tap(layer: str, operation: str, output: Tensor, iteration: int, operands: tuple[Tensor, ...]) -> Tensor:
        key = f"{layer}.{operation}"
        if key not in injection.operations or injection.none:
            return output
        return add_noise(output, injection.nm, injection.na, noise_key(seed, key, iteration, batch_index))

    return tap


@cache
def _kernel() -> ctypes._NamedFuncPointer | None:
    """redcane_noise of noise.cpp; None where it cannot be compiled."""
    try:
        function = native.load(Path(__file__).with_suffix(".cpp"), "-march=native").redcane_noise
    except RedcaneError:
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_float
    function.argtypes = (pointer, pointer, ctypes.c_int64, ctypes.c_uint64, number, number)
    function.restype = None
    return function


def normal(count: int, key: int) -> NDArray[np.float32]:
    """The first `count` standard normal values of a key: noise.cpp in NumPy, operation by operation, the same bits."""
    blocks = -(-count // (4 * _LANES))
    a0, b0, a1, b1 = (word.reshape(blocks, _LANES) for word in _philox(blocks * _LANES, key))
    z = np.stack([*_box_muller(a0, b0), *_box_muller(a1, b1)], axis=1)  # (blocks, 4, lanes)
    return z.reshape(-1)[:count]


def _philox(counters: int, key: int) -> list[NDArray[np.uint32]]:
    """Philox4x32-10 (Salmon et al., SC 2011) of the counters 0, 1, ...: four words each."""
    c = np.arange(counters, dtype=np.uint64)
    w = [c & np.uint64(_U32), c >> np.uint64(32), np.zeros_like(c), np.zeros_like(c)]
    k0, k1 = key & _U32, key >> 32
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * w[0], np.uint64(0xCD9E8D57) * w[2]
        w = [
            (p1 >> np.uint64(32)) ^ w[1] ^ np.uint64(k0), p1 & np.uint64(_U32),
            (p0 >> np.uint64(32)) ^ w[3] ^ np.uint64(k1), p0 & np.uint64(_U32),
        ]  # fmt: skip
        k0, k1 = (k0 + 0x9E3779B9) & _U32, (k1 + 0xBB67AE85) & _U32
    return [word.astype(np.uint32) for word in w]


_LOG = (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
        2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)  # fmt: skip


def _box_muller(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two normal values of two random words; the comments are in noise.cpp."""
    f32, u32 = np.float32, np.uint32
    shifted = ((a >> u32(8)) + u32(1)).astype(np.int32).astype(f32).view(u32) - u32(0x3F3504F3)
    e = ((shifted >> u32(23)).astype(np.int32) - 24).astype(f32)
    f = ((shifted & u32(0x007FFFFF)) + u32(0x3F3504F3)).view(f32) - f32(1)
    p = np.full_like(f, _LOG[0])
    for coefficient in _LOG[1:]:
        p = p * f + f32(coefficient)
    ff = f * f
    r = np.sqrt(f32(0) - (((p * f * ff - f32(0.5) * ff) + f) + e * f32(0.69314718056)))
    t = (b.view(np.int32) >> np.int32(8)).astype(f32) * f32(9.3622534e-8)
    tt = t * t
    s = ((f32(-1.9515295891e-4) * tt + f32(8.3321608736e-3)) * tt + f32(-1.6666654611e-1)) * tt * t + t
    c = ((f32(2.443315711809948e-5) * tt + f32(-1.388731625493765e-3)) * tt + f32(4.166664568298827e-2)) * tt * tt
    c = c - f32(0.5) * tt + f32(1)
    z0 = (r * (c - s)).view(u32) ^ (b << u32(31))
    z1 = (r * (c + s)).view(u32) ^ ((b << u32(30)) & u32(0x80000000))
    return z0.view(f32), z1.view(f32)
