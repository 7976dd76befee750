"""Step 1 of the method: the operations of a network, found from the network itself, in the paper's four groups.

What is counted, per inference (one image) and summed over the routing iterations:

- multiply-accumulate of K terms ("mac", "votes", "weighted_sum", "agreement"): K multiplications and K - 1 additions
  for every output value; a bias ("mac") and adding to the old logit ("agreement") are one addition more;
  what a convolution multiplies with the zeros of its padding is counted too;
- squash of a D-dimensional capsule, s |s| / (1 + |s|^2): D multiplications and D - 1 additions for |s|^2, 1 square
  root, 1 addition and 1 division for the factor, D multiplications by it;
- softmax over J logits: J exponentials, J - 1 additions, J divisions;
- the sum of two capsule tensors ("add"): 1 addition for every value;
- ReLU: none (it compares).

Choosing the longest class capsule, and anything that only training needs, is not counted. Loads without torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from model.network import Network

GROUPS = {
    "mac": "MAC outputs",
    "activation": "Activations",
    "softmax": "Softmax",
    "logits": "Logits update",
}
"""The groups in the order of the paper's Sec. III-V, with the titles that tables and plots show."""

GROUP_OF = {
    "mac": "mac",
    "votes": "mac",
    "weighted_sum": "mac",
    "relu": "activation",
    "squash": "activation",
    "softmax": "softmax",
    "agreement": "logits",
    "add": "none",
}
"""The group of each kind of operation; "none" for what the paper has in no group: no noise is injected there."""


@dataclass(frozen=True)
class Counts:
    """Arithmetic of one inference."""

    multiplications: int = 0
    additions: int = 0
    divisions: int = 0
    exponentials: int = 0
    square_roots: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Operation:
    """One operation of one layer; in the routing, all its iterations together."""

    layer: str
    name: str
    group: str  # a key of GROUPS, or none
    shape: tuple[int, ...]  # of its output, per image
    iterations: int  # how often an inference computes it
    counts: Counts

    @property
    def key(self) -> str:
        """Its name as text: "layer.operation"."""
        return f"{self.layer}.{self.name}"


def layer_of(key: str) -> str:
    """The layer of "layer.operation"; its name may have dots itself ("cell1.conv1")."""
    return key.rpartition(".")[0]


Shape = tuple[int, ...]


def _multiply_accumulate(output: Shape, terms: int, more_additions: int) -> Counts:
    values = math.prod(output)
    return Counts(multiplications=values * terms, additions=values * (terms - 1 + more_additions))


def _squash(output: Shape) -> Counts:
    dim = output[-1]
    one = math.prod(output[:-1])
    return Counts(multiplications=one * 2 * dim, additions=one * dim, divisions=one, square_roots=one)


def _softmax(output: Shape) -> Counts:
    classes = output[-1]
    one = math.prod(output[:-1])
    return Counts(additions=one * (classes - 1), divisions=one * classes, exponentials=one * classes)


def _vote_terms(weight: Shape) -> int:
    """Terms of a vote: the input capsule's D, of a matrix (I, D, J, E) or of a shared kernel (J, E, D, Kh, Kw)."""
    return weight[1] if len(weight) == 4 else math.prod(weight[2:])


# kind of operation -> counts of (output shape per image, shapes of the operands as tapped)
_COUNT: dict[str, Callable[[Shape, list[Shape]], Counts]] = {
    "mac": lambda out, operands: _multiply_accumulate(out, math.prod(operands[1][1:]), len(operands) - 2),  # + bias
    "votes": lambda out, operands: _multiply_accumulate(out, _vote_terms(operands[1]), 0),
    "weighted_sum": lambda out, operands: _multiply_accumulate(out, operands[0][-3], 0),  # over the I input capsules
    "agreement": lambda out, operands: _multiply_accumulate(out, operands[0][-1], 1),  # over the output capsule's E
    "relu": lambda out, operands: Counts(),
    "squash": lambda out, operands: _squash(out),
    "softmax": lambda out, operands: _softmax(out),
    "add": lambda out, operands: Counts(additions=math.prod(out)),
}


def operations(network: Network) -> list[Operation]:
    """The operations of one inference of the network, in the order in which it first executes them.

    They are recorded while the network runs on one blank image; no list is kept for any network.
    """
    import torch  # here, so that the names and groups above load where torch is not wanted

    found: dict[str, Operation] = {}

    def record(layer: str, name: str, output: Tensor, iteration: int, operands: tuple[Tensor, ...]) -> Tensor:
        shape = tuple(output.shape[1:])
        counts = _COUNT[name](shape, [tuple(operand.shape) for operand in operands])
        operation = Operation(layer, name, GROUP_OF[name], shape, 1, counts)
        seen = found.get(operation.key)
        if seen:
            operation = replace(seen, iterations=seen.iterations + 1, counts=seen.counts + counts)
        found[operation.key] = operation
        return output

    height, width, channels = network.shape.image
    with torch.no_grad():
        network(torch.zeros(1, channels, height, width), record)
    return list(found.values())


def total(found: list[Operation]) -> Counts:
    """The counts of all the operations together."""
    return sum((operation.counts for operation in found), Counts())
