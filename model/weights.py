"""Tensors in safetensors files: written whole, read with every check, no pickle anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, isfinite

from model.errors import RedcaneError
from model.files import read_bounded, write_atomic
from model.network import Network, Shape, build

SIZE_LIMIT = 2**30  # bytes; the original CapsNet with decoder takes 33 MB, its checkpoint four times that


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically."""
    write_atomic(path, safetensors.torch.save({name: t.contiguous() for name, t in tensors.items()}, metadata))


def read_tensors(path: Path, limit: int = SIZE_LIMIT) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file of at most `limit` bytes.

    Raises RedcaneError when it is missing, larger, truncated or foreign.
    """
    content = read_bounded(path, limit)
    try:
        tensors = safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise RedcaneError(f"{path}: not a whole safetensors file ({error}); make it again") from None
    return tensors, _metadata(content)


def _metadata(content: bytes) -> dict[str, str]:
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])  # safetensors has validated it
    return dict(header.get("__metadata__") or {})


def save_weights(network: Network, path: Path, metadata: dict[str, str]) -> None:
    """Write the weights of a network (decoder too, if it has one), with texts to keep beside them."""
    write_tensors(path, {name: tensor.detach() for name, tensor in network.state_dict().items()}, metadata)


def check_tensors(path: Path, tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise RedcaneError unless the tensors have the names, types and shapes of the expected ones and finite values."""
    for name, tensor in expected.items():
        if name not in tensors:
            raise RedcaneError(f"{path}: no tensor {name}; this file was not made for this network, train it again")
        found = tensors[name]
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise RedcaneError(
                f"{path}: {name} is {found.dtype} {list(found.shape)}, but the configured network "
                f"needs {tensor.dtype} {list(tensor.shape)}; train it again"
            )
        if not isfinite(found).all():
            raise RedcaneError(f"{path}: {name} holds values that are not finite; train it again")
    surplus = sorted(set(tensors) - set(expected))
    if surplus:
        raise RedcaneError(f"{path}: tensor {surplus[0]} does not belong to this network; train it again")


def load_weights(shape: Shape, path: Path) -> tuple[Network, dict[str, str]]:
    """A network of this shape with the weights of a file, and the file's metadata.

    Raises RedcaneError when the file is missing, truncated, foreign, or made for another shape.
    """
    tensors, metadata = read_tensors(path)
    network = build(shape)
    check_tensors(path, tensors, network.state_dict())
    network.load_state_dict(tensors)
    return network, metadata
