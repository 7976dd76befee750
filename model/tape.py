"""A network's inference as the list of tensor operations that it is made of, so that a part of it can be run alone.

Recorded once for a batch size while the network runs; then noise on some operations costs what follows them, and what
comes before (the clean prefix) is computed once for all noise. Nothing needs to be known of the network but that every
output passes through a tap (model/capsules.py). What is computed twice, such as the same rearrangement of the votes in
every routing iteration, is recorded once.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakTensorKeyDictionary

from model.errors import RedcaneError
from model.noise import is_dense

Noise = Callable[[str, int, Tensor, Tensor | None], Tensor]
"""(operation "layer.name", iteration, its output, where the result may go or None) -> what the network goes on with."""


@dataclass(frozen=True)
class Slot:
    """The place of a tensor on the tape."""

    index: int


@dataclass(frozen=True)
class Step:
    """One tensor operation, or (function None) the tap of an operation of the network."""

    function: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    inputs: tuple[int, ...]  # slots
    output: int  # slot
    tapped: tuple[str, int] | None = None  # the operation "layer.name" and the iteration
    view: bool = False  # the output shares an input's memory
    macs: int = 0  # multiply-accumulates

    @property
    def shares(self) -> bool:
        """Whether the output, without noise, lies in the memory of the first input."""
        return self.view or self.tapped is not None


class Tape:
    """The recorded inference of a network on batches of one size."""

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        """Record while the network runs on images (N, C, H, W). Raises RedcaneError for what cannot be replayed."""
        recorder = _Recorder(images)

        def tap(layer: str, name: str, output: Tensor, iteration: int, operands: tuple[Tensor, ...]) -> Tensor:
            return recorder.tap(f"{layer}.{name}", iteration, output)

        with torch.no_grad(), recorder:
            result = network(images, tap)
        self.steps, self.constants = recorder.steps, recorder.constants
        self.output = recorder.slot(result)
        self._maker = {step.output: i for i, step in enumerate(self.steps)}
        self._values, self._worth = recorder.values, dict[int, float]()

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the whole inference, as executed: what is computed twice counts once."""
        return sum(step.macs for step in self.steps)

    def behind(self, operations: Iterable[str]) -> Part:
        """The part that noise on the outputs of these operations ("layer.name") changes; the output is its result."""
        noisy, dirty = frozenset(operations), set[int]()
        for step in self.steps:
            if dirty.intersection(step.inputs) or (step.tapped is not None and step.tapped[0] in noisy):
                dirty.add(step.output)

        def given(slot: int) -> bool:
            return slot not in dirty and not self._shared(slot)  # a view is cheaper made than kept

        return Part(self, self._closure([self.output], given), (self.output,), noisy)

    def making(self, slots: Iterable[int], known: Container[int]) -> Part:
        """The part that computes these slots from the known ones (0: the images), and gives the products on the way."""
        steps = self._closure(slots, lambda slot: slot in known)
        products = {self.steps[i].output for i in steps if self.steps[i].macs}
        return Part(self, steps, tuple({*slots} | products))

    def worth(self, slot: int) -> float:
        """Multiply-accumulates that computing a slot from the images takes, per value of it."""
        if slot not in self._worth:
            needed = sum(self.steps[i].macs for i in self._closure([slot], lambda s: s == 0))
            self._worth[slot] = needed / self._values[slot]
        return self._worth[slot]

    def _shared(self, slot: int) -> bool:
        """Whether a slot lies in the memory of another."""
        return slot in self._maker and self.steps[self._maker[slot]].shares

    def _closure(self, slots: Iterable[int], given: Callable[[int], bool]) -> list[int]:
        """The steps, in order, that the slots need, back to those that are given."""
        needed, waiting = set[int](), list(slots)
        while waiting:
            slot = waiting.pop()
            if not given(slot) and slot in self._maker and self._maker[slot] not in needed:
                needed.add(self._maker[slot])
                waiting += self.steps[self._maker[slot]].inputs
        return sorted(needed)


