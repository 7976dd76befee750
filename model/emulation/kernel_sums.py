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

from model.emulation.costs import fastest
from model.emulation.gather_sums import Routing
from model.emulation.lookup import VECTOR, Bytes, Operand, Shape, bytes_of, requantize, softmax, squash, sums
from model.emulation.plan import Plan, table_plan
from model.qnetwork import Product, QClassCaps, QConv, QNetwork, Requantizer, Routed, Squash, convolution_of

Choice = Callable[[Product, NDArray[np.int32], str, int], Plan]
"""The plan of a product's terms at a level of the machine, for sums of so many."""


class KernelSums:
    """Accumulators of the operations of one network; `terms` are its operations' term tables (int32, [a, b]).

    Weights are laid out once, for the plan that is chosen: the fastest. Votes are operand b anew for every image, and
    few sums share one: their plans only look up.
    """

    def __init__(
        self, network: QNetwork, terms: dict[str, NDArray[np.int32]], level: str, choose: Choice = fastest
    ) -> None:
        self._level, self._threads = level, torch.get_num_threads()
        self._plans: dict[str, Plan] = {}
        self._weights: dict[str, tuple[Operand, NDArray[np.int32], NDArray[np.int32] | None]] = {}
        self._same: dict[str, Bytes | None] = {}  # the byte whose terms each byte of a shares, if it is not its own
        for key, product, length in network.products():
            weighted = key.endswith((".mac", ".votes"))
            plan = choose(product, terms[key], level, length) if weighted else table_plan(product, terms[key])
            self._plans[key] = plan
            same = np.arange(256, dtype=np.uint8)
            if plan.idle >= 0:
                same[(terms[key] == terms[key][plan.idle]).all(axis=1)] = plan.idle
            self._same[key] = None if (same == np.arange(256)).all() else same
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
        padded = np.zeros((groups, terms, -(-lanes // VECTOR) * VECTOR), np.int16)
        padded[..., :lanes] = weights
        operand = Operand.of_weights(self._plans[key], padded)
        init, idle = operand.columns[:, :lanes] + bias, operand.idle(self._plans[key])  # modulo 2^32
        self._weights[key] = operand, init, None if idle is None else init + idle[:, :lanes]

    def convolution(self, key: str, conv: QConv, x: Tensor, unit: Requantizer | None = None) -> Tensor:
        """Accumulators (N, H', W', Cout), int32, of codes x (N, H, W, Cin); with `unit` the codes it makes, int16."""
        cout, kh, kw, cin = conv.weights.shape
        n, height, width, _ = x.shape
        a = bytes_of(x.numpy(), self._threads, self._same[key], conv.padding, conv.mac.a.zero_point)
        _, height, width, _ = a.shape
        rows, columns = (height - kh) // conv.stride + 1, (width - kw) // conv.stride + 1
        begins = (np.arange(n)[:, None, None] * height + np.arange(rows)[:, None] * conv.stride) * width
        begins = (begins + np.arange(columns) * conv.stride) * cin
        weights, init, idle_init = self._weights[key]
        out = np.empty((n, rows, columns, cout), np.int16 if unit else np.int32)
        shape = Shape(
            groups=1, rows=begins.size, terms=kh * kw * cin, lanes=cout, out_row=cout,
            segments=kh, a_segment=width * cin,
        )  # fmt: skip
        begins = begins.reshape(-1).astype(np.int64)
        sums(self._plans[key], self._level, self._threads, shape, a, begins, weights, init, out, unit, idle_init)
        return torch.from_numpy(out)

    def votes(self, layer: QClassCaps, u: Tensor, unit: Requantizer | None = None) -> Tensor:
        """Accumulators (N, I, J, D), int32, of capsules u (N, I, Din); with `unit` the codes it makes, int16."""
        inputs, dim_in, classes, dim = layer.weights.shape
        key, n, lanes = f"{layer.name}.votes", len(u), classes * dim
        weights, init, idle_init = self._weights[key]
        out = np.empty((n, inputs, classes, dim), np.int16 if unit else np.int32)
        shape = Shape(
            groups=inputs, rows=n, terms=dim_in, lanes=lanes, out_row=inputs * lanes,
            a_group=dim_in, init_group=lanes, out_group=lanes,
        )  # fmt: skip
        begins = np.arange(n) * (inputs * dim_in)
        a = bytes_of(u.numpy()[None], self._threads, self._same[key])
        sums(self._plans[key], self._level, self._threads, shape, a, begins, weights, init, out, unit, idle_init)
        return torch.from_numpy(out)

    def routing(self, layer: Routed, votes: Tensor) -> Routing:
        """The two sums over the codes of votes (N, I, J, D), as groups of a single row: one of each image and class."""
        n, _, classes, _ = votes.shape
        groups = n * classes
        weighing, agreeing = (self._plans[f"{layer.name}.{name}"] for name in ("weighted_sum", "agreement"))
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
            sums(plan, self._level, self._threads, shape, a_bytes, np.zeros(1, np.int64), b, b.columns, out, unit)
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
