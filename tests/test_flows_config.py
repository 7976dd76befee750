"""Configurations: what is wrong with them is told in one sentence, with file and key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.config import Config, documentation
from model.deepcaps import DeepCapsShape
from model.errors import RedcaneError
from model.fitting import GROWTHS
from model.recipe import TrainingRecipe
from model.resilience import ResilienceSettings
from model.yamlfile import SIZE_LIMIT, read_yaml

ROOT = Path(__file__).parent.parent

GOOD = """
name: tiny
dataset: digits
network: {image: [8, 8, 1], classes: 10, conv_channels: 4, conv_kernel: 3, primary_types: 2, primary_dim: 4,
          primary_kernel: 3, primary_stride: 2, class_dim: 4}
"""


def load(tmp_path: Path, text: str, overrides: dict[str, Any] | None = None) -> Config:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    return Config.load(path, overrides)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_our_configurations_load(path: Path) -> None:
    config = Config.load(path)
    assert config.name == path.stem
    config.shape()
    config.recipe()
    config.resilience()


def test_there_are_configurations() -> None:
    assert {"digits.yaml", "capsnet-mnist.yaml"} <= {path.name for path in (ROOT / "configs").iterdir()}


def test_the_original_capsnet() -> None:
    shape = Config.load(ROOT / "configs" / "capsnet-mnist.yaml").shape()
    assert (shape.conv_channels, shape.capsules, shape.primary_dim, shape.class_dim) == (256, 1152, 8, 16)


def test_defaults_are_filled_in(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    assert config.seed == 0 and config.simulate.images == 20 and config.shape().image == (8, 8, 1)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (GOOD + "train: {epocs: 3}", "x.yaml: train.epocs: unknown key; did you mean epochs?"),
        (GOOD + "sead: 3", "x.yaml: sead: unknown key; did you mean seed?"),
        (GOOD + "simulate: {zebra: 1}", "x.yaml: simulate.zebra: unknown key; choose from images"),
        ("name: x", "x.yaml: dataset: this key is missing"),
        (GOOD + "train: 5", "x.yaml: train: should be a section, lines of `key: value`"),
        (GOOD + "train:", "x.yaml: train: should be a section, lines of `key: value`"),
        (GOOD + "train: {epochs: '5'}", "x.yaml: train.epochs: '5' is wrong: input should be a valid integer"),
        (GOOD + "train: {epochs: 5.0}", "x.yaml: train.epochs: 5.0 is wrong: input should be a valid integer"),
        (GOOD + "train: {epochs: true}", "x.yaml: train.epochs: True is wrong: input should be a valid integer"),
        (GOOD + "train: {epochs: 0}", "x.yaml: train.epochs: 0 is wrong: input should be greater than or equal to 1"),
        (
            GOOD + "train: {learning_rate: .nan}",
            "x.yaml: train.learning_rate: nan is wrong: input should be a finite number",
        ),
        (GOOD + "accelerator: {rows: 5}", "x.yaml: accelerator.rows: 5 is wrong: input should be 4, 8, 16, 32 or 64"),
        (GOOD.replace("tiny", "../../etc"), "x.yaml: name: '../../etc' is wrong"),
        (GOOD.replace("[8, 8, 1]", "[8, 8]"), "x.yaml: network.image: "),
        (GOOD.replace("digits", "cats"), "x.yaml: dataset: 'cats' is wrong: input should be 'digits', 'mnist', 'fa"),
        (GOOD.replace("{image", "{kind: resnet, image"), "x.yaml: network.kind: 'resnet' is unknown; choose from"),
        (GOOD.replace("{image", "{kind: deepcaps, image"), "x.yaml: network.conv_kernel: unknown key; did you mean"),
        (GOOD.replace(", class_dim: 4", ""), "x.yaml: network.class_dim: this key is missing (dimensions of a class"),
        (GOOD.split("network")[0] + "network: 3", "x.yaml: network: should be a section, lines of `key: value`"),
        (GOOD + "seed: 1\nseed: 2", "the key 'seed' stands there twice"),
        ("a: &x [1]\nb: *x", "x.yaml: line 2 aliases (*name) are not supported"),
        ("a: [1", "x.yaml: line 1 "),
        ("a: \x00", "x.yaml: "),
        ("!!python/object/apply:os.system [true]", "x.yaml: line 1 could not determine a constructor"),
        ("- 1", "x.yaml: should be a mapping"),
        ("", "x.yaml: should be a mapping"),
        ("1: 2", "x.yaml: should be a mapping"),
        ("? [a]\n: 1", "x.yaml: line 1 found unhashable key"),
        ("a: 2024-13-45", "x.yaml: not YAML"),
        ("a: " + "[" * 5000, "x.yaml: nested too deeply"),
    ],
)
def test_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(RedcaneError) as caught:
        load(tmp_path, text)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(RedcaneError, match="no such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(RedcaneError, match="not a regular file"):
        read_yaml(tmp_path)
    (tmp_path / "big.yaml").write_bytes(b"#" * (SIZE_LIMIT + 1))
    with pytest.raises(RedcaneError, match="larger than"):
        read_yaml(tmp_path / "big.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(RedcaneError, match="UTF-8"):
        read_yaml(tmp_path / "binary.yaml")


def test_overrides(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD, {"simulate.images": 7, "seed": None}).simulate.images == 7
    with pytest.raises(RedcaneError, match=r"simulate\.images: -1 is wrong"):
        load(tmp_path, GOOD, {"simulate.images": -1})
    with pytest.raises(RedcaneError, match="simulate: should be a section"):
        load(tmp_path, GOOD + "simulate: 3", {"simulate.images": 7})


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD + "data_dir: data\nsynthesize: {liberty: /opt/cells.lib}")
    assert config.data_dir == str(tmp_path / "data") and config.synthesize.liberty == "/opt/cells.lib"
    assert load(tmp_path, GOOD + "data_dir: data", {"data_dir": "here"}).data_dir == "here"


def test_later_keys_do_not_make_runs_stale(tmp_path: Path) -> None:
    dumped = load(tmp_path, GOOD).model_dump()
    assert "kind" not in dumped["network"] and "pixels" not in dumped
    assert not {"crop", "flip", "bfloat16", "cycles", "average", "device"} & set(dumped["train"])
    chosen = load(tmp_path, GOOD + "pixels: 16\ntrain: {flip: true, device: cpu}").model_dump()
    assert chosen["pixels"] == 16 and chosen["train"]["flip"] and "device" not in chosen["train"]


def test_a_deepcaps(tmp_path: Path) -> None:
    network = "network: {kind: deepcaps, image: [28, 28, 1], classes: 10, decoder: [16, 64, 32, 16]}"
    config = load(tmp_path, GOOD.split("network")[0] + network)
    assert config.shape() == DeepCapsShape((28, 28, 1), 10, decoder=(16, 64, 32, 16))
    assert config.model_dump()["network"]["kind"] == "deepcaps"


def test_the_documentation_is_up_to_date() -> None:
    """`python -m flows.config > docs/configuration.md` makes it."""
    assert (ROOT / "docs" / "configuration.md").read_text() == documentation()


def test_the_documented_example_is_a_configuration(tmp_path: Path) -> None:
    example = documentation().split("```yaml\n")[1].split("```")[0]
    assert load(tmp_path, example).model_dump() == {
        **load(tmp_path, example).model_dump(),
        **yaml.safe_load("name: mine"),
    }


def test_the_defaults_are_those_of_what_they_configure() -> None:
    config = Config.load(ROOT / "configs" / "digits.yaml")
    assert config.recipe() == TrainingRecipe()
    assert config.resilience() == ResilienceSettings()


def test_weights_grow_only_where_larger_operands_cost_no_more(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(GOOD)
    config = Config.load(tmp_path / "x.yaml", {})
    assert config.assign.compare_by == "switching" and config.growths() == (1.0,)
    other = config.comparing_by("library")
    assert other.growths() == GROWTHS and GROWTHS[0] == 1 and sorted(GROWTHS) == list(GROWTHS)
    assert other.comparing_by("switching") == config
