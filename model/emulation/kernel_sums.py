"""The sums of the emulation by the compiled kernel (model/emulation/lookup.cpp), on the CPU.

Each operation is some groups of matrix products on a table. Weights are laid out once, term by term with the output
channels beside each other; a convolution's windows are read where they lie in the padded image, never copied out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.emulation.costs import fastest, for_few
from model.emulation.gather_sums import Routing
from model.emulation.lookup import (
    VECTOR,
    Bytes,
    Few,
    Operand,
    Shape,
    Summed,
    bytes_of,
    requantize,
    softmax,
    squash,
    sums,
)
from model.emulation.plan import Plan, table_plan
from model.qnetwork import Product, QClassCaps, QConv, QNetwork, Requantizer, Routed, Squash, convolution_of

Choice = Callable[[Product, NDArray[np.int32], str, int], Plan]
"""The plan of a product's terms at a level of the machine, for sums of so many."""


class _Weighted:
    """An operation with weights (groups, terms, lanes): how its sums, which begin with the bias (lanes,), are taken."""

    def __init__(
        self, terms: NDArray[np.int32], plan: Plan, few: tuple[Plan, float] | None, weights: NDArray[np.int16],
        bias: NDArray[np.int32],
    ) -> None:  # fmt: skip
        groups, length, lanes = weights.shape
        padded = np.zeros((groups, length, -(-lanes // VECTOR) * VECTOR), np.int16)
        padded[..., :lanes] = weights
        operand = Operand.of_weights(plan, padded)
        self.way = Summed(plan, operand, operand.columns[:, :lanes] + bias)  # modulo 2^32
        self.few: Few | None = None
        self.same: Bytes | None = None  # the byte whose terms each byte of a shares, where some are not their own
        if few is not None:
            table, share = few
            operand = operand if table is plan else Operand.of_weights(table, padded)
            init = (operand.columns + operand.idle(table))[:, :lanes] + bias
            self.few = Few(Summed(table, operand, init), share)
            same = np.arange(256, dtype=np.uint8)
            same[(terms == terms[table.idle]).all(axis=1)] = table.idle
            self.same = None if (same == np.arange(256)).all() else same


class KernelSums:
    """Accumulators of the operations of one network; `terms` are its operations' term tables (int32, [a, b]).

    Weights are laid out once, for the plan that is chosen: the fastest. Votes are operand b anew for every image, and
    few sums share one: their plans only look up.
    """

    def __init__(
        self, network: QNetwork, terms: dict[str, NDArray[np.int32]], level: str, choose: Choice = fastest
    ) -> None:
        self._level, self._threads = level, torch.get_num_threads()
        self._weighted: dict[str, _Weighted] = {}
        self._routing: dict[str, Plan] = {}
        found = {key: (product, length) for key, product, length in network.products()}

        def prepare(key: str, weights: NDArray[np.int16], bias: NDArray[np.int32]) -> None:
            product, length = found.pop(key)
            plan = choose(product, terms[key], level, length)
            few = for_few(product, terms[key], plan, level, length)
            self._weighted[key] = _Weighted(terms[key], plan, few, weights, bias)

        for layer in network.layers:
            if isinstance(layer, QClassCaps):
                inputs, dim_in, *out = layer.weights.shape
                weights, bias = layer.weights.reshape(inputs, dim_in, -1), np.zeros(np.prod(out), np.int32)
                prepare(f"{layer.name}.votes", weights, bias)
            name, conv = convolution_of(layer)
            if conv is not None:
                prepare(f"{layer.name}.{name}", conv.weights.reshape(len(conv.weights), -1).T[None], conv.bias)
        for key, (product, _) in found.items():
            self._routing[key] = table_plan(product, terms[key])

    def convolution(self, key: str, conv: QConv, x: Tensor, unit: Requantizer | None = None) -> Tensor:
        """Accumulators (N, H', W', Cout), int32, of codes x (N, H, W, Cin); with `unit` the codes it makes, int16."""
        cout, kh, kw, cin = conv.weights.shape
        n, of = len(x), self._weighted[key]
        a = bytes_of(x.numpy(), self._threads, of.same, conv.padding, conv.mac.a.zero_point)
        _, height, width, _ = a.shape
        rows, columns = (height - kh) // conv.stride + 1, (width - kw) // conv.stride + 1
        begins = (np.arange(n)[:, None, None] * height + np.arange(rows)[:, None] * conv.stride) * width
        begins = (begins + np.arange(columns) * conv.stride) * cin
        out = np.empty((n, rows, columns, cout), np.int16 if unit else np.int32)
        shape = Shape(
            groups=1, rows=begins.size, terms=kh * kw * cin, lanes=cout, out_row=cout,
            segments=kh, a_segment=width * cin,
        )  # fmt: skip
        begins = begins.reshape(-1).astype(np.int64)
        sums(of.way, self._level, self._threads, shape, a, begins, out, unit, of.few)
        return torch.from_numpy(out)

    def votes(self, layer: QClassCaps, u: Tensor, unit: Requantizer | None = None) -> Tensor:
        """Accumulators (N, I, J, D), int32, of capsules u (N, I, Din); with `unit` the codes it makes, int16."""
        inputs, dim_in, classes, dim = layer.weights.shape
        key, n, lanes = f"{layer.name}.votes", len(u), classes * dim
        of = self._weighted[key]
        out = np.empty((n, inputs, classes, dim), np.int16 if unit else np.int32)
        shape = Shape(
            groups=inputs, rows=n, terms=dim_in, lanes=lanes, out_row=inputs * lanes,
            a_group=dim_in, init_group=lanes, out_group=lanes,
        )  # fmt: skip
        begins = np.arange(n) * (inputs * dim_in)
        a = bytes_of(u.numpy()[None], self._threads, of.same)
        sums(of.way, self._level, self._threads, shape, a, begins, out, unit, of.few)
        return torch.from_numpy(out)

    def routing(self, layer: Routed, votes: Tensor) -> Routing:
        """The two sums over the codes of votes (N, I, J, D), as groups of a single row: one of each image and class."""
        n, _, classes, _ = votes.shape
        groups = n * classes
        weighing, agreeing = (self._routing[f"{layer.name}.{name}"] for name in ("weighted_sum", "agreement"))
        codes = votes.numpy()
        by_input = Operand.of_votes(weighing, codes, False, self._threads)
        by_element = Operand.of_votes(agreeing, codes, True, self._threads)

        def one_row(plan: Plan, a: Tensor, b: Operand, unit: Requantizer | None) -> Tensor:
            """The sums (N, J, lanes) of a (N, J, terms), or the codes that `unit` makes of them."""
            out = np.empty((n, classes, b.lanes), np.int16 if unit else np.int32)
            shape = Shape(
                groups=groups, rows=1, terms=b.terms, lanes=b.lanes, out_row=0,
                a_group=b.terms, init_group=b.lanes, out_group=b.lanes,
            )  # fmt: skip
            a_bytes = bytes_of(a.numpy()[None], self._threads)
            way = Summed(plan, b, b.columns)
            sums(way, self._level, self._threads, shape, a_bytes, np.zeros(1, np.int64), out, unit)
            return torch.from_numpy(out)

        return (
            lambda k, unit: one_row(weighing, k, by_input, unit),
            lambda v, unit: one_row(agreeing, v, by_element, unit),
        )

    def softmax(self, layer: Routed, logits: Tensor) -> Tensor:
        """Coupling coefficients (N, J, I) of logits (N, J, I)."""
        return torch.from_numpy(softmax(layer, logits.numpy(), self._threads))

    def requantize(self, unit: Requantizer, accumulators: Tensor) -> Tensor:
        """int32 accumulators -> int16 codes of the same shape."""
        return torch.from_numpy(requantize(unit, accumulators.numpy(), self._level, self._threads))

    def squash(self, unit: Squash, codes: Tensor) -> Tensor:
        """`float` codes (..., D) -> codes of the squashed capsules."""
        return torch.from_numpy(squash(unit, codes.numpy(), self._threads))

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Torch's threads are the kernel's meanwhile: what is left for torch is too small to be worth a second one."""
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(self._threads)
