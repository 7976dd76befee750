"""The `network:` section of a configuration: one of the networks that there are, told apart by `kind`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_serializer

if TYPE_CHECKING:  # they bring torch, which a configuration can do without
    from model.network import Shape

Positive = Annotated[int, Field(ge=1, le=2**20)]


class Section(BaseModel):
    """Unknown keys and wrong types are errors; nothing is converted silently."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    LATER: ClassVar[frozenset[str]] = frozenset()
    """Keys that came when runs had been made: left out at their default, they do not make those runs stale."""

    @model_serializer(mode="wrap")
    def _dump(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        fields = type(self).model_fields
        return {k: v for k, v in dump(self).items() if k not in self.LATER or v != fields[k].default}


Iterations = Annotated[int, Field(ge=1, le=16)]


class CapsNetSection(Section):
    """The CapsNet of Sabour et al. (2017): a convolution, primary capsules, class capsules."""

    LATER = frozenset({"kind"})

    kind: Literal["capsnet"] = Field("capsnet", description="which network this is")
    image: list[Positive] = Field(min_length=3, max_length=3, description="height, width and channels of an image")
    classes: Positive = Field(description="classes to tell apart, one capsule each")
    conv_channels: Positive = Field(description="channels of the first convolution")
    conv_kernel: Positive = Field(description="its kernel's edge")
    conv_stride: Positive = Field(1, description="its stride")
    primary_types: Positive = Field(description="capsule types at every position of the primary layer")
    primary_dim: Positive = Field(description="dimensions of a primary capsule")
    primary_kernel: Positive = Field(description="edge of the primary layer's kernel")
    primary_stride: Positive = Field(description="its stride")
    class_dim: Positive = Field(description="dimensions of a class capsule")
    iterations: Iterations = Field(3, description="iterations of the dynamic routing")
    decoder: list[Positive] = Field(
        [], max_length=8, description="hidden layers of the reconstruction, in training only"
    )

    def shape(self) -> Shape:
        """The network's sizes; raises RedcaneError when they do not fit together."""
        from model.capsnet import CapsNetShape

        return CapsNetShape(**_sizes(self))


class DeepCapsSection(Section):
    """The DeepCaps of Rajasegaran et al. (2019): a convolution, four cells of capsule layers, class capsules."""

    kind: Literal["deepcaps"] = Field(description="which network this is")
    image: list[Positive] = Field(min_length=3, max_length=3, description="height, width and channels of an image")
    classes: Positive = Field(description="classes to tell apart, one capsule each")
    conv_channels: Positive = Field(128, description="channels of the first convolution")
    types: Positive = Field(32, description="capsule types at every position of every cell")
    dims: list[Positive] = Field(
        [4, 8, 8, 8], min_length=4, max_length=4, description="dimensions of a capsule, in each of the four cells"
    )
    class_dim: Positive = Field(32, description="dimensions of a class capsule")
    iterations: Iterations = Field(3, description="iterations of the dynamic routing, in the 3D layer and at the end")
    decoder: list[Positive] = Field(
        [],
        max_length=8,
        description="channels of the reconstruction, in training only: of its first maps, of a layer of their size, "
        "and of each layer that doubles it, up to the image's",
    )

    def shape(self) -> Shape:
        """The network's sizes; raises RedcaneError when they do not fit together."""
        from model.deepcaps import DeepCapsShape

        return DeepCapsShape(**_sizes(self))


def _sizes(section: Section) -> dict[str, Any]:
    values = {name: value for name, value in section if name != "kind"}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


NETWORKS: dict[str, type[Section]] = {"capsnet": CapsNetSection, "deepcaps": DeepCapsSection}
Network = Annotated[CapsNetSection | DeepCapsSection, Field(discriminator="kind")]
