"""The sums of the emulation by the compiled kernel (model/emulation/lookup.cpp), on the CPU.

Each operation is some groups of matrix products on a table. Weights are laid out once, term by term with the output
channels beside each other; a convolution's windows are read where they lie in the padded image, never copied out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.emulation.gather_sums import Routing
from model.emulation.lookup import Bytes, Plan, Shape, column_sums, compile_plan, requantize, sums
from model.qnetwork import QClassCaps, QConv, QNetwork, Requantizer, Routed, convolution_of

_VECTOR = 64  # lanes: rows of weights begin at multiples


class KernelSums:
    """Accumulators of the operations of one network; `terms` are its operations' term tables (int32, [a, b])."""

    def __init__(self, network: QNetwork, terms: dict[str, NDArray[np.int32]], level: str) -> None:
        self._level, self._threads = level, torch.get_num_threads()
        self._plans = {key: compile_plan(product, terms[key]) for key, product, _ in network.products()}
        self._weights: dict[str, tuple[Bytes, NDArray[np.int32]]] = {}
        for layer in network.layers:
            if isinstance(layer, QClassCaps):
                inputs, dim_in, *out = layer.weights.shape
                weights, bias = layer.weights.reshape(inputs, dim_in, -1), np.zeros(np.prod(out), np.int32)
                self._prepare(f"{layer.name}.votes", weights, bias)
            name, conv = convolution_of(layer)
            if conv is not None:
                self._prepare(f"{layer.name}.{name}", conv.weights.reshape(len(conv.weights), -1).T[None], conv.bias)

    def _prepare(self, key: str, weights: NDArray[np.int16], bias: NDArray[np.int32]) -> None:
        """Lay out weights (groups, terms, lanes) for the kernel, and add what they contribute to the bias (lanes,)."""
        groups, terms, lanes = weights.shape
        padded = np.zeros((groups, terms, _padded(lanes)), np.int16)
        padded[..., :lanes] = weights
        laid = self._plans[key].encode(padded)
        constants = column_sums(self._plans[key], laid, groups, terms, lanes, padded[0].size, padded.shape[2])
        self._weights[key] = laid, constants + bias  # modulo 2^32

    def _sums(self, plan: Plan, shape: Shape, a: Bytes, a_rows: NDArray[np.int64], b: Bytes,
              init: NDArray[np.int32], out: NDArray[np.int32]) -> None:  # fmt: skip
        sums(plan, self._level, self._threads, shape, a, a_rows, b, init, out)

    def convolution(self, key: str, conv: QConv, x: Tensor) -> Tensor:
        """Accumulators (N, H', W', Cout), int32, of codes x (N, H, W, Cin)."""
        cout, kh, kw, cin = conv.weights.shape
        n, height, width, _ = x.shape
        height, width, pad = height + 2 * conv.padding, width + 2 * conv.padding, conv.padding
        a = np.full((n, height, width, cin), conv.mac.a.zero_point, np.uint8)
        np.copyto(a[:, pad : height - pad, pad : width - pad], x.numpy(), casting="unsafe")
        rows, columns = (height - kh) // conv.stride + 1, (width - kw) // conv.stride + 1
        begins = (np.arange(n)[:, None, None] * height + np.arange(rows)[:, None] * conv.stride) * width
        begins = (begins + np.arange(columns) * conv.stride) * cin
        weights, init = self._weights[key]
        out = np.empty((n, rows, columns, cout), np.int32)
        shape = Shape(
            groups=1, rows=begins.size, terms=kh * kw * cin, lanes=cout, b_term=_padded(cout), out_row=cout,
            segments=kh, a_segment=width * cin,
        )  # fmt: skip
        self._sums(self._plans[key], shape, a, begins.reshape(-1).astype(np.int64), weights, init, out)
        return torch.from_numpy(out)

    def votes(self, layer: QClassCaps, u: Tensor) -> Tensor:
        """Accumulators (N, I, J, D), int32, of capsules u (N, I, Din)."""
        inputs, dim_in, classes, dim = layer.weights.shape
        key, n, lanes = f"{layer.name}.votes", len(u), classes * dim
        weights, init = self._weights[key]
        out = np.empty((n, inputs, classes, dim), np.int32)
        shape = Shape(
            groups=inputs, rows=n, terms=dim_in, lanes=lanes, b_term=_padded(lanes), out_row=inputs * lanes,
            a_group=dim_in, b_group=dim_in * _padded(lanes), init_group=lanes, out_group=lanes,
        )  # fmt: skip
        self._sums(self._plans[key], shape, _bytes(u), np.arange(n) * (inputs * dim_in), weights, init, out)
        return torch.from_numpy(out)

    def routing(self, layer: Routed, votes: Tensor) -> Routing:
        """The two sums over the codes of votes (N, I, J, D), as groups of a single row: one of each image and class."""
        n, inputs, classes, dim = votes.shape
        weighing, agreeing = (self._plans[f"{layer.name}.{name}"] for name in ("weighted_sum", "agreement"))
        one = np.zeros(1, np.int64)
        by_input = weighing.encode(votes.permute(0, 2, 1, 3).contiguous().numpy())  # (N, J, I, D)
        by_element = agreeing.encode(votes.permute(0, 2, 3, 1).contiguous().numpy())  # (N, J, D, I)
        groups = n * classes
        to_sums = column_sums(weighing, by_input, groups, inputs, dim, inputs * dim, dim)
        to_agreements = column_sums(agreeing, by_element, groups, dim, inputs, inputs * dim, inputs)

        def weighted_sum(k: Tensor) -> Tensor:
            out = np.empty((n, classes, dim), np.int32)
            shape = Shape(
                groups=groups, rows=1, terms=inputs, lanes=dim, b_term=dim, out_row=0,
                a_group=inputs, b_group=inputs * dim, init_group=dim, out_group=dim,
            )  # fmt: skip
            self._sums(weighing, shape, _bytes(k), one, by_input, to_sums, out)
            return torch.from_numpy(out)

        def agreement(v: Tensor) -> Tensor:
            out = np.empty((n, classes, inputs), np.int32)
            shape = Shape(
                groups=groups, rows=1, terms=dim, lanes=inputs, b_term=inputs, out_row=0,
                a_group=dim, b_group=inputs * dim, init_group=inputs, out_group=inputs,
            )  # fmt: skip
            self._sums(agreeing, shape, _bytes(v), one, by_element, to_agreements, out)
            return torch.from_numpy(out).mT

        return weighted_sum, agreement

    def requantize(self, unit: Requantizer, accumulators: Tensor) -> Tensor:
        """int32 accumulators -> int16 codes of the same shape."""
        return torch.from_numpy(requantize(unit, accumulators.numpy(), self._threads))

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Torch's threads are the kernel's meanwhile: what is left for torch is too small to be worth a second one."""
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(self._threads)


def _padded(lanes: int) -> int:
    return -(-lanes // _VECTOR) * _VECTOR


def _bytes(codes: Tensor) -> Bytes:
    """The bytes of operand a's codes, two's complement where they are signed."""
    return np.ascontiguousarray(codes.numpy().astype(np.uint8))
