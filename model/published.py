"""Published weights: the encoder of a trained network in a small safetensors file, and what it came to.

Every tensor of two or more dimensions is stored as int8 codes with one float32 scale for each slice along its first
axis (an output channel of a convolution, an input capsule of the votes): w = code * scale, the largest |w| of a slice
at code 127. That product is one float32 multiplication, so the weights are the same bits on every machine. What has
fewer dimensions (biases, batch normalisation) is kept as it is; the decoder, which only training needs, is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from torch import Tensor

from model.errors import RedcaneError
from model.network import Network, Shape, build
from model.weights import check_tensors, read_tensors, write_tensors

SIZE_LIMIT = 64 * 2**20
"""Bytes of such a file; DeepCaps at 64 x 64 pixels takes 14 MB."""

_METADATA = "redcane"
_CODES, _SCALES = ":codes", ":scales"

Fraction = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(max_length=200)]


class Accuracies(BaseModel):
    """Fractions of the images of a split that are classified right."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    validation: Fraction
    test: Fraction


class About(BaseModel):
    """What published weights say of themselves."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: Literal[1] = Field(alias="schema", default=1)
    name: Text
    dataset: Text
    seed: int = Field(ge=0, lt=2**31)
    """Of the training, and of the split into training and validation images."""
    trained: Accuracies
    """Of the float network as it was trained."""
    stored: Accuracies
    """Of the network that this file gives."""
    recipe: dict[str, JsonValue]
    """The sections `network` and `train` of the configuration that it was trained with."""
    tools: dict[str, Text]


def encoder(network: Network) -> dict[str, Tensor]:
    """The tensors that an inference needs, by name: all but the decoder's."""
    return {k: v.detach().cpu() for k, v in network.state_dict().items() if not k.startswith("decoder.")}


def pack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Float tensors as they are stored: int8 codes and float32 scales along the first axis, the rest as it is."""
    packed = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2:
            packed[name] = tensor
            continue
        rows = tensor.flatten(1)
        scales = rows.abs().amax(dim=1) / 127
        codes = torch.round(rows / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).clamp(-127, 127)
        packed[name + _CODES], packed[name + _SCALES] = codes.to(torch.int8).view(tensor.shape), scales
    return packed


def unpack(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of pack, up to the rounding to codes."""
    tensors = {}
    for name, tensor in packed.items():
        if name.endswith(_CODES):
            base = name.removesuffix(_CODES)
            scales = packed[base + _SCALES].view(-1, *(1 for _ in tensor.shape[1:]))
            tensors[base] = tensor.to(torch.float32) * scales
        elif not name.endswith(_SCALES):
            tensors[name] = tensor
    return tensors


def stored(network: Network, shape: Shape) -> Network:
    """A network of this shape, which has no decoder, with the weights of `network` as publishing would store them."""
    return _filled(shape, pack(encoder(network)))


def publish(network: Network, path: Path, about: About) -> None:
    """Write a network's encoder atomically."""
    write_tensors(path, pack(encoder(network)), {_METADATA: about.model_dump_json(by_alias=True)})


def load_published(shape: Shape, path: Path) -> tuple[Network, About]:
    """A network of this shape, which has no decoder, with published weights, and what is said of them.

    Raises RedcaneError when the file is missing, too large, truncated, foreign, or made for another shape.
    """
    tensors, about = _read(path)
    check_tensors(path, tensors, pack(encoder(build(shape))))
    for name, tensor in tensors.items():
        wrong = tensor.amin() < (-127 if name.endswith(_CODES) else 0)
        if name.endswith((_CODES, _SCALES)) and wrong:
            raise RedcaneError(f"{path}: {name} holds a code of -128 or a negative scale; publish the network again")
    return _filled(shape, tensors), about


def read_about(path: Path) -> About:
    """What is said of published weights. Raises RedcaneError for a file that is missing, too large or foreign."""
    return _read(path)[1]


def _filled(shape: Shape, packed: Mapping[str, Tensor]) -> Network:
    network = build(shape)
    network.load_state_dict(unpack(packed))
    return network.eval()


def _read(path: Path) -> tuple[dict[str, Tensor], About]:
    tensors, metadata = read_tensors(path, SIZE_LIMIT)
    try:
        return tensors, About.model_validate_json(metadata.get(_METADATA, ""))
    except ValidationError:
        raise RedcaneError(f"{path}: does not say what it holds, so these are no published weights") from None