class Part:
    """Some steps of a tape, which compute the slots `results` from the slots `needs`."""

    def __init__(
        self, tape: Tape, steps: Iterable[int], results: tuple[int, ...], noisy: frozenset[str] = frozenset()
    ) -> None:
        self.results, self.noisy, self._constants = results, noisy, tape.constants
        self._steps = [tape.steps[i] for i in steps]
        made = {step.output for step in self._steps}
        read = {slot for step in self._steps for slot in step.inputs} | {*results}
        self.needs = frozenset(read - made - tape.constants.keys())
        self.macs = sum(step.macs for step in self._steps)
        last = {slot: i for i, step in enumerate(self._steps) for slot in step.inputs}
        kept = self.needs | {*results} | tape.constants.keys()
        self._dead = [
            [slot for slot in {*step.inputs} if last[slot] == i and slot not in kept]
            for i, step in enumerate(self._steps)
        ]
        self._free = self._reusable(last, kept)

    def _reusable(self, last: dict[int, int], kept: Container[int]) -> list[bool]:
        """Of every step, whether it is a noisy tap whose input was made here and is looked at by nobody else."""
        first: dict[int, int] = {}  # of the slots made here, the first one in the same memory
        for step in self._steps:
            shares = step.view or (step.tapped is not None and step.tapped[0] not in self.noisy)
            first[step.output] = first.get(step.inputs[0], step.inputs[0]) if shares else step.output
        until: dict[int, int] = {}  # when that memory is last looked at
        for slot, memory in first.items():
            until[memory] = max(until.get(memory, 0), len(self._steps) if slot in kept else last.get(slot, 0))
        memories = [first.get(step.inputs[0], -1) if step.tapped else -1 for step in self._steps]
        return [first.get(memory) == memory and until[memory] <= i for i, memory in enumerate(memories)]

    def run(self, known: Mapping[int, Tensor], noise: Noise) -> Tensor:
        """The one result, with noise; `known` holds the tensors of `needs`, which stay as they are."""
        (result,) = self._run(known, noise).values()
        return result

    def compute(self, known: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """All the results, clean."""
        return self._run(known, lambda operation, iteration, x, out: x)

    def _run(self, known: Mapping[int, Tensor], noise: Noise) -> dict[int, Tensor]:
        values: dict[int, Tensor] = {**self._constants, **{slot: known[slot] for slot in self.needs}}

        def value(slot: Slot) -> Tensor:
            return values[slot.index]

        with torch.no_grad():
            for step, dead, free in zip(self._steps, self._dead, self._free, strict=True):
                if step.tapped is None:
                    result = step.function(*tree_map_only(Slot, value, step.arguments), **step.options)
                else:
                    result = values[step.inputs[0]]
                    if step.tapped[0] in self.noisy:
                        result = noise(*step.tapped, result, result if free else None)
                for slot in dead:
                    del values[slot]
                values[step.output] = result
        return {slot: values[slot] for slot in self.results}


class _Recorder(TorchDispatchMode):
    """Sees every tensor operation below autograd while a network runs."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.constants: dict[int, Tensor] = {}  # what the network brought along: its weights
        self._slots = WeakTensorKeyDictionary()
        self._slots[images] = 0
        self._count = 1
        self.values: dict[int, int] = {}  # of the slots that steps computed, how many there are
        self._seen: dict[str, int] = {}  # what was computed already, by function and arguments

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func._schema.is_mutable or not isinstance(result, Tensor) or torch.Tag.nondeterministic_seeded in func.tags:
            raise RedcaneError(
                f"analysis: the network calls {func}, which changes a tensor in place, draws random numbers or gives "
                "no tensor; write it without (training mode and dropout off)"
            )
        inputs: list[int] = []

        def place(tensor: Tensor) -> Slot:
            inputs.append(self.slot(tensor))
            return Slot(inputs[-1])

        arguments, options = tree_map_only(Tensor, place, (args, kwargs))
        text = repr((func, arguments, options))
        if text not in self._seen:
            flops = flop_registry.get(func._overloadpacket)
            macs = flops(*args, **kwargs, out_val=result) // 2 if flops else 0
            given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            view = any(result.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr() for tensor in given)
            self._seen[text] = self._count
            self.values[self._count] = result.numel()
            self._add(Step(func, arguments, options, tuple(inputs), self._count, view=view, macs=macs))
        self._slots[result] = self._seen[text]
        return result

    def tap(self, operation: str, iteration: int, output: Tensor) -> Tensor:
        """From here on the tensor is another slot's: what the tap gave."""
        if not is_dense(output):
            output = output.contiguous()
        slot = self.slot(output)
        self._slots[output] = self._count
        self._add(Step(None, (), {}, (slot,), self._count, tapped=(operation, iteration)))
        return output

    def slot(self, tensor: Tensor) -> int:
        """A tensor's slot; one that no step made is a constant."""
        if tensor not in self._slots:
            self._slots[tensor] = self._count
            self.constants[self._count] = tensor.detach()
            self._count += 1
        return int(self._slots[tensor])

    def _add(self, step: Step) -> None:
        self.steps.append(step)
        self._count += 1
